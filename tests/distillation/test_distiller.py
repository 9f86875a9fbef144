from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, StepLR

from ddray.data import Dataset
from ddray.distillation import DistillConfig, Distiller, state
from ddray.distillation.config import EngineConfig, OuterConfig
from ddray.distillation.distiller import decay
from ddray.distillation.engine import Engine, make_engine
from ddray.distillation.inner import soft_loss
from ddray.distillation.outer import RealBatch, hard_loss
from ddray.errors import Diverged, RequestError

from .problems import ARCH, QUICK, blobs, distiller

VARIANTS = {
    "random": {},
    "fixed": {"network__source": "fixed", "network__starts": 2},
    "networks": {"outer__networks": 3},
    "window": {"synthetic__epochs": 4, "outer__window": 3},
    "hard labels": {"labels__learn": False},
    "softmax": {"labels__softmax": True},
    "inputs stay": {"synthetic__learn": False},
    "fewer classes": {"synthetic__classes": [2, 0]},
    "several samples": {"synthetic__samples_per_class": 2},
    "real": {"synthetic__init": "real"},
    "average": {"synthetic__init": "average"},
    "shorter unroll": {"synthetic__epochs": 4, "outer__unroll_steps": 6, "outer__window": 2},
    "clipped by averages": {"outer__clip": None, "outer__clip_average": 1.1, "outer__clip_each": True},
    "averaged": {"outer__average": 0.9},
    "momentum": {"inner__optimiser": "momentum"},
    "adam": {"inner__optimiser": "adam"},
    "step decay": {"outer__decay": "step", "outer__decay_every": 3, "outer__clip": None},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_and_resumed_is_bit_for_bit_uninterrupted(variant: str, tmp_path: Path) -> None:
    straight = distiller(**VARIANTS[variant])
    for _ in range(3):
        straight.advance(2)
        straight.score()
    first = distiller(**VARIANTS[variant])
    first.advance(2)
    first.score()
    first.advance(1)
    state.save(first, tmp_path / "state.safetensors")
    second = distiller(**VARIANTS[variant])
    state.load(second, tmp_path / "state.safetensors")
    second.advance(1)
    second.score()
    second.advance(2)
    second.score()
    expected, found = straight.state_dict(), second.state_dict()
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]) if isinstance(value, torch.Tensor) else value == found[name], name


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_seed_gives_the_same_set_and_another_another(variant: str) -> None:
    runs = [distiller(seed=seed, **VARIANTS[variant]) for seed in (1, 1, 2)]
    for run in runs:
        run.advance(3)
    first, again, other = (run.synthetic_now().inputs for run in runs)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_global_generator_plays_no_part() -> None:
    runs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        run = distiller()
        run.advance(2)
        runs.append(run.synthetic_now().inputs)
    assert torch.equal(*runs)


@pytest.mark.parametrize("compiled", ["off", "trace"])
def test_networks_side_by_side_teach_what_they_teach_one_by_one(compiled: str) -> None:
    runs = [distiller(outer__networks=5) for _ in range(2)]
    for run, networks in zip(runs, ("loop", "batch"), strict=True):
        run._engine = make_engine(run.network, run.config.inner, EngineConfig(compile=compiled, networks=networks))
        run.advance(3)
    alone, together = (run.synthetic_now() for run in runs)
    torch.testing.assert_close(together.inputs, alone.inputs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.rates, alone.rates, rtol=1e-4, atol=1e-6)


def test_what_is_not_learned_stays_as_drawn() -> None:
    run = distiller(synthetic__learn=False, labels__learn=False)
    before = run.synthetic_now()
    run.advance(3)
    after = run.synthetic_now()
    assert torch.equal(before.inputs, after.inputs)
    assert torch.equal(before.labels, after.labels)
    assert not torch.equal(before.rates, after.rates)


def test_rates_start_where_they_are_told() -> None:
    for lr in (1e-4, 0.02, 17.5):
        rates = distiller(synthetic__lr=lr).synthetic_now().rates
        torch.testing.assert_close(rates, torch.full((4,), lr), rtol=1e-5, atol=0)


def test_distilling_helps() -> None:
    run = distiller(outer__steps=60, network__source="fixed")
    before = run.score().mean
    run.advance(60)
    assert run.score().mean > max(before, 0.8)


def test_factors_scale_the_outer_rates() -> None:
    slow, fast = distiller(), distiller(outer__label_lr=10.0, outer__rate_lr=0.1)
    starts = slow.synthetic_now()
    for run in (slow, fast):
        run.advance(1)
    # Adam's first step is as long as its rate, whatever the gradient.
    moved = [(run.synthetic_now().labels - starts.labels).abs().max() for run in (slow, fast)]
    torch.testing.assert_close(moved[1], 10 * moved[0], rtol=1e-3, atol=0)


def test_best_is_kept_and_not_overwritten_by_worse() -> None:
    run = distiller(outer__steps=40)
    looks = []
    for _ in range(6):
        run.advance(3)
        looks.append((run.step, run.score().mean))
    assert run.best is not None
    assert run.best.score == max(score for _, score in looks)
    assert run.best.step == next(step for step, score in looks if score == run.best.score)
    assert run.judge(run.synthetic_best(), "A").mean == run.best.score


def test_the_average_over_outer_steps_is_what_is_judged_and_kept_and_nothing_that_is_learned_from() -> None:
    plain, averaged = distiller(), distiller(outer__average=0.5)
    sets = [plain.synthetic_now().inputs]
    for _ in range(12):
        plain.advance()
        averaged.advance()
        sets.append(plain.synthetic_now().inputs.clone())
    assert torch.equal(averaged.synthetic().inputs, sets[-1])
    expected = sets[0].double()
    for step, inputs in enumerate(sets[1:], 1):
        share = min(0.5, (1 + step) / (10 + step))
        expected = share * expected + (1 - share) * inputs
    torch.testing.assert_close(averaged.synthetic_now().inputs.double(), expected, rtol=1e-5, atol=1e-6)
    averaged.score()
    assert torch.equal(averaged.synthetic_best().inputs, averaged.synthetic_now().inputs)


def test_divergence_names_the_outer_step_and_leaves_the_set() -> None:
    run = distiller(synthetic__lr=1e6, synthetic__epochs=30, outer__lr=1.0)
    with pytest.raises(Diverged, match="outer step 0"):
        run.advance(12)
    assert run.step == 0
    assert torch.isfinite(run.synthetic_now().inputs).all()


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(RequestError, match=r"outer\.batch: 9999 .* at most the 1"):
        distiller(outer__batch=9999)


def test_a_window_longer_than_the_unroll_is_refused() -> None:
    with pytest.raises(RequestError, match=r"outer\.window: 5 .* at most the 4"):
        distiller(outer__window=5)


def test_an_unroll_longer_than_the_inner_steps_is_refused_and_so_is_a_window_longer_than_it() -> None:
    with pytest.raises(RequestError, match=r"outer\.unroll_steps: 5 .* at most the 4"):
        distiller(outer__unroll_steps=5)
    with pytest.raises(RequestError, match=r"outer\.window: 4 .* at most the 3"):
        distiller(outer__unroll_steps=3, outer__window=4)


def test_windows_end_within_the_unroll() -> None:
    run = distiller(synthetic__epochs=4, outer__window=2, outer__unroll_steps=5)
    windows = set()
    for run.step in range(100):
        windows.add(run._draws.window(run.step, 0))
    assert windows == {range(end - 2, end) for end in range(2, 6)}
    whole = distiller(synthetic__epochs=4, outer__unroll_steps=5)
    assert whole._draws.window(0, 0) == range(5)


def test_windows_lie_everywhere_in_the_unroll() -> None:
    run = distiller(synthetic__epochs=4, outer__window=3)
    windows = set()
    for run.step in range(100):
        windows.add(run._draws.window(run.step, 0))
    assert windows == {range(end - 3, end) for end in range(3, 9)}


def test_softmax_of_one_logit_is_refused() -> None:
    with pytest.raises(RequestError, match=r"labels\.softmax"):
        distiller(classes=2, labels__softmax=True)


def test_two_classes_learn() -> None:
    run = distiller(classes=2, outer__steps=60)
    assert run.outputs == 1
    run.advance(60)
    assert run.score().mean > 0.9


def test_decay() -> None:
    cosine = OuterConfig(steps=100, decay="cosine")
    assert decay(cosine, 0) == 1
    assert decay(cosine, 50) == pytest.approx(0.5)
    assert decay(cosine, 100) == pytest.approx(0, abs=1e-12)
    step = OuterConfig(decay="step", decay_every=10, decay_factor=0.5)
    assert [decay(step, k) for k in (0, 9, 10, 25)] == [1, 1, 0.5, 0.25]
    assert decay(OuterConfig(decay="none"), 77) == 1


def test_a_checkpoint_of_another_problem_is_refused(tmp_path: Path) -> None:
    run = distiller()
    state.save(run, tmp_path / "state.safetensors")
    for other in (distiller(seed=1), distiller(outer__lr=0.01), distiller(classes=4)):
        with pytest.raises(RequestError, match="another configuration"):
            state.load(other, tmp_path / "state.safetensors")


@pytest.mark.parametrize("keep", [0, 3, 200])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, keep: int) -> None:
    file = tmp_path / "state.safetensors"
    state.save(distiller(), file)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(RequestError, match="cannot be read"):
        state.load(distiller(), file)


def reference_loss(run: Distiller, raw: Mapping[str, Tensor], batch: RealBatch, starts: Sequence[Tensor]) -> Tensor:
    """The outer loss of a step of the distiller, as a function of raw tensors that plain autograd sees through."""
    labels, rates = raw["labels"], nn.functional.softplus(raw["rates"])
    if run.config.labels.softmax:
        labels = labels.softmax(-1)
    losses = []
    for index, start in enumerate(starts):
        weights, window = start.clone().requires_grad_(), run._draws.window(run.step, index)
        for t, s in enumerate(run.order[: window.stop]):
            loss = soft_loss(run.network(weights, raw["inputs"][s]), labels[s])
            weights = weights - rates[t] * torch.autograd.grad(loss, weights, create_graph=True)[0]
            if t < window.start:
                weights = weights.detach().requires_grad_()
        losses.append(hard_loss(run.network(weights, batch.x), batch.y))
    return torch.stack(losses).mean()


@pytest.mark.parametrize(
    "settings",
    [
        {"outer__clip": None},
        {"outer__clip": 0.05},
        {"outer__beta1": 0.8, "outer__beta2": 0.9},
        {"outer__label_lr": 3.0, "outer__rate_lr": 0.2, "outer__decay": "none"},
        {"outer__decay": "step", "outer__decay_every": 2, "outer__decay_factor": 0.3},
        {"labels__softmax": True},
        {"classes": 2},
        {"synthetic__learn": False},
        {"labels__learn": False, "outer__label_lr": 3.0, "outer__rate_lr": 0.2},
        {"synthetic__epochs": 4, "outer__window": 3},
        {"network__source": "fixed", "network__starts": 2},
    ],
    ids=lambda settings: ",".join(settings),
)
def test_outer_steps_are_torchs_adam_on_the_clipped_mean_gradient_over_networks(settings: dict[str, Any]) -> None:
    run = distiller(outer__networks=3, outer__steps=8, **settings)
    outer = run.config.outer
    factors = {"inputs": 1.0, "labels": outer.label_lr, "rates": outer.rate_lr}
    raw = {name: value.detach().clone().requires_grad_(value.requires_grad) for name, value in run.raw.items()}
    learned = {name: value for name, value in raw.items() if value.requires_grad}
    groups = [{"params": [value], "lr": outer.lr * factors[name]} for name, value in learned.items()]
    adam = torch.optim.Adam(groups, betas=(outer.beta1, outer.beta2))
    decays = {
        "none": ConstantLR(adam, 1.0),
        "step": StepLR(adam, outer.decay_every, outer.decay_factor),
        "cosine": CosineAnnealingLR(adam, outer.steps),
    }
    for step in range(5):
        loss = reference_loss(run, raw, run.batches.at(step), [run._draws.start(step, index) for index in range(3)])
        adam.zero_grad()
        loss.backward()
        if outer.clip is not None:
            nn.utils.clip_grad_norm_(learned.values(), outer.clip)
        adam.step()
        decays[outer.decay].step()
        run.advance()
        assert run.loss == pytest.approx(loss.item(), rel=1e-4)
    for name, value in raw.items():
        torch.testing.assert_close(run.raw[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["inputs", "labels", "rates"])
@pytest.mark.parametrize("settings", [{}, {"labels.softmax": True}], ids=["plain", "softmax"])
def test_the_outer_gradient_of_what_is_learned_equals_finite_differences(
    settings: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DistillConfig.from_flat(QUICK | {"outer.networks": 2, "outer.clip": None} | settings)
    run = Distiller(blobs(size=2), ARCH, config)
    run.network.to(dtype=torch.float64)
    batch, starts = run._draws.at(0)
    batch, starts = RealBatch(batch.x.double(), batch.y), [start.double() for start in starts]
    raw = {name: value.detach().double() for name, value in run.raw.items()}
    for key, value in raw.items():
        run.raw[key].data = value.clone()
    monkeypatch.setattr(run._draws, "at", lambda _: (batch, starts))
    run.advance()
    found = run.raw[name].grad
    assert found is not None and found.dtype == torch.float64
    for entry, slope in enumerate(found.flatten().tolist()):
        losses = []
        for moved in (1e-5, -1e-5):
            there = raw[name].clone()
            there.view(-1)[entry] += moved
            losses.append(reference_loss(run, raw | {name: there}, batch, starts).item())
        assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(slope, rel=1e-5, abs=1e-9)


@pytest.fixture
def taught(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, int]]:
    """The initial weights of every network that teaches a set, and what its dropout masks follow from."""
    seen: list[tuple[Tensor, int]] = []
    outer_gradient = Engine.outer_gradient

    def watched(self: Engine, step: Any, start: Tensor, synthetic: Any, order: Any, batch: Any, seed: int, window: range) -> Any:
        seen.append((start, seed))
        return outer_gradient(self, step, start, synthetic, order, batch, seed, window)

    monkeypatch.setattr(Engine, "outer_gradient", watched)
    return seen


def test_every_network_of_every_outer_step_has_weights_and_masks_of_its_own(taught: list[tuple[Tensor, int]]) -> None:
    for seed in (0, 1):
        distiller(seed, outer__networks=2).advance(3)
    starts, masks = zip(*taught, strict=True)
    assert len({tuple(start.tolist()) for start in starts}) == len(set(masks)) == 12


def test_known_starts_teach_in_turn(taught: list[tuple[Tensor, int]]) -> None:
    run = distiller(network__source="fixed", network__starts=3, outer__networks=2)
    run.advance(3)
    assert run.known is not None and len(run.known.unique(dim=0)) == 3
    turns = [[torch.equal(start, known) for known in run.known].index(True) for start, _ in taught]
    assert turns == [0, 1, 2, 0, 1, 2]


def test_dropout_differs_between_outer_steps() -> None:
    settings = {"synthetic.learn": False, "labels.learn": False, "outer.lr": 1e-9, "network.source": "fixed"}
    everything = {"outer.batch": len(blobs().train)}
    losses = []
    run = Distiller(blobs(), f"{__name__}:dropping", DistillConfig.from_flat(QUICK | settings | everything))
    for _ in range(3):
        run.advance()
        losses.append(round(run.loss, 4))
    assert len(set(losses)) == 3


def dropping(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    size = torch.Size(input_shape).numel()
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(size, outputs))


def known(run: Distiller) -> Tensor:
    assert run.known is not None
    return run.known


@pytest.mark.parametrize(
    ("settings", "drawn"),
    [
        ({}, lambda run: run.synthetic().inputs),
        ({"synthetic__init": "real"}, lambda run: run.synthetic().inputs),
        ({"labels__init": "normal"}, lambda run: run.synthetic().labels),
        ({}, lambda run: run.batches.at(0).x),
        ({}, lambda run: run._draws.start(0, 0)),
        ({"network__source": "fixed"}, known),
        ({"outer__window": 2}, lambda run: torch.tensor([run._draws.window(run.step, index).start for index in range(30)])),
    ],
    ids=["inputs", "real inputs", "labels", "real examples", "networks", "known networks", "windows"],
)
def test_the_seed_decides_every_draw(settings: dict[str, Any], drawn: Callable[[Distiller], Tensor]) -> None:
    first, again, other = (drawn(distiller(seed, **settings)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("source", ["random", "fixed"])
def test_the_law_and_its_gain_decide_the_networks_that_teach(source: str, taught: list[tuple[Tensor, int]]) -> None:
    for gain in (0.1, 0.2):
        distiller(network__source=source, network__law="normal", network__gain=gain).advance()
    (narrow, _), (wide, _) = taught
    torch.testing.assert_close(2 * narrow, wide)
    assert narrow[narrow != 0].std().item() == pytest.approx(0.1, rel=0.2)


@pytest.mark.parametrize("augment", [True, False])
def test_real_examples_are_augmented_if_that_is_asked_for(augment: bool) -> None:
    x = torch.randint(256, (60, 1, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    data = Dataset(x, torch.arange(60) % 3, x, torch.arange(60) % 3, augmentation="crop_flip")
    run = Distiller(data, ARCH, DistillConfig.from_flat(QUICK | {"data.augment": augment}))
    stored = {tuple(example.flatten().tolist()) for example in data.normalise(data.train.x)}
    shown = {tuple(example.flatten().tolist()) for example in run.batches.at(0).x}
    assert (shown <= stored) == (not augment)

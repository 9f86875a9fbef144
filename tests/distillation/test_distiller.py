from pathlib import Path

import pytest
import torch

from ddray.distillation import state
from ddray.distillation.config import EngineConfig, OuterConfig
from ddray.distillation.distiller import decay
from ddray.distillation.engine import make_engine
from ddray.errors import Diverged, RequestError

from .problems import distiller

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
        windows.add(run._window(0))
    assert windows == {range(end - 2, end) for end in range(2, 6)}
    whole = distiller(synthetic__epochs=4, outer__unroll_steps=5)
    assert whole._window(0) == range(5)


def test_windows_lie_everywhere_in_the_unroll() -> None:
    run = distiller(synthetic__epochs=4, outer__window=3)
    windows = set()
    for run.step in range(100):
        windows.add(run._window(0))
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

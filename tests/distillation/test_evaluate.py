from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn

from ddray.distillation import evaluate
from ddray.distillation.assess import assess
from ddray.distillation.config import DistillConfig, EngineConfig, NetworkConfig
from ddray.distillation.engine import MIN_STEPS_TO_TRACE, engine_for_scores, make_engine
from ddray.distillation.evaluate import (
    Judge,
    Protocol,
    SplitName,
    judge_all,
    known_starts,
    part_for,
    retrain,
    score_from,
    starts_to_score,
    wilson,
)
from ddray.distillation.inner import InnerStep
from ddray.distillation.labels import sample_classes
from ddray.distillation.real import real_samples
from ddray.distillation.run import finished_set
from ddray.distillation.streams import NETWORKS, NetworkSet, generator, network_generator, seed_of
from ddray.distillation.traced import TracedStep
from ddray.distillation.unroll import advance, train_as_distilled
from ddray.errors import RequestError
from ddray.networks import Network

from .problems import ARCH, QUICK, blobs, distiller, mlp

SPLITS = get_args(SplitName)


def test_the_three_sets_of_networks_are_disjoint_and_the_same_for_every_run() -> None:
    draws = {
        tuple(torch.randn(2, generator=network_generator(networks, index)).tolist())
        for networks, count in NETWORKS.items()
        for index in range(count)
    }
    assert len(draws) == sum(NETWORKS.values()) == 125
    assert torch.equal(
        torch.randn(3, generator=network_generator("B", 4)), torch.randn(3, generator=network_generator("B", 4))
    )


def test_streams_have_no_neighbours() -> None:
    assert len({seed_of(seed, "network", step, 0) for seed in range(20) for step in range(20)}) == 400


def test_a_score_over_networks_is_mean_and_std() -> None:
    score = score_from([0.5, 0.7, 0.9], 100, "as-distilled", "validation")
    assert (score.mean, score.n) == (pytest.approx(0.7), 3)
    assert score.std == pytest.approx(0.2)
    assert score.interval is None
    assert "70.00 ± 20.00 %" in str(score)


def test_wilson_contains_the_share_and_narrows() -> None:
    assert wilson(0.96, 10_000) == pytest.approx((0.95598, 0.96366), abs=1e-4)
    assert wilson(1.0, 10)[1] == 1.0 and wilson(0.0, 10)[0] == 0.0


def test_training_as_distilled_is_every_step_in_its_turn() -> None:
    run = distiller()
    start = run.network.draw("xavier", 1.0, generator("here"))
    step = InnerStep(run.network)
    carry = step.begin(start)
    for t in range(len(run.order)):
        carry = advance(step, carry, run.synthetic_now(), run.order, 0, range(t, t + 1))
    assert torch.equal(train_as_distilled(step, start, run.synthetic_now(), run.order), carry[0])


@pytest.mark.parametrize("split", SPLITS)
def test_judging_counts(split: SplitName) -> None:
    run, data = distiller(), blobs()
    judge, examples = Judge(data, split), data.split(split)
    weights = train_as_distilled(InnerStep(run.network), run._draws.start(0, 0), run.synthetic_now(), run.order)
    logits = run.network(weights, data.normalise(examples.x))
    right = (logits.argmax(-1) == examples.y).float().mean().item()
    assert judge.accuracy(run.network, weights) == pytest.approx(right)
    assert judge.accuracy(run.network, weights * float("nan")) == 0.0


@pytest.mark.parametrize("split", SPLITS)
def test_a_judge_has_every_example_of_its_split_with_its_class(split: SplitName) -> None:
    data = blobs()
    judge, examples = Judge(data, split), data.split(split)
    pairs = torch.cat([judge.x.flatten(1), judge.y[:, None]], 1)
    expected = torch.cat([data.normalise(examples.x).flatten(1), examples.y[:, None]], 1)
    assert judge.split == split
    assert sorted(pairs.tolist()) == sorted(expected.tolist())


@pytest.mark.parametrize("split", SPLITS)
def test_networks_side_by_side_score_as_one_by_one(split: SplitName) -> None:
    run, data = distiller(), blobs()
    starts = list(starts_to_score(run.network, run.config.network, None, "A", 5))
    alone, together = (
        Judge(data, split).score(
            make_engine(run.network, None, EngineConfig(networks=networks)), starts, run.synthetic_now(), run.order
        )
        for networks in ("loop", "batch")
    )
    assert together.accuracies == alone.accuracies


@pytest.mark.parametrize("networks", ["loop", "batch"])
def test_many_networks_of_a_score_are_trained_as_the_set_was_distilled(networks: str) -> None:
    run = distiller()
    record = EngineConfig(device="cpu", compile="max", layout="plain", networks=networks).model_dump()
    engine = engine_for_scores(run.network, run.config.inner, record, steps=MIN_STEPS_TO_TRACE)
    assert type(engine.step) is TracedStep and not engine.step.compiled and engine.step.layout == "plain"
    assert (engine.batched_step is not None) == (networks == "batch")
    starts = list(starts_to_score(run.network, run.config.network, None, "C", 3))
    found, plain = (
        Judge(blobs(), "validation").score(e, starts, run.synthetic_now(), run.order)
        for e in (engine, make_engine(run.network, run.config.inner))
    )
    assert found.accuracies == plain.accuracies


@pytest.mark.parametrize("recorded", [{}, {"compile": "off"}, {"compile": "auto"}, {"compile": "trace", "of old": 1}])
def test_few_networks_of_a_score_and_unknown_records_are_trained_as_written(recorded: dict[str, object]) -> None:
    run = distiller()
    assert type(engine_for_scores(run.network, run.config.inner, recorded, MIN_STEPS_TO_TRACE - 1).step) is InnerStep
    traced = type(engine_for_scores(run.network, run.config.inner, recorded, MIN_STEPS_TO_TRACE).step) is TracedStep
    assert traced == (recorded.get("compile") == "trace")


def test_kernels_that_another_device_chose_are_not_taken_and_a_record_of_nothing_known_is_refused() -> None:
    run = distiller()
    record = {"device": "cuda:1", "compile": "trace", "layout": "PPB", "networks": "loop"}
    assert engine_for_scores(run.network, run.config.inner, record, MIN_STEPS_TO_TRACE).step.layout == "blocked"
    with pytest.raises(RequestError, match="'fast' is refused"):
        engine_for_scores(run.network, run.config.inner, {"compile": "fast"}, MIN_STEPS_TO_TRACE)


def test_networks_that_drop_at_random_are_told_by_a_score_again_and_each_drops_its_own() -> None:
    config = DistillConfig.from_flat(QUICK)
    network = Network(nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 3)))
    run = distiller()
    judge, start = Judge(run.dataset, "test"), network.draw("xavier", 1.0, generator("here"))
    engine = make_engine(network, config.inner)
    found = [
        judge_all([judge], engine, [start] * 3, run.synthetic_now(), run.order, first=first)[0].accuracies
        for first in (0, 0, 1)
    ]
    assert found[0] == found[1] and len(set(found[0])) > 1
    assert found[2][:2] == found[0][1:]


def test_two_splits_are_judged_by_the_same_networks() -> None:
    run, data = distiller(), blobs()
    judges = [Judge(data, "validation"), Judge(data, "test")]
    starts = list(starts_to_score(run.network, run.config.network, None, "A", 3))
    both = judge_all(judges, make_engine(run.network), starts, run.synthetic_now(), run.order)
    assert [score.split for score in both] == ["validation", "test"]
    alone = judges[1].score(make_engine(run.network), starts, run.synthetic_now(), run.order)
    assert both[1].accuracies == alone.accuracies


@pytest.mark.parametrize("batch", [4, 256])
def test_retraining_is_torchs_sgd_on_the_module_itself(batch: int) -> None:
    run = distiller()
    start, synthetic, module = run._draws.start(0, 0), run.synthetic_now(), mlp((1, 4, 4), 3)
    found = retrain(run.network, start, synthetic, epochs=6, lr=0.05, batch=batch)
    nn.utils.vector_to_parameters(start, module.parameters())
    inputs, labels = synthetic.inputs.flatten(0, 1), synthetic.labels.flatten(0, 1)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for epoch in range(6):
        optimiser.param_groups[0]["lr"] = 0.05 if epoch < 3 else 0.005
        for chosen in torch.randperm(len(inputs), generator=generator("retrain", epoch)).split(batch):
            optimiser.zero_grad()
            nn.functional.cross_entropy(module(inputs[chosen]), labels[chosen]).backward()
            optimiser.step()
    expected = nn.utils.parameters_to_vector(module.parameters()).detach()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_training_as_distilled_is_torchs_sgd_on_the_module_itself() -> None:
    run = distiller(synthetic__lr=0.3)
    start, module = run._draws.start(0, 0), mlp((1, 4, 4), 3)
    synthetic = replace(run.synthetic_now(), rates=torch.tensor([0.3, 0.1, 0.2, 0.05]))
    found = train_as_distilled(InnerStep(run.network), start, synthetic, run.order)
    nn.utils.vector_to_parameters(start, module.parameters())
    optimiser = torch.optim.SGD(module.parameters(), lr=1.0)
    for rate, s in zip(synthetic.rates.tolist(), (0, 1, 0, 1), strict=True):
        optimiser.param_groups[0]["lr"] = rate
        optimiser.zero_grad()
        nn.functional.cross_entropy(module(synthetic.inputs[s]), synthetic.labels[s]).backward()
        optimiser.step()
    expected = nn.utils.parameters_to_vector(module.parameters()).detach()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_retraining_learns_from_real_samples_and_is_repeatable() -> None:
    run, data = distiller(), blobs()
    classes = sample_classes((0, 1, 2), 1)
    real = run.synthetic_now()
    real = type(real)(
        real_samples(data, classes, 2, generator("draw")), torch.eye(3).expand(2, 3, 3).contiguous(), real.rates
    )
    start = run.network.draw("xavier", 1.0, generator("here"))
    weights = retrain(run.network, start, real, epochs=40)
    assert Judge(data, "validation").accuracy(run.network, weights) > 0.9
    assert torch.equal(weights, retrain(run.network, start, real, epochs=40))


def test_networks_that_do_not_stay_finite_are_told_as_diverged() -> None:
    run, data = distiller(), blobs()
    broken = replace(run.synthetic_now(), rates=torch.full((len(run.order),), 1e30))
    starts = run._draws.start(0, 0).expand(3, -1).unbind()
    score = Judge(data, "validation").score(make_engine(run.network), starts, broken, run.order)
    assert (score.mean, score.n, score.diverged) == (0.0, 3, 3) and "3 of 3 diverged" in str(score)
    assert run.score().diverged == 0


@pytest.fixture
def torchs_own_arithmetic() -> Iterator[None]:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic
    yield
    cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic = before


@pytest.mark.parametrize("protocol", ["as-distilled", "retrain"])
@pytest.mark.parametrize("tf32", [False, True])
def test_a_score_is_taken_in_its_engines_arithmetic(
    protocol: Protocol, tf32: bool, torchs_own_arithmetic: None
) -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = not tf32
    torch.backends.cudnn.deterministic = False
    run = distiller()
    engine = replace(make_engine(run.network), tf32=tf32)  # as on a GPU
    Judge(blobs(), "validation").score(engine, [run._draws.start(0, 0)], run.synthetic_now(), run.order, protocol)
    assert torch.backends.cudnn.allow_tf32 is torch.backends.cuda.matmul.allow_tf32 is tf32
    assert torch.backends.cudnn.deterministic


@pytest.mark.parametrize("known", [False, True])
def test_the_law_and_its_gain_decide_the_networks_of_a_score(known: bool) -> None:
    network, drawn = distiller().network, []
    for gain in (0.1, 0.2):
        config = NetworkConfig(source="fixed" if known else "random", law="normal", gain=gain)
        drawn.append(next(iter(starts_to_score(network, config, known_starts(network, config, 0), "C", 1))))
    narrow, wide = drawn
    torch.testing.assert_close(2 * narrow, wide)
    assert narrow[narrow != 0].std().item() == pytest.approx(0.1, rel=0.2)


def test_known_starts_differ_from_each_other_and_follow_from_the_seed() -> None:
    network, config = distiller().network, NetworkConfig(source="fixed", starts=3)
    first, again, other = (known_starts(network, config, seed) for seed in (1, 1, 2))
    assert first is not None and again is not None and other is not None
    assert torch.equal(first, again) and len(torch.cat([first, other]).unique(dim=0)) == 6


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The evaluation set and the number of every network that a score draws."""
    seen: list[tuple[str, int]] = []

    def watched(networks: NetworkSet, index: int) -> torch.Generator:
        seen.append((networks, index))
        return network_generator(networks, index)

    monkeypatch.setattr(evaluate, "network_generator", watched)
    monkeypatch.setattr(evaluate, "retrain", lambda _, start, *__: start)
    return seen


def test_looks_are_with_networks_a_the_finished_score_with_b_and_all_after_with_c(
    drawn: list[tuple[str, int]], tmp_path: Path
) -> None:
    def networks_of(score: Callable[[], object]) -> list[tuple[str, int]]:
        drawn.clear()
        score()
        return list(drawn)

    def numbered(networks: str, count: int) -> list[tuple[str, int]]:
        return [(networks, index) for index in range(count)]

    run, data = distiller(), blobs()
    assert networks_of(run.score) == numbered("A", 5)
    assert networks_of(lambda: finished_set(run)) == numbered("B", 20)
    made = finished_set(run)
    assert networks_of(lambda: made.evaluate(3, dataset=data, network=mlp((1, 4, 4), 3))) == numbered("C", 3)
    place = made.save(tmp_path / "set")
    look = partial(assess, place, arch=ARCH, nets=7, dataset=data, device="cpu")
    assert networks_of(partial(look, baselines=False)) == numbered("C", 7) + numbered("C", 5)
    assert {networks for networks, _ in networks_of(look)} == {"A", "C"}


def test_a_look_and_the_finished_score_are_of_the_validation_split() -> None:
    run = distiller()
    scores = (run.score(), *finished_set(run).manifest.scores)
    assert [(score.split, score.examples) for score in scores] == [("validation", len(run.dataset.validation))] * 2


@pytest.mark.parametrize("split", SPLITS)
def test_a_set_is_scored_on_the_split_that_is_asked_for_by_networks_trained_on_it(split: SplitName, tmp_path: Path) -> None:
    run, data = distiller(network__law="normal", network__gain=0.5), blobs()
    made, examples = finished_set(run), data.split(split)
    expected = []
    for index in range(3):
        start = run.network.draw("normal", 0.5, network_generator("C", index))
        weights = train_as_distilled(InnerStep(run.network), start, run.synthetic_now(), run.order)
        logits = run.network(weights, data.normalise(examples.x))
        expected.append((logits.argmax(-1) == examples.y).float().mean().item())
    found = [made.evaluate(3, split, dataset=data, network=mlp((1, 4, 4), 3))]
    assessed = assess(made.save(tmp_path / "set"), arch=ARCH, nets=3, split=split, dataset=data, baselines=False, device="cpu")
    found += [score for score in assessed.scores if score.protocol == "as-distilled"]
    assert [(score.split, score.examples) for score in found] == [(split, len(examples))] * 2
    for score in found:
        assert score.accuracies == pytest.approx(expected)


def test_of_known_networks_one_half_of_the_examples_chooses_and_the_other_tells() -> None:
    whole, choosing, telling = (Judge(blobs(), "validation", part) for part in ("whole", "choosing", "telling"))
    assert torch.equal(torch.stack([choosing.x[:9], telling.x[:9]], 1).flatten(0, 1), whole.x[:18])
    assert len(choosing.y) + len(telling.y) == len(whole.y) and len(choosing.y) - len(telling.y) in (0, 1)
    assert [part_for("validation", networks, known=True) for networks in ("A", "B", "C")] == ["choosing", "telling", "telling"]
    assert {part_for("validation", networks, known=False) for networks in ("A", "B", "C")} == {"whole"}
    assert {part_for("test", networks, known=True) for networks in ("A", "B", "C")} == {"whole"}


@pytest.mark.parametrize("source", ["random", "fixed"])
def test_what_is_told_of_a_set_is_not_what_chose_it(source: str, tmp_path: Path) -> None:
    run = distiller(network__source=source)
    run.advance(2)
    look, made = run.score(), finished_set(run)
    place = made.save(tmp_path / "set")
    told = made.evaluate(nets=None, dataset=blobs(), network=mlp((1, 4, 4), 3))
    assessed = assess(place, arch=ARCH, dataset=blobs(), baselines=False).scores[0]
    whole = len(blobs().split("validation").y)
    asked = {score.examples for score in (made.manifest.scores[0], told, assessed)}
    assert (look.examples, asked) == ((whole, {whole}) if source == "random" else (whole - whole // 2, {whole // 2}))
    assert assess(place, arch=ARCH, dataset=blobs(), split="test", baselines=False).scores[0].examples == len(blobs().test.y)

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

from ddray.distillation.baselines import KINDS, RATES, choose, compare
from ddray.distillation.config import DistillConfig, EngineConfig
from ddray.distillation.engine import QUICK as QUICK_STEPS
from ddray.distillation.engine import engine_for_scores, make_engine
from ddray.distillation.evaluate import (
    Judge,
    Protocol,
    judge_all,
    retrain,
    score_from,
    starts_to_score,
    wilson,
)
from ddray.distillation.inner import InnerStep
from ddray.distillation.labels import sample_classes
from ddray.distillation.real import RealBatches, class_averages, real_samples
from ddray.distillation.streams import NETWORKS, generator, network_generator, seed_of
from ddray.distillation.traced import TracedStep
from ddray.distillation.unroll import advance, train_as_distilled
from ddray.errors import RequestError
from ddray.networks import Network

from .problems import QUICK, blobs, distiller


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


def test_judging_counts() -> None:
    run, data = distiller(), blobs()
    judge = Judge(data, "validation")
    weights = run.network.draw("xavier", 1.0, generator("here"))
    logits = run.network(weights, data.normalise(data.validation.x))
    assert judge.accuracy(run.network, weights) == pytest.approx(
        (logits.argmax(-1) == data.validation.y).float().mean().item()
    )
    assert judge.accuracy(run.network, weights * float("nan")) == 0.0


def test_networks_side_by_side_score_as_one_by_one() -> None:
    run, data = distiller(), blobs()
    starts = list(starts_to_score(run.network, run.config.network, None, "A", 5))
    alone, together = (
        Judge(data, "validation").score(
            make_engine(run.network, None, EngineConfig(networks=networks)), starts, run.synthetic_now(), run.order
        )
        for networks in ("loop", "batch")
    )
    assert together.accuracies == alone.accuracies


@pytest.mark.parametrize("networks", ["loop", "batch"])
def test_many_networks_of_a_score_are_trained_as_the_set_was_distilled(networks: str) -> None:
    run = distiller()
    record = EngineConfig(device="cpu", compile="max", layout="plain", networks=networks).model_dump()
    engine = engine_for_scores(run.network, run.config.inner, record, steps=QUICK_STEPS)
    assert type(engine.step) is TracedStep and not engine.step.compiled and engine.step.layout == "plain"
    assert (engine.several is not None) == (networks == "batch")
    starts = list(starts_to_score(run.network, run.config.network, None, "C", 3))
    found, plain = (
        Judge(blobs(), "validation").score(e, starts, run.synthetic_now(), run.order)
        for e in (engine, make_engine(run.network, run.config.inner))
    )
    assert found.accuracies == plain.accuracies


@pytest.mark.parametrize("recorded", [{}, {"compile": "off"}, {"compile": "auto"}, {"compile": "trace", "of old": 1}])
def test_few_networks_of_a_score_and_unknown_records_are_trained_as_written(recorded: dict[str, object]) -> None:
    run = distiller()
    assert type(engine_for_scores(run.network, run.config.inner, recorded, QUICK_STEPS - 1).step) is InnerStep
    traced = type(engine_for_scores(run.network, run.config.inner, recorded, QUICK_STEPS).step) is TracedStep
    assert traced == (recorded.get("compile") == "trace")


def test_kernels_that_another_device_chose_are_not_taken_and_a_record_of_nothing_known_is_refused() -> None:
    run = distiller()
    record = {"device": "cuda:1", "compile": "trace", "layout": "PPB", "networks": "loop"}
    assert engine_for_scores(run.network, run.config.inner, record, QUICK_STEPS).step.layout == "blocked"
    with pytest.raises(RequestError, match="'fast' is refused"):
        engine_for_scores(run.network, run.config.inner, {"compile": "fast"}, QUICK_STEPS)


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


@pytest.mark.parametrize("classes", [(0, 1, 2), (2, 0)])
@pytest.mark.parametrize("per_class", [1, 2])
def test_real_samples_are_of_the_class_that_the_label_names(classes: tuple[int, ...], per_class: int) -> None:
    data, wanted = blobs(), sample_classes(classes, per_class)
    samples = real_samples(data, wanted, 3, generator("draw"))
    assert samples.shape == (3, len(wanted), 1, 4, 4)
    everything = data.normalise(data.train.x)
    chosen = [[int(torch.nonzero((everything == x).flatten(1).all(1))[0]) for x in step] for step in samples]
    assert [[int(data.train.y[i]) for i in step] for step in chosen] == [wanted.tolist()] * 3
    assert len({i for step in chosen for i in step}) == 3 * len(wanted)


def test_a_class_with_too_few_examples_begins_again() -> None:
    data = blobs(members=4)
    samples = real_samples(data, sample_classes((1,), 5), 2, generator("draw"))
    assert samples.shape[:2] == (2, 5)


def test_averages_are_means_of_their_class() -> None:
    data = blobs()
    averages = class_averages(data, sample_classes((2, 1), 1), 2)
    torch.testing.assert_close(averages[1, 0], data.normalise(data.train.x[data.train.y == 2]).mean(0))


def test_batches_cover_an_epoch_without_repeats_and_do_not_depend_on_the_past() -> None:
    data = blobs()
    batches = RealBatches(data, 40, augment=False, seed=3)
    per_epoch = len(data.train) // 40
    seen = torch.cat([batches.at(step).x for step in range(per_epoch)]).flatten(1)
    assert len(seen.unique(dim=0)) == 40 * per_epoch
    assert torch.equal(RealBatches(data, 40, augment=False, seed=3).at(7).x, batches.at(7).x)
    assert not torch.equal(batches.at(0).x, batches.at(per_epoch).x)


def test_baselines_choose_their_rate_on_validation_and_report_all_splits() -> None:
    run, data = distiller(), blobs()
    judges = [Judge(data, "validation"), Judge(data, "test")]
    results = compare(judges, data, run.config, make_engine(run.network), 3, None, 4)
    assert set(results) == set(KINDS)
    for scores in results.values():
        assert [s.split for s in scores] == ["validation", "test"]
        assert scores[0].n == 4
    chosen = choose("average", judges[0], data, run.config, make_engine(run.network), 3, None)
    assert chosen.rate in RATES
    assert chosen.labels.argmax(-1).tolist() == [[0, 1, 2]] * 2


def test_networks_that_do_not_stay_finite_are_told_as_diverged() -> None:
    run, data = distiller(), blobs()
    broken = replace(run.synthetic_now(), rates=torch.full((len(run.order),), 1e30))
    starts = run._start(0, 0).expand(3, -1).unbind()
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
    Judge(blobs(), "validation").score(engine, [run._start(0, 0)], run.synthetic_now(), run.order, protocol)
    assert torch.backends.cudnn.allow_tf32 is torch.backends.cuda.matmul.allow_tf32 is tf32
    assert torch.backends.cudnn.deterministic

"""What real examples of the same number achieve, under the same schedule, through the same code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ddray.data import Dataset
from ddray.distillation.config import DistillConfig
from ddray.distillation.engine import Engine
from ddray.distillation.evaluate import Judge, Score, constant_rates, judge_all, part_for, score_from, starts_to_score
from ddray.distillation.labels import one_hot, sample_classes
from ddray.distillation.real import class_averages, real_samples
from ddray.distillation.streams import NETWORKS, NetworkSet, generator
from ddray.distillation.unroll import Synthetic

Kind = Literal["random", "average"]
KINDS: tuple[Kind, ...] = ("random", "average")
RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Learning rates to choose from, on the validation split."""
DRAWS = 5
"""How many different draws of random examples the networks of a score are spread over."""


@dataclass(frozen=True)
class Baseline:
    """Real examples in place of synthetic ones, each of a set's S · n samples of the class that the set has there.

    Attributes:
        kind: "random" examples of the training split, or the "average" of each class.
        draws: sets of inputs [S, n, ...]; network i is trained on draw i modulo their number.
        labels: [S, n, width] one-hot.
        rate: the learning rate of every step, chosen on the validation split with networks A.

    """

    kind: Kind
    draws: tuple[Tensor, ...]
    labels: Tensor
    rate: float


def choose(
    kind: Kind, validation: Judge, dataset: Dataset, config: DistillConfig, engine: Engine, outputs: int,
    known: Tensor | None, order: Sequence[int],
) -> Baseline:  # fmt: skip
    """Draw the real examples and choose their learning rate on the validation split, with networks A."""
    classes = sample_classes(config.class_ids(dataset.classes), config.synthetic.samples_per_class)
    steps = config.synthetic.steps
    if kind == "random":
        count = DRAWS if known is None else 1
        draws = tuple(real_samples(dataset, classes, steps, generator("baseline", i)) for i in range(count))
    else:
        draws = (class_averages(dataset, classes, steps),)
    labels = one_hot(classes, outputs).expand(steps, -1, -1).to(draws[0].device)
    candidates = [Baseline(kind, draws, labels, rate) for rate in RATES]
    return max(candidates, key=lambda b: score(b, [validation], config, engine, known, "A", NETWORKS["A"], order)[0].mean)


def score(
    baseline: Baseline, judges: Sequence[Judge], config: DistillConfig, engine: Engine, known: Tensor | None,
    networks: NetworkSet, n: int, order: Sequence[int],
) -> tuple[Score, ...]:  # fmt: skip
    """Score real examples on several splits, with networks trained on minibatch `order[t]` of them at step t."""
    rates = constant_rates(baseline.rate, len(order), baseline.labels)
    accuracies: list[list[float]] = [[] for _ in judges]
    diverged = 0
    for i, start in enumerate(starts_to_score(engine.network, config.network, known, networks, n)):
        real = Synthetic(baseline.draws[i % len(baseline.draws)], baseline.labels, rates)
        scores = judge_all(judges, engine, [start], real, order, first=i)
        diverged += scores[0].diverged
        for found, one in zip(accuracies, scores, strict=True):
            found.append(one.mean)
    return tuple(
        score_from(found, len(judge.y), "as-distilled", judge.split, diverged)
        for found, judge in zip(accuracies, judges, strict=True)
    )


def compare(
    judges: Sequence[Judge], dataset: Dataset, config: DistillConfig, engine: Engine, outputs: int,
    known: Tensor | None, n: int, order: Sequence[int],
) -> dict[str, tuple[Score, ...]]:  # fmt: skip
    """The scores of every kind of baseline on several splits, by n networks of set C, trained in a set's step order."""
    choosing = Judge(dataset, "validation", part_for("validation", "A", known=known is not None))
    results: dict[str, tuple[Score, ...]] = {}
    for kind in KINDS:
        baseline = choose(kind, choosing, dataset, config, engine, outputs, known, order)
        results[kind] = score(baseline, judges, config, engine, known, "C", n, order)
    return results

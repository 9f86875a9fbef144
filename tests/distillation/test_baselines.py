"""Real examples in place of synthetic ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from ddray.data import Dataset
from ddray.distillation import baselines
from ddray.distillation.baselines import DRAWS, KINDS, RATES, Kind, choose, compare
from ddray.distillation.engine import Engine, make_engine
from ddray.distillation.evaluate import Judge, Part, Score, SplitName, score_from, starts_to_score
from ddray.distillation.labels import sample_classes
from ddray.distillation.real import class_averages
from ddray.distillation.streams import NETWORKS, NetworkSet
from ddray.distillation.unroll import Synthetic

from .problems import blobs, distiller

ORDER = (1, 0, 1)


@dataclass(frozen=True)
class Trained:
    """A network that a score asked for: its number, what it began from and was trained on, and who was to judge it."""

    number: int
    start: Tensor
    real: Synthetic
    order: tuple[int, ...]
    splits: tuple[str, ...]


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], list[Trained]]:
    """Networks are noted in place of trained; their accuracies have the highest mean at the rate that is given."""

    def best_at(rate: float) -> list[Trained]:
        seen: list[Trained] = []

        def noted(
            judges: Sequence[Judge], _: Engine, starts: Iterable[Tensor], real: Synthetic, order: Sequence[int], *, first: int
        ) -> tuple[Score, ...]:
            (start,) = starts
            seen.append(Trained(first, start, real, tuple(order), tuple(judge.split for judge in judges)))
            best = real.rates.tolist() == pytest.approx([rate] * len(order))
            accuracy = 0.6 if best else float(first % 2 == 0)  # of five networks 3/5 and no more: then less
            return tuple(score_from([accuracy - 0.05 * (not best)], 10, "as-distilled", judge.split) for judge in judges)

        monkeypatch.setattr(baselines, "judge_all", noted)
        return seen

    return best_at


def check_networks(seen: Sequence[Trained], networks: NetworkSet) -> None:
    """They are those of an evaluation set, each once, in turn."""
    run = distiller()
    starts = starts_to_score(run.network, run.config.network, None, networks, len(seen))
    for number, (found, start) in enumerate(zip(seen, starts, strict=True)):
        assert found.number == number and torch.equal(found.start, start)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", RATES)
def test_the_rate_is_the_one_with_the_highest_mean_on_validation_by_networks_a(
    kind: Kind, rate: float, judged: Callable[[float], list[Trained]]
) -> None:
    run, data, seen = distiller(), blobs(), judged(rate)
    chosen = choose(kind, Judge(data, "validation"), data, run.config, make_engine(run.network), 3, None, ORDER)
    assert chosen.rate == rate
    assert {(found.splits, found.order) for found in seen} == {(("validation",), ORDER)}
    for candidate in range(len(RATES)):
        check_networks(seen[NETWORKS["A"] * candidate :][: NETWORKS["A"]], "A")


@pytest.mark.parametrize("splits", [("validation", "test"), ("test", "validation"), ("test",)], ids=" ".join)
@pytest.mark.parametrize("kind", KINDS)
def test_a_baseline_is_scored_by_networks_c_on_all_its_draws_at_the_rate_for_validation(
    kind: Kind, splits: tuple[SplitName, ...], judged: Callable[[float], list[Trained]]
) -> None:
    run, data, seen = distiller(), blobs(), judged(0.03)
    judges = [Judge(data, split) for split in splits]
    found = compare(judges, data, run.config, make_engine(run.network), 3, None, 7, ORDER)
    assert [(score.split, score.n) for score in found[kind]] == [(split, 7) for split in splits]
    candidates = NETWORKS["A"] * len(RATES)
    own = seen[(candidates + 7) * KINDS.index(kind) :][: candidates + 7]
    chosen, scored = own[:candidates], own[candidates:]
    assert {one.splits for one in chosen} == {("validation",)} and {one.splits for one in scored} == {splits}
    check_networks(scored, "C")
    for one in scored:
        assert one.real.rates.tolist() == pytest.approx([0.03] * 3)
        assert torch.equal(one.real.labels, torch.eye(3).expand(2, 3, 3))
        assert torch.equal(one.real.inputs, scored[one.number % DRAWS].real.inputs)
    draws = torch.stack([one.real.inputs for one in scored])
    assert len(draws.unique(dim=0)) == (DRAWS if kind == "random" else 1)
    if kind == "average":
        assert torch.equal(draws[0], class_averages(data, sample_classes((0, 1, 2), 1), 2))


def test_a_known_network_is_compared_with_one_draw(judged: Callable[[float], list[Trained]]) -> None:
    run, data, seen = distiller(network__source="fixed", network__starts=2), blobs(), judged(0.03)
    chosen = choose("random", Judge(data, "validation"), data, run.config, make_engine(run.network), 3, run.known, ORDER)
    assert len(chosen.draws) == 1 and run.known is not None
    assert [one.number for one in seen] == [0, 1] * len(RATES)
    assert all(torch.equal(one.start, run.known[one.number]) for one in seen)


def test_baselines_are_reported_on_all_splits() -> None:
    run, data = distiller(), blobs()
    judges = [Judge(data, "validation"), Judge(data, "test")]
    results = compare(judges, data, run.config, make_engine(run.network), 3, None, 4, ORDER)
    assert set(results) == set(KINDS)
    for found in results.values():
        assert [(score.split, score.n) for score in found] == [("validation", 4), ("test", 4)]
        assert [score.examples for score in found] == [len(data.validation), len(data.test)]


@pytest.mark.parametrize(("source", "part"), [("random", "whole"), ("fixed", "choosing")])
def test_a_rate_is_chosen_on_the_part_of_validation_that_chooses(
    source: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, parts = distiller(network__source=source), []

    def noted(dataset: Dataset, split: SplitName, part: Part) -> Judge:
        parts.append((split, part))
        return Judge(dataset, split, part)

    monkeypatch.setattr(baselines, "Judge", noted)
    compare([Judge(blobs(), "test")], blobs(), run.config, make_engine(run.network), 3, run.known, 1, ORDER)
    assert parts == [("validation", part)]

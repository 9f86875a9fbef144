"""A sweep's winner: confirmed with networks it was not chosen by, compared with real samples, tested once, registered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from optuna.trial import FrozenTrial

from ddray.data import RealData
from ddray.distillation.assess import scores_of
from ddray.distillation.baselines import compare
from ddray.distillation.distilled_set import DistilledSet, load
from ddray.distillation.engine import engine_for_scores
from ddray.distillation.evaluate import Judge, SplitName, part_for
from ddray.distillation.problem import check_problem
from ddray.distillation.streams import NETWORKS
from ddray.errors import RequestError
from ddray.sweep.execute import checkpoints
from ddray.sweep.project import Projection
from ddray.sweep.study import SweepStudy
from ddray.sweep.trial import SET
from ddray.tracking.catalog import Registered

WINNER = "best"


@dataclass(frozen=True)
class Outcome:
    """What a sweep came to.

    Attributes:
        trials: every trial that was started.
        left: how many of those asked for have yet to end, because the time was over.
        winner: the best finished trial, None if no trial was finished.
        distilled: the winner's set, with its confirmed scores and the baselines in its manifest.
        directory: where it was saved.
        picture: lies beside it; None where inputs are neither text nor images of one or three channels.
        registered: its place in the model registry.

    """

    sweep: str
    tracking_uri: str
    trials: Sequence[FrozenTrial]
    left: int
    winner: FrozenTrial | None
    distilled: DistilledSet | None
    directory: Path | None
    picture: Path | None
    registered: Registered | None


def confirm(
    study: SweepStudy, directory: Path, dataset: RealData, projection: Projection, tracking_uri: str, target: int
) -> Outcome:
    """Confirm and register the winner of a sweep of `target` trials; done before, it is not done (nor tested) again."""
    trials, winner, left = study.counted(), study.best(), study.left(target)
    if winner is None:
        projection.close("interrupted" if left else "failed")
        return Outcome(directory.name, tracking_uri, trials, left, None, None, None, None, None)
    place, found = directory / WINNER, _finished_set(directory, winner.number)
    distilled = _confirmed_before(place, found)
    if distilled is None:
        distilled = measure(found, dataset)
        distilled.save(place)
    study.study.set_user_attr("winner", winner.number)
    suffix = distilled.preview_suffix
    picture = None if suffix is None else distilled.preview(directory / f"{WINNER}{suffix}")
    registered = projection.register(winner.number, place)
    named = {"as-distilled": "", "retrain": "_retrain", "decoded": "_decoded"}
    projection.close("finished", {f"{s.split}_accuracy{named[s.protocol]}": s.mean for s in distilled.manifest.standing()})
    return Outcome(directory.name, tracking_uri, trials, left, winner, distilled, place, picture, registered)


def measure(distilled: DistilledSet, dataset: RealData) -> DistilledSet:
    """The set with its confirmed scores on the validation and test splits, by networks C, and those of real samples.

    This is the one look at the test split.
    """
    moved = distilled.to(_scoring_device(str(distilled.manifest.engine["device"])))
    config, known = distilled.manifest.distill_config, moved.known
    # By the sweep's own search space, which may name a network that is not ours.
    real = moved.real_data(dataset).to(moved.inputs.device)
    network, outputs = check_problem(real, distilled.manifest.network.arch, config)
    network.to(moved.inputs.device)
    count = NETWORKS["C"] if known is None else len(known)
    engine = engine_for_scores(network, config.inner, distilled.manifest.engine, count * config.inner_steps)
    splits: tuple[SplitName, ...] = ("validation", "test")
    judges = [Judge(real, split, part_for(split, "C", known=known is not None)) for split in splits]
    scores = scores_of(moved, judges, engine, count, *moved.schedule())
    baselines = compare(judges, real, config, engine, outputs, known, count, moved.manifest.step_order)
    manifest = distilled.manifest.model_copy(
        update={"scores": (*distilled.manifest.scores, *scores), "baselines": baselines}
    )
    return replace(distilled, manifest=manifest)


def _scoring_device(recorded: str) -> str:
    """Where a trial of this sweep was computed, if the driver has such a device too."""
    here = recorded.startswith("cuda") and (torch.device(recorded).index or 0) < torch.cuda.device_count()
    return recorded if here else "cpu"


def _finished_set(directory: Path, number: int) -> DistilledSet:
    places = [path / SET for path in checkpoints(directory, number)]
    if not places:
        raise RequestError("--resume", directory.name, f"the set of its winner, trial {number}, is no longer there")
    return load(places[0])


def _confirmed_before(place: Path, found: DistilledSet) -> DistilledSet | None:
    """The set that was confirmed already, if it is this one: the test split is not looked at again."""
    if not place.is_dir():
        return None
    kept = load(place)
    ours, theirs = ((s.inputs, s.labels, s.rates) for s in (kept, found))
    same = all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    return kept if same and kept.manifest.test_looks() else None

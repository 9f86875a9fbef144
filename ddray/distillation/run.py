"""One distillation from beginning to end, in this process."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddray.data import RealData
from ddray.data import load as load_dataset
from ddray.distillation import state
from ddray.distillation.choose import settle
from ddray.distillation.config import DistillConfig, EngineConfig
from ddray.distillation.distilled_set import DistilledSet, vectors_of
from ddray.distillation.distiller import Distiller
from ddray.distillation.engine import resolve_device
from ddray.distillation.evaluate import Score
from ddray.distillation.keys import parse
from ddray.distillation.manifest import (
    DatasetRecord,
    Manifest,
    NetworkRecord,
    TextRecord,
    installed_versions,
    label_kind,
)
from ddray.distillation.preflight import check_memory
from ddray.distillation.set_files import read, refuse_foreign
from ddray.errors import Diverged, RequestError, whole_number
from ddray.files import writable_folder


@dataclass(frozen=True)
class Progress:
    """What a running distillation reports after every look at the validation split."""

    step: int
    steps: int
    loss: float
    score: Score
    best: float


def distill(
    dataset: str | Path | RealData,
    arch: str,
    config: Mapping[str, Any] | DistillConfig | None = None,
    *,
    seed: int = 0,
    data: Path | str | None = None,
    engine: EngineConfig | Mapping[str, Any] | None = None,
    checkpoint: Path | str | None = None,
    save_to: Path | str | None = None,
    report: Callable[[Progress], None] | None = None,
) -> DistilledSet:
    """Distil a dataset for an architecture: `ddray.distill("MNIST", "LeNet", {"synthetic.steps": 1}, seed=0)`.

    The set is the best of those scored every `outer.score_every` steps on the validation split with networks A; the score
    in its manifest is a new one, with networks B.

    Args:
        dataset: a name that `ddray.data.load` knows, a Dataset, or a Corpus of texts.
        arch: an architecture's name or dotted path.
        config: dotted keys with their values, or a whole configuration.
        seed: decides everything random.
        data: where to look for the dataset's files.
        engine: how to compute, a record or its keys with their values; what it leaves open is settled first, by
            `ddray.distillation.choose`.
        checkpoint: a file to resume from if it is there, and to save to after every look; removed at the end, when the set is
            saved.
        save_to: a directory to save the set in; a set of the same distillation that lies there is replaced.
        report: called after every look.

    Raises:
        RequestError: a setting that is not allowed, or that the dataset or network cannot take; a place that cannot be written
            to, or holds something else.
        Diverged: a number stopped being finite before any set was seen that trains networks; after one, the best is
            returned, with a RuntimeWarning.

    """
    seed = whole_number("seed", seed)
    checkpoint, place = (None if path is None else Path(path) for path in (checkpoint, save_to))
    settings = config if isinstance(config, DistillConfig) else DistillConfig.from_flat(config or {})
    if not isinstance(engine, EngineConfig):
        engine = parse(EngineConfig, engine or {}, "engine.")
    if isinstance(dataset, str | Path):
        dataset = load_dataset(dataset, data)
    with ExitStack() as folders:
        if place is not None:
            _refuse_to_lose(place, dataset, arch, settings, seed)
            folders.enter_context(writable_folder(place.absolute().parent, "--out"))
        if checkpoint is not None:
            folders.enter_context(writable_folder(checkpoint.absolute().parent, "checkpoint"))
        distiller = _begin(dataset, arch, settings, seed, engine, checkpoint)
        try:
            _run(distiller, checkpoint, report)
        except Diverged as diverged:
            if distiller.best is None:
                raise
            kept = f"kept is the best set seen before, of step {distiller.best.step} of {settings.outer.steps}"
            warnings.warn(f"{diverged}: {kept}", RuntimeWarning, stacklevel=2)
        finished = finished_set(distiller)
        if place is not None:
            finished.save(place)
        if checkpoint is not None:
            checkpoint.unlink(missing_ok=True)
        return finished


def _refuse_to_lose(place: Path, dataset: RealData, arch: str, settings: DistillConfig, seed: int) -> None:
    """Refuse to save where anything lies but a set of the same distillation, or one that is damaged."""
    refuse_foreign(place)
    try:
        there = read(place)[1]
    except RequestError:
        return
    if (there.dataset.digests, there.network.arch, there.distill_config, there.seed) != (
        dataset.digests(), arch, settings, seed,
    ):  # fmt: skip
        what = f"{there.dataset.name} × {there.network.arch}, seed {there.seed}"
        raise RequestError("--out", str(place), f"a set of another distillation lies there ({what}); name a new directory")


def _begin(
    dataset: RealData, arch: str, settings: DistillConfig, seed: int, engine: EngineConfig, checkpoint: Path | None
) -> Distiller:
    """A distiller at its first step or, where there is a checkpoint, at the step of that; nothing of its engine left open."""
    resumed = checkpoint is not None and checkpoint.exists()
    if checkpoint is not None and resumed:
        engine = state.as_before(engine, checkpoint)
    engine = engine.model_copy(update={"device": resolve_device(engine.device)})
    if engine.adjoint == "auto":
        check_memory(dataset, arch, settings, engine)  # what fits in no way is not timed either
    engine = settle(engine, dataset, arch, settings)
    check_memory(dataset, arch, settings, engine)
    distiller = Distiller(dataset, arch, settings, seed=seed, engine=engine)
    if checkpoint is not None and resumed:
        state.load(distiller, checkpoint)
    return distiller


def _run(distiller: Distiller, checkpoint: Path | None, report: Callable[[Progress], None] | None) -> None:
    outer = distiller.config.outer
    while distiller.step < outer.steps:
        distiller.advance(interval(distiller))
        score = distiller.score()
        if checkpoint is not None:
            state.save(distiller, checkpoint)
        if report is not None:
            best = 0.0 if distiller.best is None else distiller.best.score
            report(Progress(distiller.step, outer.steps, distiller.loss, score, best))


def interval(distiller: Distiller) -> int:
    """Outer steps until the next look at the validation split."""
    outer = distiller.config.outer
    return min(outer.score_every - distiller.step % outer.score_every, outer.steps - distiller.step)


def finished_set(distiller: Distiller) -> DistilledSet:
    """The distiller's best set as an artefact, scored anew on the validation split with networks B.

    Raises:
        Diverged: not one of these networks has finite weights after training on it.

    """
    score = distiller.judge(distiller.synthetic_best(), "B")
    if score.diverged == score.n:
        raise Diverged("a weight of every network trained on the set", distiller.step)
    return artefact(distiller, (score,))


def artefact(distiller: Distiller, scores: tuple[Score, ...] = ()) -> DistilledSet:
    """The distiller's best set, with all that is needed to train on it."""
    synthetic = distiller.synthetic_best()
    config, network = distiller.config, distiller.network
    manifest = Manifest(
        dataset=DatasetRecord.of(distiller.dataset),
        network=NetworkRecord(
            arch=distiller.arch,
            args=config.network.args,
            shapes=network.shapes,
            outputs=distiller.outputs,
            source=config.network.source,
            law=config.network.law,
            gain=config.network.gain,
        ),
        step_order=tuple(distiller.order),
        sample_classes=tuple(distiller.classes.tolist()),
        loss="binary" if distiller.outputs == 1 else "softmax",
        label_kind=label_kind(config),
        optimiser=config.inner.optimiser,
        config=config.flat(),
        engine=distiller.engine.model_dump(mode="json"),
        seed=distiller.seed,
        outer_step=distiller.best.step if distiller.best else distiller.step,
        outer_steps=distiller.step,
        scores=scores,
        text=TextRecord.of(distiller.dataset),
        versions=installed_versions(),
    )
    return DistilledSet(
        synthetic.inputs.detach().clone(),
        synthetic.labels.detach().clone(),
        synthetic.rates.detach().clone(),
        None if distiller.known is None else distiller.known.clone(),
        manifest,
        vectors_of(distiller.dataset),
    )

"""What the command line shows: tables and documents on standard output, progress on standard error."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from ddray.data import DatasetInfo
    from ddray.distillation import Progress as DistillState
    from ddray.distillation import Score
    from ddray.distillation.assess import Assessment
    from ddray.sweep import Outcome
    from ddray.sweep.run import Prepared
    from ddray.tracking import Entry

_TOP = 10


class DistillProgress:
    """A bar over the outer steps of one distillation."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._plain = None if console.is_terminal else console
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._progress.add_task("distilling", total=None)

    def __enter__(self) -> DistillProgress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, state: DistillState) -> None:
        """Show a look at the validation split."""
        now = f"step {state.step} of {state.steps}, loss {state.loss:.3f}, validation {100 * state.score.mean:.2f} %"
        text = f"{now}, best {100 * state.best:.2f} %"
        self._progress.update(self._task, total=state.steps, completed=state.step, description=text)
        if self._plain is not None:
            self._plain.print(text, highlight=False)


def outcome(result: Outcome) -> None:
    """The best trials of a sweep, the winner beside real samples, and where everything is."""
    out = Console()
    out.print(_best_trials(result))
    if result.distilled is None or result.registered is None:
        out.print("No trial was finished: there is no winner. More trials, or a narrower space, may help.")
        return
    out.print(_comparison(result.distilled.manifest.scores[1:], result.distilled.manifest.baselines, "winner"))
    record = result.distilled.manifest
    position = (
        "is the best" if result.registered.is_best else f"is not better than version {result.registered.previous}"
    )
    lines = [
        f"set       {result.directory}  ({result.distilled.stored_samples} samples)",
        f"picture   {result.picture}",
        f"record    models:/{result.registered.name}/{result.registered.version}, which {position} of its kind",
        f"open      mlflow ui --backend-store-uri {result.tracking_uri}",
        f"fetch     ddray best --dataset {record.dataset.name} --arch {record.network.arch} "
        f"--source {record.network.source} --tracking-uri {result.tracking_uri} --out best",
    ]
    for line in lines:
        out.print(line, soft_wrap=True, highlight=False, markup=False)


def _best_trials(result: Outcome) -> Table:
    finished = sorted((t for t in result.trials if t.value is not None and t.state.name == "COMPLETE"),
                      key=lambda t: -(t.value or 0.0))  # fmt: skip
    shown = finished[:_TOP]
    keys = sorted({key for trial in shown for key in trial.params})
    ends = [t.user_attrs.get("end", "?") for t in result.trials]
    counts = ", ".join(
        f"{ends.count(end)} {end}" for end in ("finished", "pruned", "diverged", "failed") if end in ends
    )
    table = Table(title=f"{result.sweep}: {len(result.trials)} trials ({counts})")
    for heading in ("trial", "validation", "seconds", *keys):
        table.add_column(heading, justify="right", overflow="fold")
    for trial in shown:
        seconds = f"{trial.user_attrs.get('seconds', 0.0):.0f}"
        values = [_short(trial.params.get(key, "–")) for key in keys]
        table.add_row(str(trial.number), _percent(trial.value or 0.0), seconds, *values)
    return table


def _comparison(scores: Sequence[Score], baselines: Mapping[str, Sequence[Score]], title: str) -> Table:
    splits = list(dict.fromkeys(score.split for score in scores))
    table = Table(title=f"the {title} and as many real samples, accuracy over fresh networks")
    table.add_column("")
    for split in splits:
        table.add_column(split, justify="right")
    rows = {
        "as distilled": {s.split: s for s in scores if s.protocol == "as-distilled"},
        "retrained": {s.split: s for s in scores if s.protocol == "retrain"},
        **{f"real samples, {kind}": {s.split: s for s in found} for kind, found in baselines.items()},
    }
    for name, found in rows.items():
        table.add_row(name, *(_score(found[split]) if split in found else "–" for split in splits))
    return table


def assessment(result: Assessment, as_json: bool) -> None:
    """The scores of one set."""
    if as_json:
        _document(
            {
                "dataset": result.distilled.manifest.dataset.name,
                "arch": result.arch,
                "stored_samples": result.distilled.stored_samples,
                "test_looks": result.distilled.manifest.test_looks(),
                "scores": [score.model_dump(mode="json") for score in result.scores],
                "baselines": {k: [s.model_dump(mode="json") for s in v] for k, v in result.baselines.items()},
            }
        )
        return
    Console().print(_comparison(result.scores, result.baselines, f"{result.distilled.stored_samples} samples"))


def leaderboard(entries: Sequence[Entry], as_json: bool) -> None:
    """The catalogue."""
    if as_json:
        _document([asdict(entry) for entry in entries])
        return
    table = Table(title="confirmed sets, the best of each kind first")
    columns = ("dataset", "arch", "source", "version", "samples", "validation", "test", "sweep", "date")
    for heading in columns:
        table.add_column(heading, overflow="fold")
    for entry in entries:
        version = f"{entry.version}{' (best)' if entry.is_best else ''}"
        table.add_row(
            entry.dataset, entry.arch, entry.source, version, str(entry.stored_samples),
            _tagged(entry.val_accuracy, entry.val_std, entry.val_n), _tagged(entry.test_accuracy, entry.test_std, entry.test_n),
            entry.sweep, entry.date[:10],
        )  # fmt: skip
    Console().print(table)


def datasets(known: Sequence[DatasetInfo]) -> None:
    """The datasets."""
    table = Table(title="datasets (or an .npz file with train_x, train_y, test_x, test_y)")
    for heading in ("name", "classes", "input", "training", "test", "needs"):
        table.add_column(heading)
    for info in known:
        shape = "×".join(map(str, info.input_shape))
        table.add_row(info.name, str(info.classes), shape, f"{info.train:,}", f"{info.test:,}", info.needs)
    Console().print(table)


def archs(known: Mapping[str, Callable[..., Any]]) -> None:
    """The architectures."""
    table = Table(title="architectures (or package.module:factory)")
    for heading in ("name", "what it is", "network.args"):
        table.add_column(heading)
    for name, factory in known.items():
        first = (inspect.getdoc(factory) or "").splitlines()[0]
        options = [
            f"{p.name}={p.default}" for p in inspect.signature(factory).parameters.values() if p.default is not p.empty
        ]
        table.add_row(name, first, ", ".join(options) or "–")
    Console().print(table)


def dry_run(prepared: Prepared) -> None:
    """What a sweep would do: its space, its size and what a trial takes."""
    from ddray.sweep.cost import memory

    out, spec = Console(), prepared.spec
    table = Table(
        title=f"{prepared.directory.name}: {prepared.trials} trials of {prepared.dataset.name} × {spec.file.arch}"
    )
    for heading in ("key", "values", "when"):
        table.add_column(heading, overflow="fold")
    for parameter in spec.parameters:
        values = (
            ", ".join(map(str, parameter.choices))
            or f"{parameter.low:g} to {parameter.high:g}{' (log)' if parameter.log else ''}"
        )
        table.add_row(parameter.key, values, ", ".join(f"{k} = {v}" for k, v in parameter.when.items()) or "always")
    for key, value in spec.fixed.items():
        table.add_row(key, str(value), "fixed")
    out.print(table)
    low, high = memory(prepared)
    for line in (
        f"constraints      {', '.join(spec.file.constraints) or 'none'}",
        f"scheduler        {spec.file.scheduler.asha if spec.file.scheduler else 'none: every trial runs to its end'}",
        f"memory per trial {low / 2**20:.0f} to {high / 2**20:.0f} MiB, estimated",
        f"engine           {prepared.engine}",
        f"storage          {prepared.directory}",
    ):
        out.print(line, soft_wrap=True, highlight=False, markup=False)


def _document(content: Any) -> None:
    print(json.dumps(content, indent=1))


def _score(score: Score) -> str:
    if score.std is not None:
        return f"{100 * score.mean:.2f} ± {100 * score.std:.2f} %  (n = {score.n})"
    low, high = score.interval or (score.mean, score.mean)
    return f"{100 * score.mean:.2f} %  ({100 * low:.1f} to {100 * high:.1f}; n = 1)"


def _tagged(mean: float | None, std: float | None, n: int | None) -> str:
    if mean is None:
        return "–"
    return f"{_percent(mean)}{f' ± {100 * std:.2f}' if std is not None else ''} (n = {n})"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)

"""What the command line shows: tables and documents on standard output, progress on standard error."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ddray.tables import console, make_table, print_document, print_lines, show_table

if TYPE_CHECKING:
    from pydantic import BaseModel

    from ddray.data import DatasetInfo
    from ddray.distillation import Progress as DistillState
    from ddray.distillation import Score
    from ddray.distillation.assess import Assessment
    from ddray.distillation.settings import Setting
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
    out = console()
    _print_best_trials(out, result)
    if result.left:
        advice = f"go on with --resume --name {result.sweep}"
        print_lines(out, [f"The time was over before {result.left} more trials had ended: {advice}"])
    if result.distilled is None or result.registered is None:
        advice = "" if result.left else " Try more trials, or a narrower space."
        print_lines(out, [f"No trial was finished: there is no winner.{advice}"])
        return
    record, registered = result.distilled.manifest, result.registered
    _print_comparison(out, record.standing(), record.baselines, "the winner")
    position = "is the best" if registered.is_best else f"is not better than version {registered.previous}"
    kind = ("--dataset", record.dataset.name, "--arch", record.network.arch, "--source", record.network.source)
    uri = _without_password(result.tracking_uri)
    commands = {
        "open": ("mlflow", "ui", "--backend-store-uri", uri),
        "fetch": ("ddray", "best", *kind, "--tracking-uri", uri, "--out", "best"),
    }
    lines = [
        f"set       {result.directory}  ({result.distilled.stored_samples} samples)",
        *([] if result.picture is None else [f"picture   {result.picture}"]),
        f"record    models:/{registered.name}/{registered.version}, which {position} of its kind",
        *(f"{name:<10}{shlex.join(command)}" for name, command in commands.items()),
    ]
    print_lines(out, lines)


def _print_best_trials(out: Console, result: Outcome) -> None:
    finished = [t for t in result.trials if t.value is not None and t.state.name == "COMPLETE"]
    shown = sorted(finished, key=lambda t: -(t.value or 0.0))[:_TOP]
    ends = [t.user_attrs.get("end", "failed") if t.state.is_finished() else "unfinished" for t in result.trials]
    counts = [f"{ends.count(end)} {end}" for end in ("finished", "pruned", "diverged", "failed", "unfinished") if end in ends]
    title = f"{result.sweep}: {len(ends)} trials ({', '.join(counts)})"
    keys = sorted({key for trial in shown for key in trial.params})
    # A column for each key where they fit, under the key in two lines; otherwise all settings of a trial in one.
    columns = make_table("trial", "validation", "seconds", *(key.replace(".", ".\n", 1) for key in keys))
    lists = make_table("trial", "validation", "seconds", folded=("settings",))
    for trial in shown:
        first = (str(trial.number), _percent(trial.value or 0.0), f"{trial.user_attrs.get('seconds', 0.0):.0f}")
        columns.add_row(*first, *(_short(trial.params[key]) if key in trial.params else "–" for key in keys))
        lists.add_row(*first, " ".join(f"{key}={_short(trial.params[key])}" for key in keys if key in trial.params))
    fits = Measurement.get(out, out.options.update(width=10_000), columns).maximum <= out.width
    show_table(out, title, columns if fits else lists)


def _print_comparison(
    out: Console, scores: Sequence[Score], baselines: Mapping[str, Sequence[Score]], what: str
) -> None:
    everything = [*scores, *(score for found in baselines.values() for score in found)]
    several = all(score.std is not None for score in everything)
    kind = "mean ± std over n networks" if several else "one network (n = 1), 95 % interval over examples"
    protocols: dict[str, str] = {"as-distilled": "as distilled", "retrain": "retrained", "decoded": "decoded to words"}
    shown = [p for p in protocols if p != "decoded" or any(score.protocol == p for score in everything)]
    table = make_table("", "split", *(protocols[p] for p in shown))
    rows = {what: scores, **{f"real, {name}": found for name, found in baselines.items()}}
    for name, found in rows.items():
        for split in dict.fromkeys(score.split for score in everything):
            cells: dict[str, str] = {score.protocol: _score(score) for score in found if score.split == split}
            table.add_row(name, split, *(cells.get(p, "–") for p in shown))
    show_table(out, f"accuracy in % beside as many real samples: {kind}", table)


def assessment(result: Assessment, as_json: bool) -> None:
    """The scores of one set."""
    if as_json:
        print_document(
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
    _print_comparison(console(), result.scores, result.baselines, f"{result.distilled.stored_samples} samples")


def leaderboard(entries: Sequence[Entry], as_json: bool) -> None:
    """The catalogue."""
    if as_json:
        print_document([asdict(entry) for entry in entries])
        return
    out = console()
    if not entries:
        print_lines(out, ["No set is registered for this."])
    for kind, rows in groupby(entries, key=lambda entry: (entry.dataset, entry.arch, entry.source)):
        columns = ("version", "samples", "validation, %", "test, %")
        table = make_table(*columns, folded=("sweep",))
        for row in rows:
            table.add_row(
                f"{row.version}{' (best)' if row.is_best else ''}", str(row.stored_samples),
                _tagged(row.val_accuracy, row.val_std, row.val_n), _tagged(row.test_accuracy, row.test_std, row.test_n),
                row.sweep,
            )  # fmt: skip
        show_table(out, " × ".join(kind), table)


def datasets(known: Sequence[DatasetInfo]) -> None:
    """The datasets."""
    table = make_table("name", "classes", "input", "training", "test", folded=("needs",))
    for info in known:
        shape = "×".join(map(str, info.input_shape)) or "sentences"
        table.add_row(info.name, str(info.classes), shape, f"{info.train:,}", f"{info.test:,}", info.needs)
    out = console()
    show_table(out, "datasets", table)
    print_lines(
        out,
        [
            "or a file: an .npz with train_x, train_y, test_x, test_y,",
            "csv:PATH?text=COLUMN&label=COLUMN[&test=PATH] for .csv, .tsv and .parquet",
        ],
    )


def archs(known: Mapping[str, Callable[..., Any]]) -> None:
    """The architectures."""
    table = make_table("name", folded=("what it is", "network.args"))
    for name, factory in known.items():
        first = (inspect.getdoc(factory) or "").splitlines()[0]
        options = [
            f"{p.name}={p.default}" for p in inspect.signature(factory).parameters.values() if p.default is not p.empty
        ]
        table.add_row(name, first, ", ".join(options) or "–")
    show_table(console(), "architectures (or package.module:factory)", table)


def settings(rows: Sequence[Setting], as_json: bool) -> None:
    """The settings: a table for each group of them."""
    if as_json:
        print_document([asdict(row) for row in rows])
        return
    from ddray.distillation.settings import GROUPS

    out = console()
    for group, members in groupby(rows, key=lambda row: row.key.partition(".")[0]):
        table = make_table("key", "default", folded=("allowed", "what it is"))
        for row in members:
            table.add_row(row.key, row.default_text, row.allowed, row.description)
        show_table(out, f"{group}: {' '.join((inspect.getdoc(GROUPS[group]) or '').split())}", table)


def dry_run(prepared: Prepared) -> None:
    """What a sweep would do: its space, its size and what a trial takes."""
    from ddray.distillation.preflight import gib, needed
    from ddray.sweep.extent import largest, least

    out, spec = console(), prepared.spec
    title = f"{prepared.directory.name}: {prepared.trials} trials of {prepared.dataset.name} × {spec.file.arch}"
    table = make_table("key", folded=("values", "when"))
    for parameter in spec.parameters:
        values = (
            ", ".join(map(str, parameter.choices))
            or f"{parameter.low:g} to {parameter.high:g}{' (log)' if parameter.log else ''}"
        )
        table.add_row(parameter.key, values, ", ".join(f"{k} = {v}" for k, v in parameter.when.items()) or "always")
    for key, value in spec.fixed.items():
        table.add_row(key, str(value), "fixed")
    show_table(out, title, table)
    low, high = (
        needed(prepared.dataset, spec.file.arch, config, prepared.engine)
        for config in (least(spec), largest(spec, prepared.problem))
    )
    scheduler = spec.file.scheduler
    lines = [
        f"constraints      {', '.join(spec.file.constraints) or 'none'}",
        f"scheduler        {_settings(scheduler.asha) if scheduler else 'none: every trial runs to its end'}",
        f"one trial takes  {_settings(prepared.resources)}",
        f"memory per trial {gib(low)} to {gib(high)}, predicted",
        f"engine           {_settings(prepared.engine)}",
        f"seed             {prepared.seed}",
        f"storage          {prepared.directory}",
        f"record           {_without_password(prepared.tracking_uri)}",
    ]
    print_lines(out, lines)


def _settings(record: BaseModel) -> str:
    return ", ".join(f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in record)


def _score(score: Score) -> str:
    if score.diverged == score.n:
        return "diverged" if score.n == 1 else f"all {score.n} diverged"
    if score.std is not None:
        lost = f", {score.diverged} diverged" if score.diverged else ""
        return f"{100 * score.mean:.2f} ± {100 * score.std:.2f} (n = {score.n}{lost})"
    low, high = score.interval or (score.mean, score.mean)
    return f"{100 * score.mean:.2f} [{100 * low:.1f}, {100 * high:.1f}]"


def _tagged(mean: float | None, std: float | None, n: int | None) -> str:
    if mean is None:
        return "–"
    return f"{100 * mean:.2f}{f' ± {100 * std:.2f}' if std is not None else ''} ({n})"


def _without_password(uri: str) -> str:
    return re.sub(r"://[^/@]*@", "://…@", uri)


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)

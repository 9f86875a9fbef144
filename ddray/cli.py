"""The command line: `ddray …`.

Results go to standard output, progress and messages to standard error. Exit status: 0 done, 1 the work failed, 2 the
request was wrong, 130 interrupted.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated

import typer

from ddray import report
from ddray.errors import RequestError
from ddray.exit_status import Interrupted, exit_status, warnings_in_one_line
from ddray.files import storable_name, writable_folder

app = typer.Typer(add_completion=False, help="Search, compare and keep distilled datasets.")
Data = Annotated[Path | None, typer.Option("--data", envvar="DDRAY_DATA", help="where datasets lie; never written to")]
Uri = Annotated[str | None, typer.Option("--tracking-uri", envvar="MLFLOW_TRACKING_URI", help="the MLflow record")]
Assign = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="a setting; may be repeated")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document")]


@app.command()
def search(
    space: Annotated[
        str | None,
        typer.Argument(
            help="a YAML file, or the stem of one in search_spaces/ (default: digits_lenet)", show_default=False
        ),
    ] = None,
    trials: Annotated[int | None, typer.Option(help="trials in all; more than before extends a resumed sweep")] = None,
    name: Annotated[str | None, typer.Option(help="the sweep's name (default SPACE-DATE-4 hex)")] = None,
    seed: Annotated[int | None, typer.Option(help="decides everything random (default 0)")] = None,
    storage: Annotated[str, typer.Option(metavar="DIR", help="where sweeps are kept")] = "sweeps",
    tracking_uri: Uri = None,
    address: Annotated[
        str | None, typer.Option(envvar="RAY_ADDRESS", help="a Ray cluster (default: this machine)")
    ] = None,
    cpus_per_trial: Annotated[float | None, typer.Option(help="CPU cores of one trial")] = None,
    gpus_per_trial: Annotated[float | None, typer.Option(help="share of a GPU; 0.25 packs four on a card")] = None,
    max_concurrent: Annotated[int | None, typer.Option(help="trials at a time (default: as many as fit)")] = None,
    time_budget: Annotated[str | None, typer.Option(metavar="30m", help="stop after so many s, m or h")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with a sweep")] = False,
    assignments: Assign = None,
    data: Data = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would run, and stop")] = False,
) -> None:
    """Run, resume or extend a sweep, and bring the best set home."""
    from ddray.sweep import SweepRequest, prepare, run
    from ddray.sweep.request import parse_duration

    seconds = None if time_budget is None else parse_duration(time_budget)
    request = SweepRequest(
        space, trials, name, seed, storage, tracking_uri, address, cpus_per_trial, gpus_per_trial, max_concurrent,
        seconds, resume, tuple(assignments or ()), data,
    )  # fmt: skip
    prepared = prepare(request)
    if dry_run:
        report.dry_run(prepared)
        return
    name, place = prepared.directory.name, prepared.directory.parent
    try:
        outcome = run(prepared)
    except KeyboardInterrupt:
        command = ["ddray", "search", "--resume", "--name", name, "--storage", str(place)]
        for flag, given in (("--data", data), ("--address", address)):  # what a sweep does not remember
            command += [] if given is None else [flag, str(given)]
        raise Interrupted(f"go on with: {shlex.join(command)}") from None
    report.outcome(outcome)
    if outcome.winner is None:
        raise typer.Exit(1)


@app.command()
def distill(
    dataset: Annotated[str, typer.Option(help="a dataset's name, an .npz file, or csv:PATH?text=COLUMN&label=COLUMN")],
    arch: Annotated[str, typer.Option(help="an architecture's name, or package.module:factory")],
    out: Annotated[Path, typer.Option(help="the directory to save the set in")],
    assignments: Assign = None,
    seed: Annotated[int, typer.Option(help="decides everything random")] = 0,
    data: Data = None,
) -> None:
    """Make one distilled set, without Ray. Interrupted, the same command goes on where it stopped."""
    from ddray.distillation import EngineConfig
    from ddray.distillation import distill as distill_set
    from ddray.distillation.keys import parse, split_engine

    config, engine = split_engine(assignments or ())
    settings = parse(EngineConfig, engine, "engine.")
    out = out.absolute()
    with report.DistillProgress() as progress:
        checkpoint = out.with_name(f"{out.name}.checkpoint")
        try:
            with warnings_in_one_line():
                distilled = distill_set(
                    dataset, arch, config, seed=seed, data=data, engine=settings, checkpoint=checkpoint, save_to=out,
                    report=progress.show,
                )  # fmt: skip
        except KeyboardInterrupt:
            raise Interrupted("the same command goes on where it stopped") from None
    print(f"{distilled.stored_samples} samples saved in {out}")
    print(distilled.manifest.scores[0])


@app.command()
def best(
    dataset: Annotated[str, typer.Option(help="the dataset's name")],
    arch: Annotated[str, typer.Option(help="the architecture's name")],
    source: Annotated[str, typer.Option(help="random or fixed")] = "random",
    max_samples: Annotated[int | None, typer.Option(help="the most stored samples")] = None,
    out: Annotated[Path | None, typer.Option(help="copy it into this directory")] = None,
    tracking_uri: Uri = None,
) -> None:
    """Fetch the best set of a dataset and an architecture."""
    from ddray.tracking import default_tracking_uri, fetch

    distilled, place = fetch(tracking_uri or default_tracking_uri(), dataset, arch, source, max_samples, out)
    print(place)
    for score in distilled.manifest.scores:
        print(score, file=sys.stderr)


@app.command()
def leaderboard(
    dataset: Annotated[str | None, typer.Option(help="only this dataset")] = None,
    arch: Annotated[str | None, typer.Option(help="only this architecture")] = None,
    tracking_uri: Uri = None,
    as_json: Json = False,
) -> None:
    """Show the catalogue of confirmed sets, the best first."""
    from ddray.tracking import default_tracking_uri
    from ddray.tracking import leaderboard as rows

    report.leaderboard(rows(tracking_uri or default_tracking_uri(), dataset, arch), as_json)


@app.command()
def evaluate(
    set_: Annotated[str, typer.Argument(metavar="SET", help="a set's directory, or models:/NAME@best")],
    arch: Annotated[str | None, typer.Option(help="train this architecture in place of the recorded one")] = None,
    nets: Annotated[int | None, typer.Option(help="fresh networks (default 20)")] = None,
    split: Annotated[
        str, typer.Option(help="validation or test; a look at test is stamped into the set")
    ] = "validation",
    rates: Annotated[str | None, typer.Option(metavar="fixed:0.01", help="one rate for all steps")] = None,
    epochs: Annotated[int | None, typer.Option(help="passes over the set; needs --rates")] = None,
    baselines: Annotated[bool, typer.Option(help="score real samples of the same number as well")] = True,
    dataset: Annotated[str | None, typer.Option(help="the set's own data by another name or path than recorded")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 …; by itself the GPU, where there is one")] = "auto",
    data: Data = None,
    tracking_uri: Uri = None,
    as_json: Json = False,
) -> None:
    """Score a set on real data, as distilled and by ordinary retraining, beside real samples of the same number."""
    rate = None if rates is None else parse_rates(rates)
    if split == "test" and set_.startswith("models:"):
        raise RequestError(
            "--split", split, "for a set in a directory, which the look is stamped into: ddray best --out DIR"
        )
    from ddray.distillation.assess import assess
    from ddray.tracking import default_tracking_uri, resolve

    place = resolve(set_, tracking_uri or default_tracking_uri())
    report.assessment(
        assess(
            place, arch=arch, nets=nets, split=split, rate=rate, epochs=epochs, baselines=baselines, data=data,
            dataset=dataset, device=device,
        ),
        as_json,
    )  # fmt: skip


@app.command()
def preview(
    set_: Annotated[str, typer.Argument(metavar="SET", help="a set's directory, or models:/NAME@best")],
    out: Annotated[
        Path | None,
        typer.Option(help="the picture, .png, .pdf or .svg (default: preview.png); for text .txt (default: shown here)"),
    ] = None,
    tracking_uri: Uri = None,
) -> None:
    """Draw a set of images; show a set of sentences as the nearest words."""
    from ddray.distillation import load
    from ddray.distillation.decode import listing
    from ddray.tracking import default_tracking_uri, resolve

    distilled = load(resolve(set_, tracking_uri or default_tracking_uri()))
    if out is None and distilled.vectors is not None:
        print(listing(distilled))
        return
    out = out or Path("preview.png")
    storable_name(out, "--out")
    if out.is_dir():
        raise RequestError("--out", str(out), "a file, and this is a directory")
    with writable_folder(out.absolute().parent, "--out"):
        print(distilled.preview(out))


@app.command()
def datasets() -> None:
    """List the datasets, and what each needs."""
    from ddray.data import available

    report.datasets(available())


@app.command()
def archs() -> None:
    """List the architectures, and what each takes."""
    from ddray.networks import ARCHITECTURES

    report.archs(ARCHITECTURES)


@app.command()
def settings(
    group: Annotated[str | None, typer.Argument(help="one group, such as outer (default: all)", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """List every setting: its default, what is allowed, and what it is."""
    from ddray.distillation.settings import list_settings

    report.settings(list_settings(group), as_json)


def parse_rates(text: str) -> float:
    """The rate of `fixed:0.01`."""
    kind, _, number = text.partition(":")
    try:
        rate = float(number) if kind == "fixed" else 0.0
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise RequestError("--rates", text, "fixed: and a positive number, for example fixed:0.01")
    return rate


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its status; a wrong request is one line, never a traceback."""
    if str(Path.cwd()) not in sys.path:  # a user's own network lies there, and a console script does not look
        sys.path.append(str(Path.cwd()))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and stream.errors == "strict":  # a sign that it lacks is shown by its number
            stream.reconfigure(errors="backslashreplace")
    sys.exit(status(arguments))


def status(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    return exit_status(lambda: app(given or ["--help"], standalone_mode=False))

"""What Ray, Optuna and MLflow cost: a sweep of 16 equal trials, two at a time, against the same 16 distillations bare.

    python benchmarks/sweep_overhead.py [--steps 60]

The bare side is two plain processes with eight distillations each, of the same configurations, seeds and looks at the validation
split. Start-up (imports, Ray, the first workers; the record's database) is measured and left out on both sides: the sweep's clock
runs from the first trial's start to the last one's end, the bare one from the first distillation to the last.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path

import optuna

import ddray
from ddray.distillation import EngineConfig
from ddray.distillation.streams import seed_of
from ddray.sweep import SweepRequest, prepare
from ddray.sweep.execute import Cluster, execute
from ddray.sweep.project import Projection
from ddray.sweep.study import open_study

SPACE = """
dataset: digits
arch: LeNet
fixed: {network.source: random, synthetic.steps: 2, synthetic.epochs: 3, synthetic.init: real, outer.steps: %d,
        outer.batch: 256, outer.score_every: %d}
search:
  outer.lr: {float: [0.001, 0.01], log: true}
trials: 16
"""


def main() -> None:
    """Measure both sides and print their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="outer steps of a trial, with three looks")
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as directory:
        space = Path(directory) / "equal.yaml"
        space.write_text(SPACE % (steps, steps // 3))
        whole, spent, values, engine = sweep(space, Path(directory))
    bare, alone = plain(steps, values, engine)
    print(f"sweep   {spent:7.1f} s for 16 trials, two at a time ({whole:.1f} s with start-up)")
    print(f"bare    {bare:7.1f} s for the same 16 in two processes ({alone:.1f} s with start-up)")
    print(f"ratio   {spent / bare:7.3f}")


def sweep(space: Path, directory: Path, data: Path | None = None) -> tuple[float, float, list[float], EngineConfig]:
    """Seconds of the whole search without its winner's confirmation, of its trials, the rates they were given, and how."""
    began = time.monotonic()
    prepared = prepare(SweepRequest(str(space), storage=str(directory / "sweeps"), name="equal", data=data))
    prepared.directory.mkdir(parents=True)
    dataset = prepared.dataset
    study = open_study(prepared.directory, prepared.spec, prepared.problem, 0, dataset.digests(), resume=False)
    projection = Projection(f"sqlite:///{directory}/mlflow.db", prepared.spec, study, prepared.directory, dataset)
    execute("LeNet", prepared.engine, dataset, study, prepared.directory, Cluster(None, {"CPU": 1.0}, 2), target=16,
            time_budget=None, record=projection.record, import_paths=())  # fmt: skip
    whole = time.monotonic() - began
    trials = study.study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    assert len(trials) == 16
    # A trial is asked for before its worker has started: the first workers' start-up is what passes before their first report.
    first, seconds = min(trials, key=lambda t: t.number), [float(t.user_attrs["seconds"]) for t in trials]
    start_up = min(started(t) for t in trials if t.number < 2)
    span = max(t.datetime_complete.timestamp() for t in trials) - first.datetime_start.timestamp() - start_up
    print(
        f"        sum of the trials' own seconds: {sum(seconds):.1f}, start-up of the first workers: {start_up:.1f} s"
    )
    values = [float(t.params["outer.lr"]) for t in sorted(trials, key=lambda t: t.number)]
    return whole, span, values, prepared.engine


def started(trial: optuna.trial.FrozenTrial) -> float:
    """Seconds between a trial's being asked for and its worker's beginning."""
    return trial.duration.total_seconds() - float(trial.user_attrs["seconds"])  # type: ignore[union-attr]


def plain(steps: int, values: list[float], engine: EngineConfig) -> tuple[float, float]:
    """Seconds of the distillations alone, in two processes, and with their start-up."""
    began = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        spans = pool.starmap(half, [(steps, values, engine, 0), (steps, values, engine, 1)])
    return max(end for _, end in spans) - min(start for start, _ in spans), time.monotonic() - began


def half(steps: int, values: list[float], engine: EngineConfig, which: int) -> tuple[float, float]:
    """Distil every second of the trials; returns wall-clock start and end."""
    import torch

    from ddray.data import load

    data = load("digits")
    torch.set_num_threads(1)
    start = time.time()
    for number in range(which, 16, 2):
        ddray.distill(
            data, "LeNet",
            {"network.source": "random", "synthetic.steps": 2, "synthetic.epochs": 3, "synthetic.init": "real",
             "outer.steps": steps, "outer.batch": 256, "outer.score_every": steps // 3, "outer.lr": values[number]},
            seed=seed_of(0, "trial", number) % 2**31, engine=engine,
        )  # fmt: skip
    return start, time.time()


if __name__ == "__main__":
    main()

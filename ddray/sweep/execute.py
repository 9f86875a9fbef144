"""Tune runs what the study lacks."""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune

from ddray.data import RealData
from ddray.distillation.config import EngineConfig
from ddray.errors import RequestError
from ddray.sweep.searcher import StudyScheduler, StudySearcher
from ddray.sweep.study import SweepStudy
from ddray.sweep.trial import CHECKPOINT, DistillTrial, TrialContext
from ddray.sweep.watch import Watch

_TRIES_AFTER_A_CRASH = 2
_ANSWER_SECONDS = 10
_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # Tune's own result files repeat what the study has
    "TUNE_FORCE_TRIAL_CLEANUP_S": "2",  # at Ctrl-C or the end of the time, a worker deep in a step is not waited for
    "RAY_AIR_NEW_OUTPUT": "0",  # the newer of Tune's two reporters prints even when asked to be silent
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
_USUAL = {  # of the user's environment, where it says nothing else
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",  # Ray's 15 leaves a trial a twentieth of a core that any other program is busy on
}


@dataclass(frozen=True)
class Cluster:
    """Where trials run, and what each occupies."""

    address: str | None
    resources: Mapping[str, float]  # {"CPU": …, "GPU": …, "memory": bytes} of one trial
    max_concurrent: int | None


def execute(
    arch: str, engine: EngineConfig, dataset: RealData, study: SweepStudy, directory: Path, cluster: Cluster, *,
    target: int, time_budget: float | None, record: Callable[[int], None], import_paths: tuple[str, ...],
) -> None:  # fmt: skip
    """Take up the study's unfinished trials and run new ones until it has `target`, or the time is over.

    When the time is over or Ctrl-C is pressed, the trials that still run are left unfinished, for `--resume`.

    Raises:
        KeyboardInterrupt: the user pressed Ctrl-C; all that was reported is in the study.
        RequestError: the cluster cannot be reached, no node of it has the resources of a trial, or next to nothing in the
            space satisfies its constraints.

    """
    study.end_stopped()
    unfinished = study.unfinished()
    missing = max(target - len(study.counted()), 0)
    if not unfinished and not missing:
        return
    budget = _Budget(time_budget)
    searcher = StudySearcher(study, unfinished, lambda number: checkpoints(directory, number))
    context = TrialContext(arch, engine, import_paths)
    with _session(cluster):
        trainable = tune.with_resources(
            tune.with_parameters(DistillTrial, dataset=dataset, context=context), dict(cluster.resources)
        )
        with Watch(searcher, target, record) as watch:
            tuner = tune.Tuner(
                trainable,
                tune_config=tune.TuneConfig(
                    metric="val_accuracy",
                    mode="max",
                    search_alg=searcher,
                    scheduler=StudyScheduler(searcher),
                    num_samples=len(unfinished) + missing,
                    max_concurrent_trials=cluster.max_concurrent or _slots(cluster.resources),
                    reuse_actors=True,
                    trial_dirname_creator=lambda trial: f"trial-{trial.config['number']:05d}",
                ),
                run_config=tune.RunConfig(
                    name=_fresh_run(directory).name,
                    storage_path=str(directory),
                    callbacks=[watch],
                    stop=budget,
                    failure_config=tune.FailureConfig(max_failures=_TRIES_AFTER_A_CRASH),
                    checkpoint_config=tune.CheckpointConfig(
                        num_to_keep=2, checkpoint_frequency=1, checkpoint_at_end=True
                    ),
                    verbose=0,
                ),
            )
            try:
                tuner.fit()
            except tune.TuneError as error:
                if isinstance(error.__cause__, RequestError):
                    raise error.__cause__ from None
                raise
        if study.left(target) and not budget.over:  # at Ctrl-C, Tune only ends its loop
            raise KeyboardInterrupt


@contextmanager
def _session(cluster: Cluster) -> Iterator[None]:
    """A Ray that can run these trials, ended with the block; one that this process has started already is left running.

    Raises:
        RequestError: the cluster cannot be reached, or no node of it has the resources of a trial.

    """
    os.environ.update(_SETTINGS)
    ours = not ray.is_initialized()
    if ours:
        _connect(cluster.address)
    try:
        if not _slots(cluster.resources):
            have = {key: value for key, value in ray.cluster_resources().items() if key in cluster.resources}
            raise RequestError(
                "resources", dict(cluster.resources), f"a trial must fit in a node; in all there is {have}"
            )
        yield
    finally:
        if ours:
            ray.shutdown()


def knock(address: str) -> None:
    """See that somebody answers at `address`: Ray itself would go on trying for minutes before it says no.

    Raises:
        RequestError: HOST:PORT that nobody answers at.

    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():  # auto, local: Ray's own words
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise RequestError("--address", address, f"a Ray cluster that can be reached: {error}") from None


def checkpoints(directory: Path, number: int) -> list[Path]:
    """The checkpoints of a trial over all runs of its sweep, the latest first; those that are not whole are left out."""
    found = directory.glob(f"tune-*/trial-{number:05d}/checkpoint_*/{CHECKPOINT}")
    return [file.parent for file in sorted(found, key=lambda file: (file.parts[-4], file.parts[-2]), reverse=True)]


class _Budget(tune.Stopper):
    """Stops a run when its time is over, and remembers that it did."""

    def __init__(self, seconds: float | None) -> None:
        self._end = math.inf if seconds is None else time.monotonic() + seconds
        self.over = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        self.over = self.over or time.monotonic() >= self._end
        return self.over


def _connect(address: str | None) -> None:
    os.environ.update(_USUAL | os.environ)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address is None:
            ray.init(address="local", include_dashboard=False, **options)
        else:
            ray.init(address=address, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise RequestError(
            "--address", address, f"a Ray cluster that can be reached: {str(error).splitlines()[0]}"
        ) from None


def _slots(resources: Mapping[str, float]) -> int:
    """How many trials fit into the cluster at a time: none is spread over nodes."""
    return sum(slots(node["Resources"], resources) for node in ray.nodes() if node["Alive"])


def slots(have: Mapping[str, float], resources: Mapping[str, float]) -> int:
    """How many trials fit into a node."""
    shares = (have.get(kind, 0.0) / need for kind, need in resources.items() if need > 0)
    return int(min(shares) + 1e-6)  # ten tenths of a card are a card


def _fresh_run(directory: Path) -> Path:
    """Every run of a sweep is a new Tune experiment: Tune overwrites an old one of the same name without a word."""
    taken = [int(path.name.removeprefix("tune-")) for path in directory.glob("tune-*")]
    return directory / f"tune-{max(taken, default=-1) + 1:04d}"

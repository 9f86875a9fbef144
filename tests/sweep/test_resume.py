"""A sweep that is killed, interrupted, stopped by the clock or extended goes on where it stood."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from optuna.trial import FrozenTrial, TrialState
from safetensors import safe_open

from ddray.data import Dataset
from ddray.sweep import Outcome, search
from ddray.sweep.execute import checkpoints
from ddray.sweep.trial import CHECKPOINT
from tests.sweep.conftest import NewRecord
from tests.sweep.sweeps import ROOT, in_state, kept_set, same_tensors, save_space, told, uninterrupted

LONG = {"outer.steps": 60, "outer.score_every": 4}
SEARCH = {"outer.lr": {"float": [0.01, 0.1], "log": True}}


@dataclass(frozen=True)
class Stopped:
    """A sweep of three trials whose driver was stopped by a signal, and what it went on to."""

    status: int
    seconds: float  # from the signal to the end of the driver
    error: str
    before: list[FrozenTrial]
    steps: dict[int, list[int]]  # outer steps at the checkpoints of the unfinished trials, the last one first
    outcome: Outcome
    directory: Path
    space: str

    @property
    def after(self) -> list[FrozenTrial]:
        return told(self.directory)


StopSweep = Callable[..., Stopped]


@pytest.fixture(scope="module")
def stop_sweep(
    local_ray: None,
    data: Path,
    new_record: NewRecord,
    tmp_path_factory: pytest.TempPathFactory,
) -> StopSweep:
    def stop(number: signal.Signals, meddle: Callable[[Path], None] = lambda _: None) -> Stopped:
        folder, uri = tmp_path_factory.mktemp("stopped"), new_record()
        space = save_space(folder / "x.yaml", data, fixed=LONG, search=SEARCH, trials=3)
        options = ["--name", "s", "--storage", str(folder), "--tracking-uri", uri, "--max-concurrent", "2"]
        directory = folder / "s"
        with (folder / "stderr").open("w") as error:
            driver = subprocess.Popen(
                [sys.executable, "run_search.py", space, *options], cwd=ROOT, start_new_session=True, stderr=error,
                stdout=error, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        try:
            _wait(driver, lambda: _half_way(directory))
            began = time.monotonic()
            driver.send_signal(number)
            status = driver.wait(timeout=60)
        finally:
            driver.kill()
            driver.wait()
        seconds = time.monotonic() - began
        before = told(directory)
        unfinished = in_state(before, TrialState.RUNNING)
        steps = {n: [_step(place) for place in checkpoints(directory, n)] for n in unfinished}
        for unfinished_number in unfinished:
            meddle(checkpoints(directory, unfinished_number)[0])
        outcome = search(space, storage=str(folder), name="s", tracking_uri=uri, resume=True)
        return Stopped(status, seconds, (folder / "stderr").read_text(), before, steps, outcome, directory, space)

    return stop


@pytest.fixture(scope="module")
def killed(stop_sweep: StopSweep) -> Stopped:
    return stop_sweep(signal.SIGKILL)


@pytest.fixture(scope="module")
def interrupted(stop_sweep: StopSweep) -> Stopped:
    """By Ctrl-C; and before it goes on, the last checkpoint of every unfinished trial is damaged."""

    def truncate(place: Path) -> None:
        content = (place / CHECKPOINT).read_bytes()
        (place / CHECKPOINT).write_bytes(content[: len(content) // 2])

    return stop_sweep(signal.SIGINT, truncate)


def test_no_trial_is_lost_and_none_is_left_running(killed: Stopped, interrupted: Stopped) -> None:
    for stopped in (killed, interrupted):
        assert in_state(stopped.before, TrialState.RUNNING)
        assert [trial.state for trial in stopped.after] == [TrialState.COMPLETE] * 3


def test_finished_trials_do_not_run_again(killed: Stopped, interrupted: Stopped) -> None:
    for stopped in (killed, interrupted):
        done = in_state(stopped.before, TrialState.COMPLETE)
        assert done
        for number in done:
            assert not list(stopped.directory.glob(f"tune-0001/trial-{number:05d}"))
            assert stopped.after[number].datetime_complete == stopped.before[number].datetime_complete


def test_unfinished_trials_keep_their_reports(killed: Stopped) -> None:
    for before, after in zip(killed.before, killed.after, strict=False):
        assert before.intermediate_values.items() <= after.intermediate_values.items()
        assert sorted(after.intermediate_values) == list(range(4, 61, 4))


def test_unfinished_trials_go_on_from_their_last_checkpoint(killed: Stopped) -> None:
    assert killed.steps
    for number, steps in killed.steps.items():
        assert steps[0] > 0
        assert _iterations(killed.directory, "tune-0001", number) == max((60 - steps[0]) // 4, 1)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(interrupted: Stopped) -> None:
    assert interrupted.steps
    for number, steps in interrupted.steps.items():
        assert len(steps) > 1
        assert _iterations(interrupted.directory, "tune-0001", number) == max((60 - steps[1]) // 4, 1)


def test_sets_are_those_of_uninterrupted_distillations(killed: Stopped, interrupted: Stopped, dataset: Dataset) -> None:
    for stopped in (killed, interrupted):
        for number in stopped.steps:
            kept = kept_set(stopped.directory, number)
            alone = uninterrupted(dataset, kept.manifest.distill_config, number)
            assert same_tensors(kept, alone)
            assert stopped.after[number].value == alone.manifest.scores[0].mean


def test_ctrl_c_ends_soon_with_status_130_and_says_how_to_go_on(interrupted: Stopped) -> None:
    assert interrupted.status == 130
    assert interrupted.seconds < 20
    assert "ddray: interrupted" in interrupted.error and "--resume" in interrupted.error
    assert "Traceback" not in interrupted.error and "Tuner.restore" not in interrupted.error


def test_the_winner_is_confirmed_after_a_resume(killed: Stopped) -> None:
    assert killed.outcome.distilled is not None and killed.outcome.distilled.manifest.test_looks() == 1


def test_more_trials_extend_a_sweep(killed: Stopped, new_record: NewRecord, tmp_path: Path) -> None:
    outcome = _go_on(killed, tmp_path, new_record(), trials=4)
    trials = told(tmp_path / "s")
    assert in_state(trials, TrialState.COMPLETE) == [0, 1, 2, 3] == [trial.number for trial in outcome.trials]
    done = [trial.datetime_complete for trial in killed.after]
    assert [trial.datetime_complete for trial in trials[:3]] == done
    assert sorted(p.name for p in (tmp_path / "s").glob("tune-0002/trial-*")) == ["trial-00003"]


def test_trials_that_the_clock_stops_are_taken_up_again(killed: Stopped, new_record: NewRecord, tmp_path: Path) -> None:
    uri = new_record()
    outcome = _go_on(killed, tmp_path, uri, trials=500, time_budget=3.0)
    trials = told(tmp_path / "s")
    cut = in_state(trials, TrialState.RUNNING)
    assert 3 < len(trials) < 500 and cut and outcome.winner is not None
    assert outcome.left == 500 - len(in_state(trials, TrialState.COMPLETE))
    runs = MlflowClient(uri, uri).search_runs(["1"], "tags.`ddray.status` = 'interrupted'")
    assert sorted(int(run.data.tags["ddray.trial"]) for run in runs) == cut and {r.info.status for r in runs} == {"KILLED"}
    again = search(killed.space, storage=str(tmp_path), tracking_uri=uri, resume=True, trials=len(trials))
    assert in_state(told(tmp_path / "s"), TrialState.RUNNING) == [] and again.left == 0


def _go_on(stopped: Stopped, folder: Path, uri: str, **options: Any) -> Outcome:
    """Resume a copy of a sweep, with an empty record."""
    shutil.copytree(stopped.directory, folder / "s")
    return search(stopped.space, storage=str(folder), name="s", tracking_uri=uri, resume=True, **options)


def _half_way(directory: Path) -> bool:
    """A trial is finished, and those that run have two checkpoints or more, but are far from their end."""
    try:
        with closing(sqlite3.connect(f"file:{directory / 'study.db'}?mode=ro", uri=True)) as connection:
            states = dict(connection.execute("SELECT number, state FROM trials").fetchall())
    except sqlite3.OperationalError:  # the driver is just making it
        return False
    running = [number for number, state in states.items() if state == "RUNNING"]
    steps = [_iterations(directory, "tune-0000", number) for number in running]
    return "COMPLETE" in states.values() and bool(steps) and all(2 <= step <= 8 for step in steps)


def _wait(driver: subprocess.Popen[bytes], condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert driver.poll() is None, "the driver has ended by itself"
        assert time.monotonic() < end, "the driver did not come there in time"
        time.sleep(0.02)


def _step(place: Path) -> int:
    with safe_open(place / CHECKPOINT, framework="pt") as file:
        return int(json.loads(file.metadata()["numbers"])["step"])


def _iterations(directory: Path, run: str, number: int) -> int:
    """How many steps of Tune, rung intervals, a run took for a trial: its checkpoints are counted from 0."""
    places = directory.glob(f"{run}/trial-{number:05d}/checkpoint_*/{CHECKPOINT}")
    return 1 + max((int(place.parent.name.removeprefix("checkpoint_")) for place in places), default=-1)

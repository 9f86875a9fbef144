"""Workers that die, trials that raise, records that fail: the sweep goes on."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from optuna.trial import TrialState

from ddray.data import Dataset
from ddray.errors import RecordError
from ddray.sweep import Outcome, search
from ddray.sweep.execute import slots
from ddray.sweep.project import Projection
from ddray.sweep.spec import read
from ddray.sweep.study import open_study
from ddray.tracking.sqlite import sqlite_file
from tests.sweep.conftest import Finished, NewRecord
from tests.sweep.sweeps import in_state, kept_set, noted, same_tensors, save_space, spied, told, uninterrupted

KILLED, CRASHING = 0, 1


@dataclass(frozen=True)
class Survived:
    outcome: Outcome
    directory: Path
    log: Path


@pytest.fixture(scope="module")
def survived(
    local_ray: None,
    data: Path,
    new_record: NewRecord,
    tmp_path_factory: pytest.TempPathFactory,
) -> Survived:
    """Three trials: the first one's worker is killed once, the second one always raises."""
    folder = tmp_path_factory.mktemp("survived")
    space = save_space(folder / "x.yaml", data, fixed={}, search={"outer.lr": {"float": [0.01, 0.1]}}, trials=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ddray.sweep.execute.DistillTrial", spied(folder / "log", KILLED, CRASHING))
        patch.setattr("ddray.sweep.execute._TRIES_AFTER_A_CRASH", 1)  # a worker takes seconds to start
        outcome = search(space, storage=str(folder), name="s", tracking_uri=new_record(), max_concurrent=1)
    return Survived(outcome, folder / "s", folder / "log")


def test_a_trial_whose_worker_was_killed_goes_on_from_its_checkpoint(survived: Survived) -> None:
    steps = noted(survived.log, "step", KILLED)
    assert [step["before"] for step in steps] == [0, 4, 8]
    assert steps[0]["pid"] != steps[1]["pid"] == steps[2]["pid"]
    assert survived.log.with_suffix(".killed").exists()


def test_it_ends_with_the_set_of_one_that_was_not_killed(survived: Survived, dataset: Dataset) -> None:
    kept = kept_set(survived.directory, KILLED)
    assert same_tensors(kept, uninterrupted(dataset, kept.manifest.distill_config, KILLED))


def test_a_trial_that_always_crashes_is_tried_again_and_told_as_failed(survived: Survived) -> None:
    trial = told(survived.directory)[CRASHING]
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["end"] == "failed" and "RuntimeError: no luck" in trial.user_attrs["note"]
    begun = noted(survived.log, "setup", CRASHING) + noted(survived.log, "reset", CRASHING)
    assert len(begun) == 2 and noted(survived.log, "step", CRASHING) == []


def test_the_others_are_finished(survived: Survived) -> None:
    assert in_state(told(survived.directory), TrialState.COMPLETE) == [KILLED, 2]
    assert survived.outcome.winner is not None and survived.outcome.distilled is not None


def test_a_record_that_fails_while_trials_run_is_said_once(
    finished: Finished, dataset: Dataset, new_record: NewRecord, capfd: pytest.CaptureFixture[str]
) -> None:
    uri, spec = new_record(), read(finished.space)
    study = open_study(finished.directory, spec, None, 0, dataset.digests(), resume=True)  # type: ignore[arg-type]
    projection = Projection(uri, spec, study, finished.directory, dataset)
    number = finished.outcome.trials[0].number
    _run_sql(uri, "ALTER TABLE metrics RENAME TO elsewhere")
    projection.record(number)
    projection.record(number)
    error = capfd.readouterr().err
    assert error.count("ddray: the record cannot be written") == 1 and error.count("\n") == 1
    with pytest.raises(RecordError, match="--resume --name kinds"):
        projection.record_all()
    _run_sql(uri, "ALTER TABLE elsewhere RENAME TO metrics")
    projection.record_all()
    assert all(projection.recorder.run_id(trial.number) for trial in finished.outcome.trials)


def test_a_winner_that_cannot_be_registered_is_one_line(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MlflowException("no space left\nand a long story")

    again = {"storage": str(finished.directory.parent), "name": "kinds", "tracking_uri": finished.uri, "resume": True}
    with monkeypatch.context() as patch, pytest.raises(RecordError, match=r"no space left; .* --resume --name kinds"):
        patch.setattr("ddray.tracking.catalog.entries", lambda _: [])
        patch.setattr("ddray.tracking.catalog._add", full)
        search(finished.space, **again)
    assert search(finished.space, **again).registered is not None


def _run_sql(uri: str, statement: str) -> None:
    file = sqlite_file(uri)
    assert file is not None
    with closing(sqlite3.connect(file, timeout=30)) as connection:
        connection.execute(statement)
        connection.commit()


@pytest.mark.parametrize(
    ("have", "need", "expected"),
    [
        ({"CPU": 4.0}, {"CPU": 1.0, "GPU": 0.0}, 4),
        ({"CPU": 16.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": 0.1}, 10),
        ({"CPU": 16.0, "GPU": 2.0}, {"CPU": 1.0, "GPU": 0.25}, 8),
        ({"CPU": 4.0}, {"CPU": 8.0, "GPU": 0.0}, 0),
        ({"CPU": 4.0}, {"CPU": 1.0, "GPU": 1.0}, 0),
        ({"CPU": 4.0, "memory": 16e9}, {"CPU": 1.0, "memory": 0}, 4),
        ({"CPU": 4.0, "memory": 16e9}, {"CPU": 1.0, "memory": 6e9}, 2),
    ],
)
def test_trials_that_fit_into_a_node(have: dict[str, float], need: dict[str, float], expected: int) -> None:
    assert slots(have, need) == expected

"""A sweep's runs, written to a real MLflow on SQLite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts

from ddray.distillation import load
from ddray.errors import RequestError
from ddray.tracking import Recorder, SweepEntry, TrialEntry

SWEEP = SweepEntry("s1", "toy", "LeNet", "random", 7, "/sweeps/s1", "dataset: toy\n", {"train": "ab"})
TRIAL = TrialEntry(
    number=3,
    status="finished",
    params={"synthetic.lr": 0.1, "labels.learn": True, "outer.clip": None, "synthetic.classes": (1, 2)},
    searched=("synthetic.lr",),
    curves={100: {"val_accuracy": 0.5, "loss": 2.0}, 200: {"val_accuracy": 0.6, "loss": 1.5}},
    value=0.61,
    seconds=12.5,
    started=1_700_000_000.25,
    ended=1_700_000_020.0,
)


@pytest.fixture
def client(uri: str) -> MlflowClient:
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def everything(client: MlflowClient) -> dict[str, Any]:
    """All that the record holds, apart from the parent's end time."""
    ids = [e.experiment_id for e in client.search_experiments()]
    found = {}
    for run in client.search_runs(ids):
        history = {
            key: [(m.step, m.timestamp, m.value) for m in client.get_metric_history(run.info.run_id, key)]
            for key in run.data.metrics
        }
        found[run.info.run_id] = (run.info.status, run.data.params, run.data.tags, history)
    return found


def test_a_trial_is_a_child_with_parameters_and_curves(uri: str, client: MlflowClient) -> None:
    recorder = Recorder(uri, SWEEP)
    recorder.trial(TRIAL)
    run = client.get_run(recorder.run_id(3))
    assert run.data.tags["mlflow.parentRunId"] == recorder.run_id()
    expected = {
        "sweep": "s1",
        "trial": "3",
        "status": "finished",
        "dataset": "toy",
        "arch": "LeNet",
        "source": "random",
    }
    assert {key: run.data.tags[f"ddray.{key}"] for key in expected} == expected
    assert run.data.tags["ddray.searched"] == "synthetic.lr"
    assert run.data.params == {
        "synthetic.lr": "0.1", "labels.learn": "true", "outer.clip": "null", "synthetic.classes": "[1, 2]",
    }  # fmt: skip
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "val_accuracy")] == [
        (100, 0.5),
        (200, 0.6),
    ]
    assert (run.data.metrics["value"], run.data.metrics["seconds"]) == (0.61, 12.5)
    assert (run.info.start_time, run.info.end_time) == (1_700_000_000_250, 1_700_000_020_000)


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        ("running", "RUNNING"),
        ("finished", "FINISHED"),
        ("pruned", "KILLED"),
        ("diverged", "KILLED"),
        ("failed", "FAILED"),
    ],
)
def test_a_status_is_mapped(uri: str, client: MlflowClient, status: Any, shown: str) -> None:
    recorder = Recorder(uri, SWEEP)
    recorder.trial(replace(TRIAL, status=status))
    run = client.get_run(recorder.run_id(3))
    assert (run.info.status, run.data.tags["ddray.status"]) == (shown, status)


def test_a_crashed_trial_that_is_tried_again_runs_again(uri: str, client: MlflowClient) -> None:
    recorder = Recorder(uri, SWEEP)
    recorder.trial(replace(TRIAL, status="failed", note="the worker died"))
    recorder.trial(replace(TRIAL, status="running"))
    assert client.get_run(recorder.run_id(3)).info.status == "RUNNING"


def test_the_note_says_how_a_trial_ended(uri: str, client: MlflowClient) -> None:
    recorder = Recorder(uri, SWEEP)
    recorder.trial(replace(TRIAL, status="pruned", note="asha at step 200"))
    assert client.get_run(recorder.run_id(3)).data.tags["ddray.note"] == "asha at step 200"


def test_every_call_twice_changes_nothing(uri: str, client: MlflowClient, make_set: Callable[..., Path]) -> None:
    recorder, place = Recorder(uri, SWEEP), make_set()
    calls: list[Callable[[Recorder], None]] = [
        lambda r: r.trial(TRIAL),
        lambda r: r.artefacts(3, place),
        lambda r: r.finish("finished", {"best": 0.61}),
    ]
    for call in calls:
        call(recorder)
    once = everything(client)
    for call in calls:
        call(recorder)
    assert everything(client) == once


def test_a_second_recorder_takes_the_sweep_up_and_appends_nothing(
    uri: str, client: MlflowClient, make_set: Callable[..., Path]
) -> None:
    first, place = Recorder(uri, SWEEP), make_set()
    first.trial(TRIAL)
    first.artefacts(3, place)
    before = everything(client)
    second = Recorder(uri, SWEEP)
    second.trial(TRIAL)
    second.artefacts(3, place)
    assert everything(client) == before
    assert (second.run_id(), second.run_id(3)) == (first.run_id(), first.run_id(3))


def test_points_keep_their_time_when_a_later_recorder_is_told_another_start(uri: str, client: MlflowClient) -> None:
    Recorder(uri, SWEEP).trial(TRIAL)
    second = Recorder(uri, SWEEP)
    second.trial(replace(TRIAL, started=TRIAL.started + 60))
    assert len(client.get_metric_history(second.run_id(3), "loss")) == 2


def test_taking_up_reopens_the_sweep(uri: str, client: MlflowClient) -> None:
    first = Recorder(uri, SWEEP)
    first.finish("interrupted", {})
    assert client.get_run(first.run_id()).info.status == "KILLED"
    second = Recorder(uri, SWEEP)
    run = client.get_run(second.run_id())
    assert (run.info.status, run.data.tags["ddray.status"]) == ("RUNNING", "running")


def test_a_sweep_of_the_same_name_elsewhere_is_another_sweep(uri: str) -> None:
    first, second = Recorder(uri, SWEEP), Recorder(uri, replace(SWEEP, directory="/elsewhere/s1"))
    assert first.run_id() != second.run_id()


def test_a_sweep_that_was_moved_is_taken_up_again(uri: str, client: MlflowClient) -> None:
    before = Recorder(uri, SWEEP)
    after = Recorder(uri, replace(SWEEP, directory="/elsewhere/s1", formerly=SWEEP.directory))
    assert before.run_id() == after.run_id() == Recorder(uri, replace(SWEEP, directory="/elsewhere/s1")).run_id()


def test_sweeps_of_a_dataset_and_architecture_share_an_experiment(uri: str, client: MlflowClient) -> None:
    ids = [
        client.get_run(Recorder(uri, sweep).run_id()).info.experiment_id
        for sweep in (SWEEP, replace(SWEEP, name="s2"), replace(SWEEP, arch="ConvNet3"))
    ]
    assert ids[0] == ids[1] != ids[2]
    experiment = client.get_experiment(ids[0])
    assert experiment.name == "ddray/toy/LeNet"
    assert "toy" in experiment.tags["mlflow.note.content"]


def test_an_experiment_that_another_sweep_makes_meanwhile_is_shared(
    uri: str, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, found = Recorder(uri, SWEEP), [None]
    look = MlflowClient.get_experiment_by_name
    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", lambda *given: found.pop() if found else look(*given))
    second = Recorder(uri, replace(SWEEP, name="s2", directory="/sweeps/s2"))
    runs = [client.get_run(recorder.run_id()) for recorder in (first, second)]
    assert found == [] and runs[0].info.experiment_id == runs[1].info.experiment_id


def test_a_deleted_experiment_is_restored(uri: str, client: MlflowClient) -> None:
    Recorder(uri, SWEEP)
    client.delete_experiment(client.get_experiment_by_name("ddray/toy/LeNet").experiment_id)
    Recorder(uri, SWEEP).trial(TRIAL)
    assert client.get_experiment_by_name("ddray/toy/LeNet").lifecycle_stage == "active"


def test_curves_grow(uri: str, client: MlflowClient) -> None:
    recorder = Recorder(uri, SWEEP)
    early = {100: TRIAL.curves[100]}
    recorder.trial(replace(TRIAL, status="running", curves=early, value=None, ended=None))
    recorder.trial(TRIAL)
    assert [m.step for m in client.get_metric_history(recorder.run_id(3), "loss")] == [100, 200]


def test_numbers_that_are_not_finite_are_left_out(uri: str, client: MlflowClient) -> None:
    recorder = Recorder(uri, SWEEP)
    curves = {1: {"loss": 1.0}, 2: {"loss": float("nan"), "val_accuracy": float("inf")}}
    recorder.trial(replace(TRIAL, status="diverged", curves=curves, value=float("nan")))
    assert client.get_run(recorder.run_id(3)).data.metrics == {"loss": 1.0, "seconds": 12.5}


def test_batches_stay_within_the_limits_of_mlflow(uri: str, client: MlflowClient) -> None:
    recorder = Recorder(uri, SWEEP)
    params = {f"key.{i}": i for i in range(230)} | {"long": "x" * 7000}
    curves = {step: {"loss": 1.0, "val_accuracy": 0.5} for step in range(1100)}
    recorder.trial(replace(TRIAL, params=params, curves=curves, note="n" * 9000))
    run = client.get_run(recorder.run_id(3))
    assert len(run.data.params) == 231
    assert (len(run.data.params["long"]), run.data.params["long"][-1]) == (6000, "…")
    assert len(run.data.tags["ddray.note"]) == 8000
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 1100


def test_the_set_and_its_picture_are_kept_beside_the_database(
    uri: str, client: MlflowClient, make_set: Callable[..., Path], tmp_path: Path
) -> None:
    recorder, place = Recorder(uri, SWEEP), make_set()
    recorder.trial(TRIAL)
    recorder.artefacts(3, place)
    run_id = recorder.run_id(3)
    assert [item.path for item in client.list_artifacts(run_id)] == ["distilled_set", "preview.png"]
    assert list((tmp_path / "my sweeps" / "mlartifacts").rglob("preview.png"))
    home = download_artifacts(run_id=run_id, artifact_path="distilled_set", tracking_uri=uri)
    assert load(home).manifest == load(place).manifest


def test_a_damaged_set_is_refused(uri: str, client: MlflowClient, make_set: Callable[..., Path]) -> None:
    recorder, place = Recorder(uri, SWEEP), make_set()
    recorder.trial(TRIAL)
    (place / "distilled.safetensors").write_bytes(b"")
    with pytest.raises(RequestError, match="checksum"):
        recorder.artefacts(3, place)
    assert not client.list_artifacts(recorder.run_id(3))


def test_finishing_again_updates_only_what_changed(uri: str, client: MlflowClient, tmp_path: Path) -> None:
    recorder = Recorder(uri, SWEEP)
    (tmp_path / "curves.png").write_bytes(b"picture")
    recorder.finish("interrupted", {"best": 0.5, "trials": 2.0, "odd": float("nan")}, [tmp_path / "curves.png"])
    recorder.finish("finished", {"best": 0.7, "trials": 2.0})
    run = client.get_run(recorder.run_id())
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"best": 0.7, "trials": 2.0})
    assert len(client.get_metric_history(recorder.run_id(), "trials")) == 1
    assert {item.path for item in client.list_artifacts(recorder.run_id())} == {"curves.png", "space.yaml"}


def test_an_unknown_trial_has_no_run(uri: str) -> None:
    with pytest.raises(KeyError):
        Recorder(uri, SWEEP).run_id(99)

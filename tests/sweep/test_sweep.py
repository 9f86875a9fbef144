"""A real sweep: what its study, its record and its winner say."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from mlflow import MlflowClient
from optuna.trial import FrozenTrial, TrialState

import ddray
from ddray.data import Dataset
from ddray.distillation.distilled_set import load
from ddray.errors import RequestError
from ddray.sweep import SweepRequest, prepare, run, search
from ddray.sweep.storage import sole_driver
from ddray.sweep.study import end_of
from ddray.tracking import leaderboard
from tests.sweep.conftest import Finished, NewRecord
from tests.sweep.sweeps import kept_set, noted, same_tensors, save_blobs, save_space, told, uninterrupted

STEPS, INTERVAL = 12, 4


def by_end(sweep: Finished) -> dict[str, list[FrozenTrial]]:
    ends: dict[str, list[FrozenTrial]] = {}
    for trial in told(sweep.directory):
        ends.setdefault(end_of(trial), []).append(trial)
    return ends


def test_trials_of_every_kind_add_up_to_what_was_asked_for(finished: Finished) -> None:
    ends = by_end(finished)
    assert set(ends) == {"finished", "pruned", "diverged", "rejected"}
    assert sum(len(trials) for end, trials in ends.items() if end != "rejected") == 10
    assert len(finished.outcome.trials) == 10


def test_a_finished_trial_is_complete_with_a_value_of_its_own(finished: Finished) -> None:
    for trial in by_end(finished)["finished"]:
        assert trial.state == TrialState.COMPLETE
        assert sorted(trial.intermediate_values) == [4, 8, 12]
        assert trial.value == kept_set(finished.directory, trial.number).manifest.scores[0].mean


def test_an_early_stopped_trial_is_pruned_with_its_reports(finished: Finished) -> None:
    for trial in by_end(finished)["pruned"]:
        assert trial.state == TrialState.PRUNED
        assert 0 < max(trial.intermediate_values) < STEPS
        assert "successive halving" in trial.user_attrs["note"]
        assert all(violation <= 0 for violation in trial.constraints.values())


def test_a_diverged_trial_is_pruned_with_a_violated_constraint(finished: Finished) -> None:
    for trial in by_end(finished)["diverged"]:
        assert trial.state == TrialState.PRUNED
        assert trial.constraints["finite"] > 0
        assert "is not finite at outer step" in trial.user_attrs["note"]


def test_a_suggestion_that_breaks_a_constraint_is_never_started(finished: Finished) -> None:
    started = {line["number"] for event in ("setup", "reset") for line in noted(finished.log, event)}
    for trial in by_end(finished)["rejected"]:
        assert trial.state == TrialState.PRUNED
        assert trial.constraints["stored_samples"] > 0
        assert trial.params["synthetic.steps"] > 3
        assert trial.number not in started


def test_the_record_mirrors_the_study(finished: Finished) -> None:
    client = MlflowClient(finished.uri, finished.uri)
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    trials = {int(run.data.tags["ddray.trial"]): run for run in runs if "ddray.trial" in run.data.tags}
    expected = {t.number: end_of(t) for t in finished.outcome.trials}
    assert {number: run.data.tags["ddray.status"] for number, run in trials.items()} == expected
    status = {"finished": "FINISHED", "pruned": "KILLED", "diverged": "KILLED"}
    assert {number: run.info.status for number, run in trials.items()} == {n: status[e] for n, e in expected.items()}
    for trial in finished.outcome.trials:
        curve = client.get_metric_history(trials[trial.number].info.run_id, "loss")
        assert [point.step for point in curve] == sorted(trial.intermediate_values)
    (sweep,) = [run for run in runs if run.data.tags["ddray.kind"] == "sweep"]
    assert sweep.info.status == "FINISHED" and "test_accuracy" in sweep.data.metrics


def test_the_winner_is_confirmed_by_networks_of_its_own_and_tested_once(finished: Finished) -> None:
    outcome = finished.outcome
    assert outcome.winner is not None and outcome.distilled is not None and outcome.directory is not None
    complete = by_end(finished)["finished"]
    assert outcome.winner.value == max(trial.value or 0.0 for trial in complete)
    manifest = load(outcome.directory).manifest
    counts = {(score.split, score.n) for score in manifest.scores if score.protocol == "as-distilled"}
    assert counts == {("validation", 20), ("validation", 100), ("test", 100)}
    assert manifest.test_looks() == 1
    assert outcome.picture is not None and outcome.picture.is_file()


def test_the_winner_is_the_best_of_its_kind_in_the_registry(finished: Finished, dataset: Dataset) -> None:
    (row,) = leaderboard(finished.uri)
    assert row.is_best and row.trial == str(finished.outcome.winner.number if finished.outcome.winner else None)
    fetched = ddray.best(dataset.name, row.arch, tracking_uri=finished.uri)
    assert finished.outcome.distilled is not None and same_tensors(fetched, finished.outcome.distilled)


def test_a_trial_is_a_distillation_like_any_other(finished: Finished, dataset: Dataset) -> None:
    assert finished.outcome.winner is not None
    number, kept = finished.outcome.winner.number, kept_set(finished.directory, finished.outcome.winner.number)
    alone = uninterrupted(dataset, kept.manifest.distill_config, number)
    assert same_tensors(kept, alone) and kept.manifest.scores[0].mean == alone.manifest.scores[0].mean


def test_trials_share_a_worker_and_the_memory_of_the_data(finished: Finished) -> None:
    setups, resets = noted(finished.log, "setup"), noted(finished.log, "reset")
    assert len(setups) + len(resets) == 10
    assert len({line["pid"] for line in setups + resets}) == len(setups) == 1
    assert "plasma" in setups[0]["memory"]


def test_every_outer_step_was_taken_once(finished: Finished) -> None:
    for trial in by_end(finished)["finished"]:
        assert [line["before"] for line in noted(finished.log, "step", trial.number)] == [0, 4, 8]


def test_what_cannot_be_drawn_is_searched_all_the_same(tmp_path: Path, new_record: NewRecord) -> None:
    data = save_blobs(tmp_path / "data.npz", members=40, shape=(2, 8, 8))
    space = save_space(tmp_path / "space.yaml", data, {}, {"outer.lr": {"float": [0.01, 0.1]}})
    outcome = search(space, trials=1, storage=str(tmp_path / "sweeps"), tracking_uri=new_record())
    assert outcome.registered is not None and outcome.picture is None
    runs = MlflowClient(outcome.tracking_uri, outcome.tracking_uri).search_runs(["1"], "tags.`ddray.kind` = 'trial'")
    assert [set(run.data.tags) >= {"ddray.sha256"} for run in runs] == [True]


def test_resuming_a_finished_sweep_changes_nothing(finished: Finished) -> None:
    before = [(trial.number, trial.state, trial.value) for trial in told(finished.directory)]
    again = search(
        finished.space, storage=str(finished.directory.parent), name="kinds", tracking_uri=finished.uri, resume=True
    )
    assert [(trial.number, trial.state, trial.value) for trial in told(finished.directory)] == before
    assert again.distilled is not None and again.distilled.manifest.test_looks() == 1
    assert len(leaderboard(finished.uri)) == 1


def test_a_sweep_is_run_by_one_process_at_a_time(finished: Finished) -> None:
    again = {"storage": str(finished.directory.parent), "name": "kinds", "tracking_uri": finished.uri, "resume": True}
    with sole_driver(finished.directory), pytest.raises(RequestError, match=r"--resume: 'kinds'.*no other process"):
        search(finished.space, **again)
    search(finished.space, **again)


def test_a_sweep_interrupted_while_its_winner_is_confirmed_is_recorded_as_such(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    again = {"storage": str(finished.directory.parent), "name": "kinds", "tracking_uri": finished.uri, "resume": True}
    client = MlflowClient(finished.uri, finished.uri)

    def said() -> tuple[str, str]:
        runs = client.search_runs([e.experiment_id for e in client.search_experiments()], "tags.`ddray.kind` = 'sweep'")
        return runs[0].info.status, runs[0].data.tags["ddray.status"]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        # By its module: as an attribute of the package, `run` is the function.
        patch.setattr(importlib.import_module("ddray.sweep.run"), "confirm", interrupted)
        search(finished.space, **again)
    assert said() == ("KILLED", "interrupted")
    search(finished.space, **again)
    assert said() == ("FINISHED", "finished")


def test_a_name_that_another_process_has_taken_meanwhile_is_refused(data: Path, new_record: NewRecord, tmp_path: Path) -> None:
    space = save_space(tmp_path / "x.yaml", data, fixed={}, search={})
    storage = tmp_path / "sweeps"
    prepared = prepare(SweepRequest(space, name="s", storage=storage, tracking_uri=new_record()))
    (storage / "s").mkdir(parents=True)
    with pytest.raises(RequestError, match="--name: 's' is refused: it is in use"):
        run(prepared)


def test_a_trial_that_no_node_can_hold_leaves_neither_sweep_nor_run(
    local_ray: None, data: Path, new_record: NewRecord, tmp_path: Path
) -> None:
    space, uri = save_space(tmp_path / "x.yaml", data, fixed={}, search={}), new_record()
    with pytest.raises(RequestError, match="a trial must fit in a node"):
        search(space, storage=str(tmp_path / "sweeps"), name="s", tracking_uri=uri, cpus_per_trial=64)
    client = MlflowClient(uri, uri)
    assert client.search_runs([e.experiment_id for e in client.search_experiments()]) == []
    assert not (tmp_path / "sweeps" / "s").exists()

"""The study as a sweep's memory, without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import IntDistribution
from optuna.trial import TrialState

from ddray.errors import RequestError
from ddray.sweep import study as study_module
from ddray.sweep.constraint import Problem
from ddray.sweep.spec import build
from ddray.sweep.storage import remembered
from ddray.sweep.study import Assignment, SweepStudy, end_of, open_study

PROBLEM = Problem(classes=3, input_shape=(1, 8, 8))
SPACE: dict[str, Any] = {
    "dataset": "digits",
    "arch": "LeNet",
    "fixed": {"outer.steps": 10, "outer.score_every": 2},
    "search": {
        "synthetic.steps": {"int": [1, 6]},
        "outer.lr": {"float": [0.001, 1.0], "log": True},
        "labels.learn": {"choice": [True, False]},
        "labels.softmax": {"choice": [True, False], "when": {"labels.learn": True}},
    },
    "constraints": ["stored_samples <= 9"],
}


def opened(directory: Path, *, seed: int = 0, resume: bool = False, **changes: Any) -> SweepStudy:
    directory.mkdir(exist_ok=True)
    return open_study(directory, build("x", SPACE | changes), PROBLEM, seed, {"train": "1"}, resume=resume)


def run_one(study: SweepStudy) -> Assignment:
    """Assign a trial and end it with a value that its parameters decide."""
    assignment = study.assign()
    study.end(assignment.number, "finished", value=assignment.config.outer.lr)
    return assignment


def test_suggestions_that_break_a_constraint_are_told_and_not_counted(tmp_path: Path) -> None:
    study = opened(tmp_path / "s")
    for _ in range(6):
        run_one(study)
    trials = study.study.get_trials()
    rejected = [trial for trial in trials if end_of(trial) == "rejected"]
    assert rejected and len(study.counted()) == 6 == len(trials) - len(rejected)
    for trial in rejected:
        assert trial.state == TrialState.PRUNED
        assert trial.constraints["stored_samples"] == (3 * trial.params["synthetic.steps"] - 9) / 9 > 0


def test_a_space_that_excludes_itself_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_module, "_MOST_REJECTIONS", 5)
    with pytest.raises(RequestError, match="5 suggestions broke them"):
        opened(tmp_path / "s", constraints=["stored_samples <= 2"]).assign()


def test_suggestions_follow_from_the_seed_and_the_study(tmp_path: Path) -> None:
    one, other = (opened(tmp_path / name) for name in "ab")
    third = opened(tmp_path / "c", seed=1)
    first = [run_one(one) for _ in range(8)]
    assert first == [run_one(other) for _ in range(8)]
    assert first[:2] != [run_one(third) for _ in range(2)]


def test_a_study_opened_again_suggests_what_it_would_have(tmp_path: Path) -> None:
    whole, broken = (opened(tmp_path / name) for name in "ab")
    expected = [run_one(whole) for _ in range(8)]
    found = [run_one(broken) for _ in range(7)]
    found.append(run_one(opened(tmp_path / "b", resume=True)))
    assert found == expected


@pytest.mark.parametrize("name", ["a%20b", "{here}"])
def test_a_study_lies_in_its_sweep_whatever_its_path(tmp_path: Path, name: str) -> None:
    run_one(opened(tmp_path / name))
    assert [path.name for path in (tmp_path / name).iterdir()] == ["study.db"]
    assert len(opened(tmp_path / name, resume=True).counted()) == 1
    assert remembered(tmp_path / name)["identity"]["seed"] == 0


def test_trials_differ_in_their_seeds(tmp_path: Path) -> None:
    study = opened(tmp_path / "s")
    assert len({run_one(study).seed for _ in range(5)}) == 5


def test_an_unfinished_trial_comes_back_as_it_was(tmp_path: Path) -> None:
    before = opened(tmp_path / "s")
    assigned = before.assign()
    before.report(assigned.number, 2, 0.5, loss=1.5, seconds=1.0)
    after = opened(tmp_path / "s", resume=True)
    assert before.unfinished() == [] and after.unfinished() == [assigned.number]
    assert after.resume(assigned.number) == assigned
    assert after.unfinished() == []


def test_a_trial_killed_while_it_was_suggested_keeps_what_it_has_and_gets_the_rest(tmp_path: Path) -> None:
    killed = opened(tmp_path / "s")
    asked = killed.study.ask()
    killed.study._storage.set_trial_param(asked._trial_id, "synthetic.steps", 2, IntDistribution(1, 6))
    taken_up = [opened(tmp_path / "s", resume=True).resume(0) for _ in range(2)]
    assert taken_up[0] is not None and taken_up[0] == taken_up[1]
    assert taken_up[0].config.synthetic.steps == 2


def test_a_trial_killed_before_its_rejection_is_rejected_now(tmp_path: Path) -> None:
    killed = opened(tmp_path / "s", search={}, constraints=[])
    killed.study.ask()
    after = opened(tmp_path / "t", search={}, constraints=["stored_samples <= 2"])
    after.study.add_trial(killed.study.trials[0])
    assert after.resume(0) is None
    assert end_of(after.study.trials[0]) == "rejected"


def test_a_look_reported_again_changes_nothing(tmp_path: Path) -> None:
    before = opened(tmp_path / "s")
    number = before.assign().number
    before.report(number, 2, 0.5, loss=1.5, seconds=1.0)
    after = opened(tmp_path / "s", resume=True)
    after.resume(number)
    after.report(number, 2, 0.6, loss=1.4, seconds=2.0)
    (trial,) = after.counted()
    assert trial.intermediate_values == {2: 0.5} and trial.user_attrs["seconds"] == 2.0


@pytest.mark.parametrize(
    ("end", "state"),
    [("finished", "COMPLETE"), ("pruned", "PRUNED"), ("diverged", "PRUNED"), ("failed", "FAIL")],
)
def test_ends_in_the_words_of_optuna(tmp_path: Path, end: study_module.End, state: str) -> None:
    study = opened(tmp_path / "s")
    number = study.assign().number
    study.end(number, end, value=0.5, note="why")
    (trial,) = study.counted()
    assert (trial.state.name, end_of(trial), trial.user_attrs["note"]) == (state, end, "why")
    assert not study.is_live(number) and study.unfinished() == []


def test_divergence_is_a_violation_that_a_sampler_sees(tmp_path: Path) -> None:
    study = opened(tmp_path / "s")
    study.end(study.assign().number, "diverged")
    (trial,) = study.counted()
    assert trial.constraints["finite"] > 0


def test_a_trial_ends_once(tmp_path: Path) -> None:
    study = opened(tmp_path / "s")
    number = study.assign().number
    study.end(number, "finished", value=0.5)
    study.end(number, "failed")
    (trial,) = study.counted()
    assert trial.value == 0.5 and end_of(trial) == "finished"


def test_halving_goes_on_over_a_resume(tmp_path: Path) -> None:
    asha = {"asha": {"grace_steps": 2, "reduction_factor": 2}}
    before = opened(tmp_path / "s", scheduler=asha)
    good, bad = before.assign().number, before.assign().number
    before.report(good, 2, 0.9, loss=1.5, seconds=1.0)
    assert not before.should_stop(good, 2)
    after = opened(tmp_path / "s", resume=True, scheduler=asha)
    after.resume(bad)
    after.report(bad, 2, 0.1, loss=1.5, seconds=1.0)
    assert after.should_stop(bad, 2)


def stopped_and_killed(directory: Path, asha: dict[str, Any]) -> int:
    """A trial that successive halving has stopped, of a driver that was killed before it could end it."""
    study = opened(directory, scheduler=asha)
    good, bad = study.assign().number, study.assign().number
    for number, value in ((good, 0.9), (bad, 0.1)):
        study.report(number, 2, value, loss=1.5, seconds=1.0)
        assert study.should_stop(number, 2) == (number == bad)
    study.end(good, "finished", value=0.9)
    return bad


def test_a_trial_that_was_to_stop_when_the_driver_was_killed_stops_at_the_same_report(tmp_path: Path) -> None:
    asha = {"asha": {"grace_steps": 2, "reduction_factor": 2}}
    bad = stopped_and_killed(tmp_path / "s", asha)
    after = opened(tmp_path / "s", resume=True, scheduler=asha)
    after.resume(bad)
    after.report(bad, 2, 0.1, loss=1.5, seconds=1.0)
    assert after.should_stop(bad, 2)


def test_a_trial_that_was_to_stop_is_not_run_again(tmp_path: Path) -> None:
    asha = {"asha": {"grace_steps": 2, "reduction_factor": 2}}
    bad = stopped_and_killed(tmp_path / "s", asha)
    after = opened(tmp_path / "s", resume=True, scheduler=asha)
    after.end_stopped()
    assert after.unfinished() == []
    trial = after.study.trials[bad]
    assert end_of(trial) == "pruned" and trial.user_attrs["note"] == "successive halving at outer step 2"


def test_the_best_of_equals_is_the_first(tmp_path: Path) -> None:
    study = opened(tmp_path / "s", search={}, constraints=[])
    for value in (0.5, 0.9, 0.9):
        study.end(study.assign().number, "finished", value=value)
    best = study.best()
    assert best is not None and best.number == 1


@pytest.mark.parametrize(
    ("changes", "key"),
    [({"seed": 1}, "--seed"), ({"fixed": {"outer.steps": 20, "outer.score_every": 2}}, "outer.steps"),
     ({"fixed": {**SPACE["fixed"], "outer.clip": 1.0}}, "outer.clip"), ({"constraints": []}, "constraints"),
     ({"search": {**SPACE["search"], "outer.lr": {"float": [0.1, 1.0]}}}, "outer.lr")],
)  # fmt: skip
def test_another_sweep_is_not_resumed(tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    opened(tmp_path / "s")
    with pytest.raises(RequestError) as refused:
        opened(tmp_path / "s", resume=True, **changes)
    assert refused.value.key == key


def test_a_study_from_before_a_setting_existed_is_resumed(tmp_path: Path) -> None:
    study = opened(tmp_path / "s").study
    identity = dict(study.user_attrs["identity"])
    engine = {key: value for key, value in identity["space"]["engine"].items() if key not in ("tf32", "outer_layout")}
    study.set_user_attr("identity", {**identity, "space": {**identity["space"], "engine": engine}})
    opened(tmp_path / "s", resume=True)
    with pytest.raises(RequestError, match="engine"):
        opened(tmp_path / "s", resume=True, engine={"tf32": True})


def test_a_sweep_of_texts_is_resumed_with_its_own_word_vectors(tmp_path: Path) -> None:
    def reopened(name: str, vectors: dict[str, str], *, resume: bool = True) -> SweepStudy:
        (tmp_path / name).mkdir(exist_ok=True)
        return open_study(tmp_path / name, build("x", SPACE), PROBLEM, 0, {"train": "1"}, vectors, resume=resume)

    reopened("texts", {"{}": "1"}, resume=False)
    reopened("texts", {"{}": "1"})
    with pytest.raises(RequestError, match="--resume: 'the word vectors' is refused") as refused:
        reopened("texts", {"{}": "2"})
    assert "\n" not in str(refused.value)
    reopened("from before they were recorded", {}, resume=False)
    reopened("from before they were recorded", {"{}": "2"})


def test_size_and_resources_may_change(tmp_path: Path) -> None:
    opened(tmp_path / "s")
    assert opened(tmp_path / "s", resume=True, trials=99, resources={"cpu": 2}).counted() == []

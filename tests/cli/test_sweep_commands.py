"""The commands around a sweep, on a real one of two trials that `python run_search.py` ran."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import optuna
import pytest
from command_line import ROOT, Run, Sweep, python, tree
from mlflow import MlflowClient

import ddray


def test_a_sweep_says_how_it_ended(sweep: Sweep) -> None:
    code, out, err = sweep.ran.returncode, sweep.ran.stdout, sweep.ran.stderr
    assert code == 0, err
    assert out.startswith("toy: 2 trials (")
    assert len(re.findall(r"^ +\d+ +\d+\.\d\d % +\d+ ", out, re.MULTILINE)) >= 1
    for row in ("the winner", "real, random", "real, average"):
        assert re.search(rf"{row} +test +\d+\.\d\d ± \d+\.\d\d \(n = 100\)", out), "never broken over lines"
    lines = dict(re.findall(r"^(set|picture|open|fetch) +(.*)$", out, re.MULTILINE))
    assert lines["open"] == f"mlflow ui --backend-store-uri sqlite:///{sweep.home}/record/mlflow.db"
    assert lines["fetch"].startswith("ddray best --dataset ") and lines["fetch"].endswith("--out best")
    assert Path(lines["picture"]).is_file() and Path(lines["set"].split("  ")[0]).is_dir()


def test_progress_goes_to_standard_error(sweep: Sweep) -> None:
    assert "trials done" in sweep.ran.stderr and "trials done" not in sweep.ran.stdout


def test_a_sweep_leaves_its_storage_and_its_record_alone_behind(sweep: Sweep) -> None:
    assert sorted(path.name for path in sweep.home.iterdir() if path.name != "__pycache__") == [
        "record", "space.yaml", "sweeps", "tiny_net.py",
    ]  # fmt: skip
    assert [path.name for path in (sweep.home / "sweeps").iterdir()] == ["toy"]


def test_the_printed_command_fetches_the_winner(sweep: Sweep, run: Run, work: Path) -> None:
    line = re.search(r"^fetch +ddray (.*)$", sweep.ran.stdout, re.MULTILINE)
    assert line is not None
    code, out, err = run(*line[1].split())
    assert (code, out) == (0, "best\n") and "as-distilled, test" in err
    assert tree(work / "best") == tree(sweep.home / "sweeps" / "toy" / "best")


def test_python_fetches_the_same_set(record: Sequence[str], npz: Path, sweep: Sweep) -> None:
    found = ddray.best(str(npz), "tiny_net:TinyNet", tracking_uri=record[1])
    assert found.manifest.sha256 == ddray.load(sweep.home / "sweeps" / "toy" / "best").manifest.sha256


def test_best_says_what_there_is_instead(record: Sequence[str], run: Run) -> None:
    code, _, err = run("best", "--dataset", "digits", "--arch", "LeNet", *record)
    assert code == 2 and "toy.npz × tiny_net:TinyNet × random" in err and len(err.splitlines()) == 1


def test_best_of_too_few_samples_is_refused(record: Sequence[str], run: Run, npz: Path) -> None:
    flags = ("--dataset", npz, "--arch", "tiny_net:TinyNet", "--max-samples", 1)
    code, _, err = run("best", *flags, *record)
    assert code == 2 and "--max-samples: 1" in err and "the smallest set" in err


def test_best_does_not_overwrite_what_is_not_a_set(record: Sequence[str], run: Run, npz: Path, work: Path) -> None:
    (work / "mine").write_text("mine", encoding="utf-8")
    code, _, err = run("best", "--dataset", npz, "--arch", "tiny_net:TinyNet", "--out", "mine", *record)
    assert code == 2 and "--out: 'mine'" in err
    assert tree(work) == {"mine": b"mine"}


def test_the_leaderboard_shows_the_winner(record: Sequence[str], run: Run) -> None:
    code, out, _ = run("leaderboard", *record)
    assert code == 0 and re.search(
        r"1 \(best\) +\d +\d+\.\d\d ± \d+\.\d\d \(100\) +\d+\.\d\d ± \d+\.\d\d \(100\) +toy", out
    )
    assert max(len(line) for line in out.splitlines()[1:]) <= 80


def test_the_leaderboard_is_one_json_document(record: Sequence[str], run: Run) -> None:
    (entry,) = json.loads(run("leaderboard", "--json", "--arch", "tiny_net:TinyNet", *record).out)
    assert entry["sweep"] == "toy" and entry["is_best"] and entry["test_looks"] > 0
    assert json.loads(run("leaderboard", "--json", "--arch", "LeNet", *record).out) == []


def test_a_registered_set_is_evaluated_and_drawn_by_its_name(record: Sequence[str], run: Run) -> None:
    name = json.loads(run("leaderboard", "--json", *record).out)[0]["name"]
    flags = ("--nets", 2, "--arch", "tiny_net:TinyNet", "--no-baselines", "--json")
    assert json.loads(run("evaluate", f"models:/{name}@best", *flags, *record).out)["scores"][0]["n"] == 2
    assert run("preview", f"models:/{name}/1", "--out", "best.png", *record).out == "best.png\n"


def test_the_environment_names_the_record_as_the_flag_does(
    record: Sequence[str], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", record[1])
    assert "toy" in run("leaderboard").out


def test_a_finished_sweep_is_resumed_without_its_space(run: Run, sweep_copy: Path) -> None:
    # Its space says five trials, the sweep was told two and has them: nothing is left but to show what there is.
    code, out, err = run("search", "--name", "toy", "--resume")
    assert code == 0, err
    assert out.startswith("toy: 2 trials (")
    study = optuna.load_study(study_name="toy", storage=f"sqlite:///{sweep_copy / 'sweeps' / 'toy' / 'study.db'}")
    assert study.user_attrs["target"] == 2 and study.user_attrs["finished"]


@pytest.mark.usefixtures("sweep_copy")
def test_a_dry_run_of_a_resume_shows_the_sweeps_own_space(run: Run) -> None:
    out = run("search", "--name", "toy", "--resume", "--dry-run", "--trials", 9).out
    assert "toy: 9 trials of" in out and "tiny_net:TinyNet" in out
    assert re.search(r"outer\.lr +0\.001 to 0\.1 \(log\)", out)


@pytest.mark.usefixtures("sweep_copy")
def test_the_same_space_and_settings_are_no_change(run: Run) -> None:
    flags = ("--name", "toy", "--resume", "--set", "outer.steps=4")
    assert run("search", "space.yaml", *flags).status == 0


def test_a_storage_that_was_moved_takes_its_record_along(run: Run, sweep_copy: Path, migrated: Path) -> None:
    shutil.copy(migrated, sweep_copy / "sweeps" / "mlflow.db")
    record = ("--tracking-uri", "sqlite:///sweeps/mlflow.db")
    assert run("search", "--name", "toy", "--resume", *record).status == 0
    (sweep_copy / "sweeps").rename(sweep_copy / "moved")
    resume = ("--name", "toy", "--resume", "--storage", "moved")
    resumed = python(ROOT / "run_search.py", *resume, cwd=sweep_copy)  # MLflow remembers where this process wrote
    assert resumed.returncode == 0, resumed.stderr
    assert f"--backend-store-uri sqlite:///{sweep_copy}/moved/mlflow.db\n" in resumed.stdout
    assert not (sweep_copy / "sweeps").exists()
    shutil.move(sweep_copy / "moved", sweep_copy / "again")
    record = ("--tracking-uri", "sqlite:///again/mlflow.db")
    (entry,) = json.loads(run("leaderboard", "--json", *record).out)
    flags = ("--dataset", entry["dataset"], "--arch", entry["arch"], "--out", "home")
    assert run("best", *flags, *record).status == 0
    client = MlflowClient(tracking_uri=record[1])
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (sweep,) = client.search_runs(experiments, "tags.`ddray.kind` = 'sweep'")
    assert sweep.data.tags["ddray.directory"] == str(sweep_copy / "moved" / "toy")

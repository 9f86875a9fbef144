"""Every command that needs no sweep, on a small dataset: what it prints, what it writes, where it says it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import HERE, SMALL, Run, environment, tree, write_npz

from ddray.distillation import DistillConfig, Distiller, load
from tests.distillation.problems import diverge_at

STEPS = 60
DRY = """\
dataset: {npz}
arch: LeNet
fixed: {{outer.batch: 32, outer.steps: 60}}
search:
  synthetic.lr: {{float: [0.02, 0.3], log: true}}
  labels.learn: {{choice: [true, false]}}
  labels.softmax: {{choice: [true, false], when: {{labels.learn: true}}}}
constraints: [stored_samples <= 40]
scheduler: {{asha: {{grace_steps: 30}}}}
"""


def test_help_is_shown_without_a_command(run: Run) -> None:
    code, out, err = run()
    assert (code, err) == (0, "")
    for command in ("search", "distill", "best", "leaderboard", "evaluate", "preview", "datasets", "archs", "settings"):
        assert command in out


def test_distill_saves_a_set_and_says_where(run: Run, npz: Path, work: Path) -> None:
    code, out, err = run("distill", "--dataset", npz, "--arch", "LeNet", "--out", "sets/mine", "--seed", 3, *SMALL)
    assert code == 0
    assert out.splitlines()[0] == f"6 samples saved in {work / 'sets' / 'mine'}"
    assert re.fullmatch(r"\d+\.\d\d ± \d+\.\d\d % \(n = 20 networks; as-distilled, validation\)", out.splitlines()[1])
    assert [line.split(",")[0] for line in err.splitlines()] == [f"step {n} of 12" for n in (4, 8, 12)]
    manifest = load("sets/mine").manifest
    assert manifest.seed == 3 and manifest.config["synthetic.steps"] == 2
    assert sorted(path.name for path in (work / "sets").iterdir()) == ["mine"]


def test_distill_takes_settings_of_the_engine(run: Run, npz: Path) -> None:
    flags = ("--dataset", npz, "--arch", "tiny_net:TinyNet", "--out", "mine", "--set", "engine.adjoint=full")
    assert run("distill", *flags, *SMALL).status == 0
    assert load("mine").manifest.engine["adjoint"] == "full"


def test_distill_writes_over_the_same_set_alone(run: Run, npz: Path) -> None:
    flags = ("--dataset", npz, "--arch", "tiny_net:TinyNet", "--out", "mine", *SMALL)
    for _ in range(2):
        assert run("distill", *flags).status == 0
    before = load("mine").manifest
    code, _, err = run("distill", *flags, "--seed", 1)
    assert code == 2 and "a set of another distillation lies there" in err and "seed 0" in err
    assert load("mine").manifest == before


def test_interrupted_and_started_again_distill_gives_the_same_bytes(run: Run, npz: Path, work: Path) -> None:
    flags = ["distill", "--dataset", str(npz), "--arch", "tiny_net:PausingNet", "--set", f"outer.steps={STEPS}"]
    flags += ["--set", "outer.batch=32", "--set", "outer.score_every=10"]
    flags += ["--set", "synthetic.steps=1", "--set", "synthetic.epochs=1", "--out"]
    checkpoint = work / "broken.checkpoint"
    start = [sys.executable, "-c", "from ddray.cli import main; main()", *flags, "broken"]
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    env = environment(PYTHONPATH=path, PAUSE_ONCE_THERE=str(checkpoint))
    with subprocess.Popen(start, stderr=subprocess.PIPE, text=True, env=env) as process:
        while not checkpoint.exists() and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("ddray: interrupted") and "Traceback" not in err
    assert checkpoint.exists() and not (work / "broken").exists()
    again = run(*flags, "broken")
    assert again.status == 0 and 0 < len(again.err.splitlines()) < STEPS // 10, "it began from the checkpoint"
    assert run(*flags, "whole").status == 0
    broken, whole = load("broken"), load("whole")
    assert (work / "broken" / "distilled.safetensors").read_bytes() == (
        work / "whole" / "distilled.safetensors"
    ).read_bytes()
    assert broken.manifest.scores[0].accuracies == whole.manifest.scores[0].accuracies
    assert not checkpoint.exists()


def test_a_checkpoint_of_other_settings_is_refused(run: Run, npz: Path, work: Path) -> None:
    from ddray.data import load as load_dataset
    from ddray.distillation import state

    config = DistillConfig.from_flat({"outer.batch": 9})
    state.save(Distiller(load_dataset(str(npz)), "LeNet", config, seed=1), work / "mine.checkpoint")
    kept = tree(work)
    code, _, err = run("distill", "--dataset", npz, "--arch", "LeNet", "--set", "outer.batch=9", "--out", "mine")
    assert code == 2 and "of another configuration, seed" in err and len(err.splitlines()) == 1
    assert tree(work) == kept


def test_a_distillation_that_diverges_at_once_is_status_1(run: Run, npz: Path, work: Path) -> None:
    flags = ("--set", "synthetic.lr=1e6", "--set", "synthetic.epochs=9")
    before = tree(work)
    code, out, err = run("distill", "--dataset", npz, "--arch", "LeNet", "--out", "mine", *SMALL, *flags)
    assert (code, out) == (1, "")
    assert "is not finite at outer step 0" in err and len(err.splitlines()) == 1
    assert tree(work) == before


def test_a_distillation_that_diverges_later_says_so_and_saves_the_best_set_before(
    run: Run, npz: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverge_at(6, monkeypatch)
    code, out, err = run("distill", "--dataset", npz, "--arch", "LeNet", "--out", "mine", *SMALL)
    assert code == 0 and "samples saved" in out
    said = "ddray: the outer loss is not finite at outer step 6: kept is the best set seen before, of step 4 of 12"
    assert err.splitlines()[-1] == said
    assert load(work / "mine").manifest.outer_steps == 6 and not (work / "mine.checkpoint").exists()


def test_evaluate_shows_both_protocols_beside_real_samples(run: Run, own_set: Path) -> None:
    code, out, _ = run("evaluate", own_set, "--nets", 2)
    assert code == 0
    heading = next(line for line in out.splitlines() if "as distilled" in line)
    assert heading.index("split") < heading.index("as distilled") < heading.index("retrained")
    score = r"\d+\.\d\d ± \d+\.\d\d \(n = 2\)"
    rows = {line.split("  ")[0].strip(): line for line in out.splitlines() if "validation" in line}
    assert len(re.findall(score, rows["6 samples"])) == 2
    assert len(re.findall(score, rows["real, random"])) == len(re.findall(score, rows["real, average"])) == 1
    assert max(map(len, out.splitlines())) <= 80


def test_evaluate_gives_one_json_document(run: Run, fixed_set: Path) -> None:
    code, out, _ = run("evaluate", fixed_set, "--arch", "tiny_net:TinyNet", "--json")
    document = json.loads(out)
    assert code == 0 and document["stored_samples"] == 6 and document["test_looks"] == 0
    assert [(s["protocol"], s["split"], s["n"], s["std"]) for s in document["scores"]] == [
        ("as-distilled", "validation", 1, None), ("retrain", "validation", 1, None),
    ]  # fmt: skip
    assert set(document["baselines"]) == {"random", "average"}
    assert len(document["scores"][0]["accuracies"]) == 1


def test_evaluate_trains_another_network(run: Run, own_set: Path) -> None:
    flags = ("--arch", "tiny_net:WideNet", "--nets", 2, "--no-baselines", "--json")
    document = json.loads(run("evaluate", own_set, *flags).out)
    assert document["arch"] == "tiny_net:WideNet" and document["baselines"] == {}


def test_evaluate_takes_another_rate_and_number_of_epochs(run: Run, fixed_set: Path) -> None:
    def accuracies(*flags: str) -> list[float]:
        given = ("--arch", "tiny_net:TinyNet", "--no-baselines", "--json", *flags)
        document = json.loads(run("evaluate", fixed_set, *given).out)
        found: list[float] = document["scores"][0]["accuracies"]
        return found

    assert accuracies("--rates", "fixed:0.1", "--epochs", "40") != accuracies("--rates", "fixed:1e-9")


def test_a_look_at_test_with_another_rate_says_so_and_does_not_stand_for_the_set(run: Run, fixed_set: Path) -> None:
    flags = ("--arch", "tiny_net:TinyNet", "--no-baselines", "--split", "test")
    assert run("evaluate", fixed_set, *flags).status == 0
    standing = load(fixed_set).manifest.score("test")
    assert run("evaluate", fixed_set, *flags, "--rates", "fixed:1e-9", "--epochs", "7").status == 0
    manifest = load(fixed_set).manifest
    assert manifest.scores[-1].otherwise == "rate 1e-09, 7 epochs" and "with rate 1e-09, 7 epochs" in str(manifest.scores[-1])
    assert manifest.score("test") == standing and manifest.test_looks() == 2


def test_evaluate_scores_a_users_own_known_network(run: Run, fixed_set: Path) -> None:
    code, out, _ = run("evaluate", fixed_set, "--arch", "tiny_net:TinyNet")
    assert code == 0
    assert "one network (n = 1)" in out and "±" not in out
    assert re.search(r"6 samples +validation +\d+\.\d\d \[\d+\.\d, \d+\.\d\] +\d", out)


def test_a_look_at_test_is_stamped_into_the_set(run: Run, fixed_set: Path) -> None:
    flags = ("--arch", "tiny_net:TinyNet", "--no-baselines", "--split", "test", "--json")
    looks = [json.loads(run("evaluate", fixed_set, *flags).out)["test_looks"] for _ in range(2)]
    assert looks == [1, 2]
    stamped = [score for score in load(fixed_set).manifest.scores if score.split == "test"]
    assert {score.date[:2] for score in stamped} == {"20"} and {score.protocol for score in stamped} >= {"as-distilled"}


def test_a_look_at_validation_leaves_the_set_as_it_is(run: Run, fixed_set: Path) -> None:
    before = tree(fixed_set)
    assert run("evaluate", fixed_set, "--arch", "tiny_net:TinyNet", "--no-baselines").status == 0
    assert tree(fixed_set) == before


def test_labels_of_one_logit_are_not_for_a_network_with_two(run: Run, work: Path) -> None:
    data = write_npz(work / "two.npz", classes=2, size=4)
    flags = ("--dataset", data, "--arch", "tiny_net:TinyNet", "--out", "two", *SMALL)
    assert run("distill", *flags).status == 0
    code, _, err = run("evaluate", "two", "--arch", "tiny_net:two_outputs")
    assert code == 2 and "a network with 1 outputs" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("name", ["picture.png", "new/picture.svg", "picture.pdf"])
def test_preview_draws_a_file_and_names_it(name: str, run: Run, own_set: Path) -> None:
    code, out, _ = run("preview", own_set, "--out", name)
    assert (code, out) == (0, f"{name}\n")
    assert Path(name).stat().st_size > 1000


def test_datasets_says_what_each_needs(run: Run) -> None:
    out = run("datasets").out
    assert re.search(r"digits +10 +1×28×28 +1,442 +355 +nothing", out)
    assert all(name in out for name in ("MNIST", "FashionMNIST", "CIFAR10"))
    assert max(map(len, out.splitlines())) <= 80


def test_archs_says_what_each_takes(run: Run) -> None:
    out = run("archs").out
    assert all(name in out for name in ("LeNet", "AlexCifarNet", "ConvNet3", "width=128"))
    assert max(map(len, out.splitlines())) <= 80


def test_settings_says_what_each_is(run: Run) -> None:
    code, out, err = run("settings")
    assert (code, err) == (0, "")
    assert all(f"\n {key} " in out for key in (*DistillConfig().flat(), "engine.compile"))
    tables = [line for line in out.splitlines() if not re.match("[a-z]+: ", line)]
    assert max(map(len, tables)) <= 80


def test_settings_shows_one_group_in_whole_rows_where_there_is_room(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    out = run("settings", "outer").out
    assert out.startswith("outer: The optimiser of the set itself")
    assert re.search(r"outer\.clip +5\.0 +number, above 0, at most 1,000,000, or null +Largest norm of the outer gradient", out)
    assert "inner.optimiser" not in out and "engine.compile" not in out


def test_settings_gives_one_json_document(run: Run) -> None:
    code, out, _ = run("settings", "engine", "--json")
    document = json.loads(out)
    assert code == 0 and [row["key"].partition(".")[0] for row in document] == ["engine"] * len(document)
    assert all(list(row) == ["key", "default", "allowed", "description"] for row in document)
    (threads,) = [row for row in document if row["key"] == "engine.threads"]
    assert (threads["default"], threads["allowed"]) == (0, "whole number, 0 to 1,024")


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_settings_of_an_unknown_group_name_those_that_there_are(flags: tuple[str, ...], refused: Callable[..., str]) -> None:
    assert "'outter' is refused: one of data, network, synthetic," in refused("settings", "outter", *flags)


def test_an_empty_leaderboard_creates_nothing(run: Run, work: Path) -> None:
    assert run("leaderboard", "--json")[:2] == (0, "[]\n")
    assert run("leaderboard").out == "No set is registered for this.\n"
    assert tree(work) == {}


def test_a_dry_run_shows_the_space_and_writes_nothing(run: Run, npz: Path, work: Path) -> None:
    (work / "space.yaml").write_text(DRY.format(npz=npz), encoding="utf-8")
    before = tree(work)
    flags = ("--dry-run", "--trials", 7, "--set", "outer.steps=30", "--set", "labels.learn=false", "--seed", 5)
    code, out, _ = run("search", "space.yaml", *flags)
    assert code == 0
    assert f"7 trials of {npz} × LeNet" in out
    assert re.search(r"synthetic\.lr +0\.02 to 0\.3 \(log\) +always", out)
    assert re.search(r"outer\.steps +30 +fixed", out) and re.search(r"labels\.learn +False +fixed", out)
    assert "labels.softmax" not in out, "its condition was ruled out"
    assert re.search(r"memory per trial \d+ MiB to \d+ MiB, predicted", out) and re.search(r"seed +5\n", out)
    assert "stored_samples <= 40" in out and "grace_steps 30, reduction_factor 3" in out
    assert tree(work) == before


def test_the_default_space_is_the_digits(run: Run, work: Path) -> None:
    out = run("search", "--dry-run").out
    assert "digits_lenet-" in out and "trials of digits × LeNet" in out
    assert tree(work) == {}


def test_a_closed_pipe_is_silent(work: Path) -> None:
    show = "from ddray.cli import main; main()"
    command = f"{sys.executable} -c '{show}' datasets | true; echo ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", command], cwd=work, env=environment(), capture_output=True, text=True)
    assert ended.stdout.strip() in ("0", "1") and ended.stderr == ""

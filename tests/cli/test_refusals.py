"""A wrong request: status 2, one line that names key, value and what is allowed, and nothing left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line import ROOT, python, write_npz
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ddray.sweep
from ddray.cli import status

Refused = Callable[..., str]
SEARCH = ("search", "space.yaml", "--storage", "here")
DISTILL = ("distill", "--arch", "LeNet", "--out", "out")


@pytest.fixture
def space(work: Path, npz: Path) -> Callable[..., None]:
    """Writes space.yaml: a good one, with `lines` in place of its own under the same keys."""

    def write(**lines: str) -> None:
        good = {
            "dataset": str(npz),
            "arch": "LeNet",
            "fixed": "{outer.batch: 32}",
            "search": "{outer.lr: {float: [0.01, 0.1]}}",
        }
        text = "".join(f"{key}: {value}\n" for key, value in {**good, **lines}.items())
        (work / "space.yaml").write_text(text, encoding="utf-8")

    return write


SPACES = {
    "unknown dataset": ({"dataset": "MNISTT"}, ("dataset: 'MNISTT'", "digits, MNIST")),
    "unknown architecture": ({"arch": "LeNett"}, ("arch: 'LeNett'", "LeNet, AlexCifarNet", "package.module:factory")),
    "architecture that cannot be imported": ({"arch": "nowhere:Net"}, ("arch: 'nowhere:Net'", "No module named")),
    "unknown key": ({"search": "{outer.lrr: {float: [0.01, 0.1]}}"}, ("outer.lrr:", "outer.lr,")),
    "unknown fixed key": ({"fixed": "{outer.stepz: 3}"}, ("outer.stepz: 3", "outer.steps,")),
    "unknown group": ({"fixed": "{outter.steps: 3}"}, ("outter.steps: 3", "groups: data, network")),
    "unknown part": ({"serach": "{}"}, ("serach: {}", "known here:", "search")),
    "unknown choice": (
        {"search": "{labels.init: {choice: [one_hot, hot_one]}}"},
        ("search.labels.init: 'hot_one'", "'one_hot', 'smoothed'"),
    ),
    "empty choice": ({"search": "{labels.init: {choice: []}}"}, ("search.labels.init: []", "at least one choice")),
    "empty range": ({"search": "{outer.lr: {float: [0.1, 0.1]}}"}, ("search.outer.lr: [0.1, 0.1]", "LOW below HIGH")),
    "reversed range": ({"search": "{outer.lr: {float: [1, 0.1]}}"}, ("search.outer.lr: [1, 0.1]", "LOW below HIGH")),
    "log range from zero": (
        {"search": "{outer.lr: {float: [0, 0.1], log: true}}"},
        ("search.outer.lr: [0, 0.1]", "positive numbers where log is true"),
    ),
    "NaN in a range": ({"search": "{outer.lr: {float: [.nan, 0.1]}}"}, ("search.outer.lr: [nan, 0.1]", "numbers")),
    "NaN as a value": ({"fixed": "{outer.clip: .nan}"}, ("outer.clip: nan", "a finite number")),
    "a fraction in a whole range": (
        {"search": "{synthetic.steps: {int: [1, 2.5]}}"},
        ("search.synthetic.steps: [1, 2.5]", "whole numbers"),
    ),
    "beyond a setting's own range": (
        {"search": "{outer.beta2: {float: [0.5, 1.5]}}"},
        ("search.outer.beta2: 1.5", "below 1"),
    ),
    "constraint that nothing satisfies": (
        {"constraints": "[stored_samples <= 5]"},
        ("constraints: 'stored_samples <= 5'", "the least is 30"),
    ),
    "constraint of another form": ({"constraints": "[samples < 5]"}, ("constraints: 'samples < 5'", "NAME <= NUMBER")),
    "condition that never holds": (
        {"search": "{labels.softmax: {choice: [true, false], when: {labels.learn: 3}}, labels.learn: {choice: [true]}}"},
        ("search.labels.softmax.when: 3", "labels.learn is only ever one of [True]"),
    ),
    "conditions in a circle": (
        {
            "search": "{labels.softmax: {choice: [true], when: {labels.learn: true}}, "
            "labels.learn: {choice: [true], when: {labels.softmax: true}}}"
        },
        ("search: ['labels.learn', 'labels.softmax']", "circle"),
    ),
    "fixed and searched": ({"fixed": "{outer.lr: 0.1, outer.batch: 32}"}, ("search.outer.lr:", "fixed as well")),
    "batch of more than the data": ({"fixed": "{outer.batch: 5000}"}, ("outer.batch: 5000", "at most the 90")),
    "more classes than the data": ({"fixed": "{synthetic.classes: 7, outer.batch: 9}"}, ("synthetic.classes: 7", "1 to 3")),
    "no trials": ({"trials": "0"}, ("trials: 0", "at least 1")),
    "a word for a number": ({"trials": "many"}, ("trials: 'many'", "a number")),
    "objective of another name": ({"objectives": "{loss: min}"}, ("objectives.loss", "'val_accuracy'")),
    "grace between looks": (
        {"fixed": "{outer.batch: 32, outer.score_every: 4}", "scheduler": "{asha: {grace_steps: 6}}"},
        ("scheduler.asha.grace_steps: 6", "a multiple of outer.score_every (4)"),
    ),
    "YAML that does not parse": ({"search": "{outer.lr: [1, 2}"}, ("space: 'space.yaml'", "line 4, column 25")),
    "a key that stands twice": ({"search": "\n  outer.lr: 1\n  outer.lr: 2"}, ("line 6, column 3", "'outer.lr' stands twice")),
    "no mapping": ({"dataset": "toy\n- 3"}, ("space: 'space.yaml'", "not YAML")),
}  # fmt: skip


@pytest.mark.parametrize("case", SPACES)
def test_a_wrong_space_is_refused(case: str, space: Callable[..., None], refused: Refused) -> None:
    lines, expected = SPACES[case]
    space(**lines)
    said = refused(*SEARCH)
    for words in expected:
        assert words in said


FLAGS = {
    "--trials 0": ("--trials: 0", "at least 1"),
    "--max-concurrent 0": ("--max-concurrent: 0", "at least 1"),
    "--cpus-per-trial 0": ("--cpus-per-trial: 0.0", "at least 0.0001"),
    "--cpus-per-trial 0.00001": ("--cpus-per-trial: 1e-05", "at least 0.0001"),
    "--cpus-per-trial nan": ("--cpus-per-trial: nan", "a finite number"),
    "--gpus-per-trial 0.00001": ("--gpus-per-trial: 1e-05", "0 or at least 0.0001"),
    "--gpus-per-trial -1": ("--gpus-per-trial: -1.0", "at least 0"),
    "--gpus-per-trial 1.5": ("--gpus-per-trial: 1.5", "whole number of cards"),
    **({} if torch.cuda.is_available() else {"--gpus-per-trial 0.25": ("--gpus-per-trial: 0.25", "torch sees no GPU")}),
    "--time-budget 30x": ("--time-budget: '30x'", "90s, 30m or 1.5h"),
    "--time-budget -5m": ("--time-budget: '-5m'", "positive time"),
    "--time-budget nan": ("--time-budget: 'nan'", "positive time"),
    "--set outer.lr": ("--set: 'outer.lr'", "KEY=VALUE"),
    "--set outer.lr=NaN": ("outer.lr: nan", "a finite number"),
    "--set outer.lr=fast": ("outer.lr: 'fast'", "a number"),
    "--set synthetic.steps=true": ("synthetic.steps: True", "a number"),
    "--set engine.device=tpu9": ("engine.device: 'tpu9'", "device"),
    "--set engine.device=meta": ("engine.device: 'meta'", "auto, cpu, cuda, or cuda:N"),
    "--set engine.thread=2": ("engine.thread: 2", "threads"),
    "--set engine.compile=fast": ("engine.compile: 'fast'", "'auto', 'off', 'trace' or 'max'"),
    "--set engine.layout=BPQ": ("engine.layout: 'BPQ'", "blocked, plain, im2col"),
    "--set outer.window=99": ("outer.window: 99", "at most the 30 inner steps"),
    "--set outer.unroll_steps=31": ("outer.unroll_steps: 31", "at most the 30 inner steps"),
    "--set engine.adjoint=full --set synthetic.epochs=9999": ("synthetic.steps × synthetic.epochs: 99990", "this machine has"),
    "--name=": ("--name: ''", "name a directory"),
    "--name a/b": ("--name: 'a/b'", "name a directory"),
    "--name ..": ("--name: '..'", "name a directory"),
    "--storage s3://bucket/x": ("--storage: 's3://bucket/x'", "file://DIRECTORY"),
    "--storage space.yaml": ("--storage: 'space.yaml'", "space.yaml is a file"),
    "--storage space.yaml/deeper": ("--storage: 'space.yaml/deeper'", "space.yaml is a file"),
    "--storage ~nobodyhere/x": ("--storage: '~nobodyhere/x'", "directory"),
    "--tracking-uri ftp://host/x": ("--tracking-uri: 'ftp://host/x'", "sqlite:///FILE"),
    "--tracking-uri sqlite:///space.yaml": ("--tracking-uri: 'sqlite:////", "not a database"),
    "--tracking-uri http://127.0.0.1:9": ("--tracking-uri: 'http://127.0.0.1:9'", "refused"),
    "--data nowhere": ("--data: 'nowhere'", "a directory that exists"),
    "--resume": ("--resume: None", "found: none"),
    "--resume --name nothing": ("--resume: 'nothing'", "there is no such sweep in"),
    "--trials three": ("--trials", "valid integer"),
    "--nosuch 1": ("No such option: --nosuch",),
    "--trials": ("--trials", "requires an argument"),
}  # fmt: skip


@pytest.mark.parametrize("flags", FLAGS)
def test_a_wrong_flag_of_search_is_refused(flags: str, space: Callable[..., None], refused: Refused) -> None:
    space(dataset="digits") if flags.startswith("--data") else space()
    if flags.startswith("--data"):
        space(dataset="MNIST")
    said = refused(*SEARCH, *flags.split())
    for words in FLAGS[flags]:
        assert words in said


def test_a_space_that_is_not_there_is_refused_with_those_that_are(refused: Refused) -> None:
    assert "digits_lenet" in refused("search", "digits_lenett")
    assert "there is no such file" in refused("search", "gone.yaml")


def test_a_network_that_clashes_with_the_data_is_refused(refused: Refused, work: Path) -> None:
    small = write_npz(work / "small.npz", size=9)
    said = refused(*DISTILL, "--dataset", small)
    assert "9" in said and "LeNet" in said and "28" in said
    said = refused("distill", "--arch", "tiny_net:two_outputs", "--out", "out", "--dataset", small)
    assert "tiny_net:two_outputs" in said and "(1, 9, 9)" in said


def test_missing_data_names_the_file_and_where_it_was_looked_for(
    refused: Refused, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # no network from here
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    (work / "data").mkdir()
    said = refused(*DISTILL, "--dataset", "MNIST", "--data", "data")
    assert "dataset: 'MNIST'" in said and "MNIST/raw/train-images-idx3-ubyte" in said and " data and " in said


def test_the_environment_names_the_data_as_the_flag_does(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDRAY_DATA", "nowhere")
    assert "nowhere" in refused(*DISTILL, "--dataset", "MNIST")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a file system that even root cannot write to")
@pytest.mark.parametrize("command", ["search", "distill", "preview"])
def test_a_place_that_cannot_be_written_to_is_refused(
    command: str, refused: Refused, space: Callable[..., None], npz: Path, own_set: Path
) -> None:
    space()
    arguments = {
        "search": ("search", "space.yaml", "--storage", "/proc/ddray"),
        "distill": (
            "distill",
            "--dataset",
            npz,
            "--arch",
            "LeNet",
            "--set",
            "outer.batch=9",
            "--out",
            "/proc/ddray/set",
        ),
        "preview": ("preview", own_set, "--out", "/proc/ddray/set.png"),
    }[command]
    said = refused(*arguments)
    assert "/proc" in said and "written" in said


def test_a_name_in_use_is_refused(refused: Refused, space: Callable[..., None], work: Path) -> None:
    space()
    (work / "here" / "mine").mkdir(parents=True)
    said = refused(*SEARCH, "--name", "mine")
    assert "--name: 'mine'" in said and "it is in use" in said and "--resume" in said


def test_a_damaged_study_is_refused(refused: Refused, space: Callable[..., None], work: Path) -> None:
    space()
    (work / "here" / "mine").mkdir(parents=True)
    (work / "here" / "mine" / "study.db").write_bytes(b"this is no database" * 99)
    said = refused(*SEARCH, "--name", "mine", "--resume")
    assert "--resume: 'mine'" in said and "not a database" in said


def test_a_sweep_of_another_name_is_refused(refused: Refused, sweep_copy: Path) -> None:
    (sweep_copy / "sweeps" / "toy").rename(sweep_copy / "sweeps" / "renamed")
    assert "--resume: 'renamed'" in refused("search", "--name", "renamed", "--resume")


CHANGES = {
    "space.yaml --set outer.steps=8": ("outer.steps: 8", "a sweep is resumed with its own space, where it is 4"),
    "--set outer.steps=8": ("outer.steps: 8", "a sweep is resumed with its own space, where it is 4"),
    "--set outer.lr=.5": ("outer.lr: 0.5", "a sweep is resumed with its own space, where it is {'float': [0.001"),
    "--set labels.scale=2": ("labels.scale: 2", "a sweep is resumed with its own space, where it is not set"),
    "digits_lenet": ("--resume: 'the dataset'", "other digests"),
    "--seed 7": ("--seed: 7", "0, as the sweep began"),
}


@pytest.mark.parametrize("changed", CHANGES)
@pytest.mark.usefixtures("sweep_copy")
def test_resuming_what_was_another_sweep_is_refused(changed: str, refused: Refused) -> None:
    said = refused("search", "--name", "toy", "--resume", *changed.split())
    for words in CHANGES[changed]:
        assert words in said


@pytest.mark.parametrize("damage", ["truncated", "altered", "newer", "foreign", "missing"])
@pytest.mark.parametrize("command", ["evaluate", "preview"])
def test_a_damaged_set_is_refused(command: str, damage: str, own_set: Path, refused: Refused) -> None:
    tensors, manifest = own_set / "distilled.safetensors", own_set / "manifest.json"
    if damage == "truncated":
        tensors.write_bytes(tensors.read_bytes()[:-10])
    elif damage == "altered":
        manifest.write_text(manifest.read_text().replace('"seed": 0', '"seed": 1'), encoding="utf-8")
    elif damage == "newer":
        fields = json.loads(manifest.read_text()) | {"format": 99}
        manifest.write_text(json.dumps(fields), encoding="utf-8")
    elif damage == "foreign":
        manifest.write_text("<html>", encoding="utf-8")
    else:
        shutil.rmtree(own_set)
    said = refused(command, own_set)
    expected = {
        "truncated": "truncated or altered", "altered": "truncated or altered", "newer": "format 99 is newer than",
        "foreign": "damaged", "missing": "not a distilled set",
    }  # fmt: skip
    assert f"'{own_set}'" in said and expected[damage] in said


EVALUATIONS = {
    "--split train": ("--split: 'train'", "validation or test"),
    "--nets 0": ("nets: 0", "at least 1"),
    "--nets x": ("--nets", "valid integer"),
    "--rates 0.1": ("--rates: '0.1'", "fixed:0.01"),
    "--rates fixed:nan": ("--rates: 'fixed:nan'", "positive number"),
    "--rates fixed:-1": ("--rates: 'fixed:-1'", "positive number"),
    "--rates recorded:1": ("--rates: 'recorded:1'", "fixed:0.01"),
    "--epochs 7": ("epochs: 7", "give a rate"),
    "--epochs 0 --rates fixed:0.1": ("epochs: 0", "at least 1"),
    "--arch NoNet": ("arch: 'NoNet'", "LeNet"),
    "--device tpu9": ("--device: 'tpu9'", "device"),
}


@pytest.mark.parametrize("flags", EVALUATIONS)
def test_a_wrong_evaluation_is_refused(flags: str, own_set: Path, refused: Refused) -> None:
    said = refused("evaluate", own_set, *flags.split())
    for words in EVALUATIONS[flags]:
        assert words in said


def test_data_other_than_the_sets_own_is_refused(own_set: Path, npz: Path, refused: Refused) -> None:
    content = npz.read_bytes()
    try:
        write_npz(npz, seed=5)
        assert "is not the one this set was made from" in refused("evaluate", own_set)
    finally:
        npz.write_bytes(content)


def test_a_look_at_test_is_for_a_set_in_a_directory(refused: Refused) -> None:
    said = refused("evaluate", "models:/x@best", "--split", "test")
    assert "--split: 'test'" in said and "ddray best --out" in said


def test_more_networks_than_a_fixed_set_knows_are_refused(fixed_set: Path, refused: Refused) -> None:
    assert "the set is for 1 known network(s)" in refused(
        "evaluate", fixed_set, "--nets", "5", "--arch", "tiny_net:TinyNet"
    )


def test_another_network_for_a_fixed_set_is_refused(fixed_set: Path, refused: Refused) -> None:
    assert "known networks of tiny_net:TinyNet" in refused("evaluate", fixed_set, "--arch", "LeNet")


def test_a_users_network_is_imported_only_if_the_user_names_it(fixed_set: Path, refused: Refused) -> None:
    assert "--arch" in refused("evaluate", fixed_set) and "tiny_net:TinyNet" in refused("evaluate", fixed_set)


@pytest.mark.parametrize("content", ["file", "directory"])
def test_what_is_not_a_distilled_set_is_not_overwritten(content: str, npz: Path, work: Path, refused: Refused) -> None:
    if content == "file":
        (work / "out").write_text("mine", encoding="utf-8")
    else:
        (work / "out").mkdir()
        (work / "out" / "thesis.tex").write_text("mine", encoding="utf-8")
    assert "it exists and is not a distilled set" in refused(*DISTILL, "--dataset", npz)


@pytest.mark.parametrize("out", ["picture.exe", "."])
def test_a_picture_of_no_kind_is_refused(out: str, own_set: Path, refused: Refused) -> None:
    assert "--out" in refused("preview", own_set, "--out", out)


@pytest.mark.parametrize("command", [("best", "--dataset", "d", "--arch", "a"), ("preview", "models:/x@best")])
def test_a_record_that_is_not_there_is_refused(command: tuple[str, ...], refused: Refused) -> None:
    assert "there is no record yet: sweeps/mlflow.db does not exist" in refused(*command)


@pytest.mark.parametrize("command", [("best", "--dataset", "d"), ("distill",), ("evaluate",), ("nosuch",)])
def test_what_is_missing_or_unknown_is_named(command: tuple[str, ...], refused: Refused) -> None:
    said = refused(*command)
    assert any(words in said for words in ("--arch", "--dataset", "SET", "nosuch"))


@pytest.mark.parametrize("start", ["run_search.py", "ddray search"])
def test_a_refusal_reaches_the_shell(start: str, work: Path) -> None:
    script = (ROOT / start,) if start.endswith(".py") else ("-c", "from ddray.cli import main; main()", "search")
    ended = python(*script, "--time-budget", "soon", cwd=work)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "ddray: --time-budget: 'soon' is refused: a positive time such as 90s, 30m or 1.5h\n"


@pytest.mark.parametrize("command", ["distill", "preview"])
def test_a_name_too_long_to_write_is_refused_before_the_work(
    command: str, npz: Path, own_set: Path, refused: Refused
) -> None:
    given = (*DISTILL[:-2], "--dataset", npz) if command == "distill" else ("preview", own_set)
    assert "--out: " in (said := refused(*given, "--out", 252 * "x" + ".png")) and "at most 200 bytes" in said


@given(text=st.text(max_size=20))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_setting_whatever_is_more_than_one_line(text: str, npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    code = status(["distill", "--dataset", str(npz), "--arch", "LeNet", "--out", "out", "--set", f"outer.lr={text}",
                   "--set", "network.law=nosuch"])  # fmt: skip
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_a_cluster_that_does_not_answer_leaves_nothing(space: Callable[..., None], refused: Refused) -> None:
    space()
    said = refused(*SEARCH, "--address", "127.0.0.1:1")
    assert "--address: '127.0.0.1:1'" in said and "a Ray cluster that can be reached" in said


def test_ctrl_c_says_the_whole_command_that_goes_on(
    space: Callable[..., None], work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    space()
    monkeypatch.setattr(ddray.sweep, "run", interrupted)
    (work / "my data").mkdir()
    assert status([*SEARCH, "--name", "mine", "--data", "my data"]) == 130
    command = f"ddray search --resume --name mine --storage {work / 'here'} --data 'my data'"
    assert capsys.readouterr().err == f"ddray: interrupted; go on with: {command}\n"

"""The catalogue of the best sets, in a real model registry on SQLite."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from mlflow import MlflowClient

from ddray.distillation import load
from ddray.distillation.evaluate import score_from
from ddray.distillation.set_files import stamp
from ddray.errors import RequestError
from ddray.tracking import Recorder, SweepEntry, TrialEntry, best, fetch, leaderboard, model_name, register, resolve
from ddray.tracking.sqlite import sqlite_uri

MakeSet = Callable[..., Path]
NAME = "toy-LeNet-random"


@pytest.fixture
def run_id(uri: str) -> str:
    recorder = Recorder(uri, SweepEntry("s1", "toy", "LeNet", "random", 0, "/sweeps/s1", "", {}))
    recorder.trial(TrialEntry(4, "finished", {}, (), {}, 0.8, 1.0, 1e9, 1e9 + 1))
    return recorder.run_id(4)


def holder(uri: str) -> str:
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    return str(client.get_model_version_by_alias(NAME, "best").version)


@given(st.text(), st.text(), st.text())
@example("my data", "pkg.nets:MyNet", "random")
@example("", "", "")
def test_names_have_only_characters_that_the_registry_takes(dataset: str, arch: str, source: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-]+", model_name(dataset, arch, source))


@given(st.text("ab._ é/", max_size=5), st.text("ab._ é/", max_size=5))
@example("a.b", "a_b")
@example("a.b", "a b")
def test_distinct_datasets_have_distinct_names(one: str, other: str) -> None:
    assert (model_name(one, "LeNet", "random") == model_name(other, "LeNet", "random")) == (one == other)


def test_a_plain_name_stays_as_it_is() -> None:
    assert model_name("MNIST", "LeNet", "random") == "MNIST-LeNet-random"


def test_the_first_set_is_the_best(uri: str, run_id: str, make_set: MakeSet) -> None:
    done = register(uri, run_id, make_set(0.8))
    assert (done.name, done.version, done.is_best, done.previous) == (NAME, "1", True, None)
    assert holder(uri) == "1"


@pytest.mark.parametrize(("second", "expected"), [(0.9, "2"), (0.7, "1"), (0.8, "1")], ids=["better", "worse", "equal"])
def test_only_a_strictly_better_set_takes_the_alias(
    uri: str, run_id: str, make_set: MakeSet, second: float, expected: str
) -> None:
    register(uri, run_id, make_set(0.8))
    done = register(uri, run_id, make_set(second, seed=1))
    assert (done.version, done.is_best, done.previous) == ("2", expected == "2", "1")
    assert holder(uri) == expected


def test_a_model_that_another_sweep_makes_meanwhile_gets_the_version(
    uri: str, run_id: str, make_set: MakeSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(uri, run_id, make_set(0.8))
    monkeypatch.setattr(MlflowClient, "search_registered_models", lambda *_: [])
    assert register(uri, run_id, make_set(0.9, seed=1)).version == "2"


def test_registering_again_changes_nothing(uri: str, run_id: str, make_set: MakeSet) -> None:
    register(uri, run_id, make_set(0.8))
    register(uri, run_id, make_set(0.9))
    before = leaderboard(uri)
    assert register(uri, run_id, make_set(0.8)).version == "1"
    assert register(uri, run_id, make_set(0.9)).is_best
    assert leaderboard(uri) == before


def test_a_lost_alias_is_given_again(uri: str, run_id: str, make_set: MakeSet) -> None:
    register(uri, run_id, make_set(0.8))
    MlflowClient(tracking_uri=uri, registry_uri=uri).delete_registered_model_alias(NAME, "best")
    assert register(uri, run_id, make_set(0.8)).is_best
    assert holder(uri) == "1"


def test_where_the_best_was_deleted_the_best_that_is_left_is_the_best(uri: str, run_id: str, make_set: MakeSet) -> None:
    for value in (0.9, 0.7, 0.8):
        register(uri, run_id, make_set(value))
    MlflowClient(tracking_uri=uri, registry_uri=uri).delete_model_version(NAME, "1")
    done = register(uri, run_id, make_set(0.6))
    assert (done.version, done.is_best, done.previous) == ("4", False, None)
    assert holder(uri) == "3"


def test_a_set_that_was_scored_again_is_the_same_set(uri: str, run_id: str, make_set: MakeSet) -> None:
    place = make_set(0.8, test=0.7)
    register(uri, run_id, place)
    stamp(place, [score_from([0.1, 0.2], 100, "as-distilled", "test")])
    assert register(uri, run_id, place).version == "1"


def test_a_score_of_something_else_than_the_set_records_is_not_what_a_row_says(
    uri: str, run_id: str, make_set: MakeSet
) -> None:
    place = make_set(0.8, test=0.7)
    other = score_from([0.1, 0.2, 0.3], 100, "as-distilled", "test").model_copy(update={"otherwise": "rate 1e-06"})
    stamp(place, [other])
    register(uri, run_id, place)
    (row,) = leaderboard(uri)
    assert (row.test_accuracy, row.test_looks) == (0.7, 2)


def test_a_set_without_a_validation_score_is_refused(uri: str, run_id: str, make_set: MakeSet) -> None:
    with pytest.raises(RequestError, match="validation"):
        register(uri, run_id, make_set(None, test=0.9))
    assert leaderboard(uri) == []


def test_a_row_says_what_the_set_is(uri: str, run_id: str, make_set: MakeSet) -> None:
    place = make_set(0.8, test=0.75, samples=3)
    register(uri, run_id, place)
    (row,) = leaderboard(uri)
    assert (row.dataset, row.arch, row.source, row.name, row.version) == ("toy", "LeNet", "random", NAME, "1")
    assert (row.val_accuracy, row.val_n, row.test_accuracy, row.test_n, row.test_looks) == (0.8, 2, 0.75, 2, 1)
    assert row.val_std == pytest.approx(0.01 * 2**0.5)
    assert (row.stored_samples, row.is_best, row.sweep, row.trial) == (3, True, "s1", "4")
    assert (row.run_id, row.sha256) == (run_id, load(place).manifest.sha256)


def test_the_leaderboard_has_the_best_first_within_each_kind(uri: str, run_id: str, make_set: MakeSet) -> None:
    for value, arch in ((0.7, "LeNet"), (0.9, "LeNet"), (0.6, "ConvNet3"), (0.8, "LeNet")):
        register(uri, run_id, make_set(value, arch=arch))
    assert [(row.arch, row.val_accuracy) for row in leaderboard(uri)] == [
        ("ConvNet3", 0.6), ("LeNet", 0.9), ("LeNet", 0.8), ("LeNet", 0.7),
    ]  # fmt: skip
    assert [row.val_accuracy for row in leaderboard(uri, "toy", "ConvNet3")] == [0.6]
    assert leaderboard(uri, "MNIST") == []


def test_models_of_others_are_left_alone(uri: str, run_id: str, make_set: MakeSet) -> None:
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.create_registered_model("churn")
    client.create_model_version("churn", f"runs:/{run_id}/x", run_id)
    register(uri, run_id, make_set(0.8))
    assert [row.name for row in leaderboard(uri)] == [NAME]


def test_the_best_set_comes_home(uri: str, run_id: str, make_set: MakeSet, tmp_path: Path) -> None:
    for value in (0.7, 0.9, 0.8):
        register(uri, run_id, make_set(value))
    distilled, place = fetch(uri, "toy", "LeNet", out=tmp_path / "home")
    assert place == tmp_path / "home"
    assert load(place).manifest == distilled.manifest == load(make_set(0.9)).manifest
    assert torch.equal(best("toy", "LeNet", tracking_uri=uri).inputs, distilled.inputs)


def test_each_set_of_a_run_keeps_its_own_files(uri: str, run_id: str, make_set: MakeSet) -> None:
    register(uri, run_id, make_set(0.8, seed=0))
    register(uri, run_id, make_set(0.7, seed=1))
    homes = [load(resolve(f"models:/{NAME}/{version}", uri)) for version in (1, 2)]
    assert [home.manifest.seed for home in homes] == [0, 1]


def test_a_budget_of_samples_is_kept(uri: str, run_id: str, make_set: MakeSet) -> None:
    for value, samples in ((0.9, 10), (0.7, 2), (0.8, 3), (0.6, 1)):
        register(uri, run_id, make_set(value, samples=samples))
    assert fetch(uri, "toy", "LeNet", max_samples=5)[0].stored_samples == 3
    with pytest.raises(RequestError, match=r"--max-samples: 0 is refused: the smallest set of .* stores 1 "):
        fetch(uri, "toy", "LeNet", max_samples=0)


def test_a_damaged_cache_is_fetched_anew(uri: str, run_id: str, make_set: MakeSet) -> None:
    register(uri, run_id, make_set(0.8))
    place = fetch(uri, "toy", "LeNet")[1]
    (place / "distilled.safetensors").write_bytes(b"")
    assert load(fetch(uri, "toy", "LeNet")[1]).stored_samples == 2


def test_a_version_whose_files_are_gone_is_refused(uri: str, run_id: str, make_set: MakeSet, tmp_path: Path) -> None:
    register(uri, run_id, make_set(0.8))
    shutil.rmtree(tmp_path / "my sweeps" / "mlartifacts")
    with pytest.raises(RequestError, match="its files cannot be read"):
        fetch(uri, "toy", "LeNet")


def test_files_are_found_where_the_record_was_moved_to(
    uri: str, run_id: str, make_set: MakeSet, tmp_path: Path
) -> None:
    register(uri, run_id, make_set(0.8))
    (tmp_path / "my sweeps").rename(tmp_path / "moved %20")
    moved = sqlite_uri(tmp_path / "moved %20" / "mlflow.db")
    assert load(fetch(moved, "toy", "LeNet", out=tmp_path / "home")[1]).stored_samples == 2
    recorder = Recorder(moved, SweepEntry("s2", "toy", "LeNet", "random", 0, "/sweeps/s2", "space", {}))
    assert recorder.run_id() != run_id and not (tmp_path / "my sweeps").exists()


def test_another_set_in_the_place_of_the_registered_one_is_refused(
    uri: str, run_id: str, make_set: MakeSet, tmp_path: Path
) -> None:
    register(uri, run_id, make_set(0.8))
    (tensors,) = (tmp_path / "my sweeps" / "mlartifacts").rglob("distilled.safetensors")
    shutil.copytree(make_set(0.8, seed=1), tensors.parent, dirs_exist_ok=True)
    with pytest.raises(RequestError, match="not those that were registered"):
        fetch(uri, "toy", "LeNet")


def test_what_is_not_there_is_refused_with_what_is(uri: str, run_id: str, make_set: MakeSet) -> None:
    register(uri, run_id, make_set(0.8))
    with pytest.raises(RequestError, match=r"MNIST × LeNet × random.*there is toy × LeNet × random"):
        fetch(uri, "MNIST", "LeNet")


def test_looking_does_not_create_a_record(tmp_path: Path) -> None:
    missing = f"sqlite:///{tmp_path / 'nowhere' / 'mlflow.db'}"
    assert leaderboard(missing) == []
    with pytest.raises(RequestError, match="there is no record yet"):
        fetch(missing, "toy", "LeNet")
    assert not (tmp_path / "nowhere").exists()


def test_a_name_is_resolved_to_files(uri: str, run_id: str, make_set: MakeSet) -> None:
    register(uri, run_id, make_set(0.8))
    register(uri, run_id, make_set(0.7))
    assert load(resolve(f"models:/{NAME}@best", uri)).manifest.scores[-1].mean == 0.8
    assert load(resolve(f"models:/{NAME}/2", uri)).manifest.scores[-1].mean == 0.7


def test_a_directory_resolves_to_itself(tmp_path: Path) -> None:
    assert resolve(str(tmp_path), "sqlite:///never-looked-at.db") == tmp_path


@pytest.mark.parametrize(
    "wrong", [f"models:/{NAME}/9", f"models:/{NAME}@worst", "models:/other@best", "models:/x", "models:"]
)
def test_a_name_of_nothing_is_refused(uri: str, run_id: str, make_set: MakeSet, wrong: str) -> None:
    register(uri, run_id, make_set(0.8))
    with pytest.raises(RequestError) as refused:
        resolve(wrong, uri)
    assert "\n" not in str(refused.value)


# MLflow's own type hints, when mlflow.pyfunc is imported.
@pytest.mark.filterwarnings("ignore:\x1b\\[1;33mAny type hint is inferred as AnyType:UserWarning")
def test_mlflow_serves_a_network_trained_on_the_set(
    uri: str, run_id: str, make_set: MakeSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import pyfunc

    register(uri, run_id, make_set(0.8))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    served = pyfunc.load_model(f"models:/{NAME}@best")
    batch = np.zeros((4, 1, 28, 28), dtype=np.float32)
    expected = load(make_set(0.8)).train(seed=0)(torch.from_numpy(batch))
    assert np.array_equal(served.predict(batch), expected.detach().numpy())


def test_another_source_than_there_is_is_refused(uri: str) -> None:
    with pytest.raises(RequestError, match="--source: 'fxied' is refused: random or fixed"):
        fetch(uri, "toy", "LeNet", "fxied")


def test_looking_at_an_empty_file_leaves_it_empty(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    assert leaderboard(sqlite_uri(tmp_path / "mlflow.db")) == []
    assert (tmp_path / "mlflow.db").stat().st_size == 0

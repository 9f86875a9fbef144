"""Datasets by name, and a user's own from .npz."""

from __future__ import annotations

import io
import pickle
import sys
from hashlib import md5
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.datasets import CIFAR10

from ddray.data import available, load
from ddray.errors import MissingExtra, RequestError

X = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
OWN: dict[str, Any] = {"train_x": X, "train_y": np.arange(60) % 3, "test_x": X[:9], "test_y": np.arange(9) % 3}


def test_digits_are_as_announced() -> None:
    digits, info = load("digits"), {info.name: info for info in available()}["digits"]
    assert (digits.input_shape, digits.classes) == (info.input_shape, info.classes) == ((1, 28, 28), 10)
    assert [len(digits.train) + len(digits.validation), len(digits.test)] == [info.train, info.test]
    assert info.train + info.test == 1797


def test_digits_are_ink_on_0_to_255() -> None:
    x = load("digits").train.x
    assert x.dtype == torch.uint8 and (int(x.min()), int(x.max())) == (0, 255)


def test_digits_test_split_has_a_fifth_of_every_class() -> None:
    digits = load("digits")
    every = sum(torch.bincount(split.y) for split in (digits.train, digits.validation, digits.test))
    assert torch.equal(torch.bincount(digits.test.y), every // 5)


def test_digits_are_the_same_every_time() -> None:
    assert load("digits").digests() == load("digits").digests()


def test_digits_need_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtra, match="scikit-learn"):
        load("digits")


def test_downloading_needs_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(MissingExtra, match="torchvision"):
        load("MNIST")


def test_unknown_name_is_refused_with_the_choice() -> None:
    with pytest.raises(RequestError) as refused:
        load("mnist")
    assert refused.value.key == "dataset"
    assert refused.value.allowed.startswith("choose one of digits, MNIST, FashionMNIST, CIFAR10, ")
    assert ".npz" in refused.value.allowed and "csv:" in refused.value.allowed


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twenty images a batch in CIFAR-10's layout, whose checksums torchvision takes for the right ones."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    draw = np.random.default_rng(0)
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    contents: dict[str, dict[str, Any]] = {
        file: {"data": draw.integers(0, 256, (20, 3072), dtype=np.uint8), "labels": [n % 10 for n in range(20)]}
        for file in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    }
    contents["batches.meta"] = {"label_names": names}
    sums = {}
    for file, content in contents.items():
        (folder / file).write_bytes(pickle.dumps(content))
        sums[file] = md5((folder / file).read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR10, "train_list", [[file, sums[file]] for file in contents if file.startswith("data")])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": sums["batches.meta"]})
    return tmp_path


def test_cifar10_is_read_in_channels_first_order(cifar: Path) -> None:
    dataset = load("CIFAR10", cifar)
    raw = pickle.loads((cifar / "cifar-10-batches-py/test_batch").read_bytes())["data"]
    assert np.array_equal(dataset.test.x.numpy(), raw.reshape(20, 3, 32, 32))
    assert [len(dataset.train), len(dataset.validation)] == [80, 20]


def test_cifar10_class_names_and_augmentation(cifar: Path) -> None:
    dataset = load("CIFAR10", cifar)
    assert dataset.class_names == tuple(CIFAR10(str(cifar)).classes) and dataset.class_names[6] == "frog"
    assert dataset.augmentation == "crop_flip"


def test_cifar10_root_is_never_written_to(cifar: Path) -> None:
    folder = cifar / "cifar-10-batches-py"
    before = {path.name: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]}
    load("CIFAR10", cifar)
    assert {path.name: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]} == before


def test_cifar10_altered_is_refused_before_it_is_unpickled(cifar: Path) -> None:
    (cifar / "cifar-10-batches-py/data_batch_3").write_bytes(b"not a pickle")
    with pytest.raises(RequestError, match="a checksum differs"):
        load("CIFAR10", cifar)


def test_cifar10_lacking_a_batch_is_looked_for_elsewhere(cifar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar.tar.gz")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (cifar / "cifar-10-batches-py/data_batch_4").unlink()
    with pytest.raises(RequestError, match="cifar-10-batches-py/data_batch_4 is not in"):
        load("CIFAR10", cifar)


def saved(path: Path, **changed: Any) -> str:
    np.savez_compressed(path, **{key: array for key, array in (OWN | changed).items() if array is not None})
    return str(path)


def test_own_data(tmp_path: Path) -> None:
    dataset = load(saved(tmp_path / "mine.npz", class_names=["a", "b", "c"], mean=0.5, std=[0.25]))
    assert [len(dataset.train), len(dataset.validation), len(dataset.test)] == [45, 15, 9]
    assert (dataset.class_names, dataset.mean, dataset.std) == (("a", "b", "c"), (0.5,), (0.25,))


def test_own_data_is_found_again_by_its_name(tmp_path: Path) -> None:
    dataset = load(saved(tmp_path / "mine.npz"))
    assert load(dataset.name).digests() == dataset.digests()


def test_own_validation_split(tmp_path: Path) -> None:
    dataset = load(saved(tmp_path / "mine.npz", val_x=X[:6], val_y=np.arange(6) % 3))
    assert [len(dataset.train), len(dataset.validation)] == [60, 6]


@pytest.mark.parametrize(
    "changed",
    [
        {"test_y": None},
        {"extra": np.zeros(3)},
        {"train_y": np.array([None] * 60)},
        {"class_names": np.array(["a", "b", None])},
        {"mean": ["a"]},
        {"val_x": X[:6]},
    ],
)
def test_own_data_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as refused:
        load(saved(tmp_path / "mine.npz", **changed))
    assert "\n" not in str(refused.value)


def test_own_data_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"nowhere\.npz"):
        load(str(tmp_path / "nowhere.npz"))


def test_a_single_array_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "mine.npz").open("wb") as file:
        np.save(file, X)
    with pytest.raises(RequestError, match="a single array"):
        load(str(tmp_path / "mine.npz"))


def _whole() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **OWN)
    return buffer.getvalue()


WHOLE = _whole()


def test_encrypted_own_data_is_refused(tmp_path: Path) -> None:
    altered = bytearray(WHOLE)
    # Bit 0 of the flags in the first entry of the archive's directory.
    altered[altered.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "mine.npz").write_bytes(altered)
    with pytest.raises(RequestError, match="encrypted"):
        load(str(tmp_path / "mine.npz"))


@given(st.integers(0, len(WHOLE) - 1))
def test_truncated_own_data_is_refused(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    path = tmp_path_factory.mktemp("npz") / "mine.npz"
    path.write_bytes(WHOLE[:length])
    with pytest.raises(RequestError):
        load(str(path))


@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
def test_altered_own_data_is_refused_or_unharmed(
    tmp_path_factory: pytest.TempPathFactory, position: int, change: int
) -> None:
    path = tmp_path_factory.mktemp("npz") / "mine.npz"
    altered = bytearray(WHOLE)
    altered[position] ^= change
    path.write_bytes(altered)
    try:
        digests = load(str(path)).digests()
    except RequestError:
        return
    path.write_bytes(WHOLE)
    assert digests == load(str(path)).digests()


def test_a_path_is_as_good_as_its_name(tmp_path: Path) -> None:
    place = saved(tmp_path / "mine.npz")
    named = load(str(place), str(tmp_path))
    assert load(Path(place)).digests() == named.digests()

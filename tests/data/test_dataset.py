"""Dataset and Split: what they accept, what they refuse, and what they do to a batch."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from ddray.data import Dataset, Split
from ddray.errors import RequestError

X = np.random.default_rng(0).integers(0, 256, (60, 3, 8, 9), dtype=np.uint8)
Y = np.arange(60) % 3


def make(**changed: Any) -> Dataset:
    given: dict[str, Any] = {"train_x": X, "train_y": Y, "test_x": X[:9], "test_y": Y[:9]} | changed
    return Dataset(given.pop("train_x"), given.pop("train_y"), given.pop("test_x"), given.pop("test_y"), **given)


def with_shape(*shape: int) -> Dataset:
    x = np.random.default_rng(1).random((60, *shape), dtype=np.float32)
    return make(train_x=x, test_x=x[:9])


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ((8, 9), (1, 8, 9)),
        ((3, 8, 9), (3, 8, 9)),
        ((8, 9, 3), (3, 8, 9)),
        ((8, 9, 1), (1, 8, 9)),
        ((3, 8, 3), (3, 8, 3)),
        ((4, 8, 9), (4, 8, 9)),
        ((20,), (20,)),
        ((2, 3, 4, 5), (2, 3, 4, 5)),
    ],
)
def test_shape_of_an_example(given: tuple[int, ...], kept: tuple[int, ...]) -> None:
    assert with_shape(*given).input_shape == kept


def test_channels_last_become_channels_first() -> None:
    assert make(train_x=X.transpose(0, 2, 3, 1), test_x=X[:9]).digests() == make().digests()


def test_types_are_uint8_and_int64() -> None:
    dataset = make(train_y=Y.astype(np.uint8), test_y=torch.from_numpy(Y[:9]).short())
    assert (dataset.train.x.dtype, dataset.train.y.dtype, dataset.test.y.dtype) == (
        torch.uint8,
        torch.int64,
        torch.int64,
    )


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_floats_become_float32(kind: torch.dtype) -> None:
    x = torch.rand(60, 1, 8, 8).to(kind).requires_grad_()
    dataset = make(train_x=x, test_x=x[:9])
    assert dataset.test.x.dtype == torch.float32 and not dataset.test.x.requires_grad
    assert_close(dataset.test.x, x.detach()[:9].float())


def test_arrays_in_reverse_are_accepted() -> None:
    assert make(test_x=X[8::-1], test_y=Y[8::-1]).test.y.tolist() == Y[8::-1].tolist()


def test_memory_is_shared_with_the_given_arrays() -> None:
    dataset = make(val_x=X[:5], val_y=Y[:5])
    assert dataset.train.x.data_ptr() == X.ctypes.data and dataset.train.y.data_ptr() == Y.ctypes.data


def test_class_names_and_count() -> None:
    assert make().class_names == ("0", "1", "2")
    assert make(class_names=np.array(["a", "b", "c"])).class_names == ("a", "b", "c") and make().classes == 3


def nan() -> np.ndarray:
    x = X.astype(np.float32)
    x[3, 0, 2, 2] = np.nan
    return x


F = X.astype(np.float32)
REFUSALS: list[tuple[str, dict[str, Any]]] = [
    ("train_x", {"train_x": X[:0], "train_y": Y[:0]}),
    ("test_x", {"test_x": X[:0], "test_y": Y[:0]}),
    ("val_x", {"val_x": X[:0], "val_y": Y[:0]}),
    ("train_x", {"train_x": X[:, :, :0]}),
    ("train_x", {"train_x": X[:59]}),
    ("test_x", {"test_y": Y[:8]}),
    ("train_x", {"train_x": X[:, 0, 0, 0]}),
    ("train_x", {"train_y": Y[:, None]}),
    ("train_x", {"train_x": X.astype(np.int64)}),
    ("train_x", {"train_x": X > 7}),
    ("train_x", {"train_x": F + 1j}),
    ("train_x", {"train_x": nan()}),
    ("train_x", {"train_x": np.where(F > 254, np.inf, F)}),
    ("train_x", {"train_x": F.astype(np.float64) * 1e300}),
    ("train_y", {"train_y": Y.astype(np.float32)}),
    ("train_y", {"train_y": Y > 0}),
    ("train_y", {"train_y": Y - 1}),
    ("train_y", {"train_y": Y + 1}),
    ("train_y", {"train_y": Y * 2}),
    ("train_y", {"train_y": Y * 0}),
    ("train_y", {"train_y": Y.astype(np.uint64) + np.uint64(2**63)}),
    ("train_y", {"train_x": X[:3], "train_y": Y[:3]}),
    ("test_y", {"test_y": Y[:9] + 1}),
    ("test_x", {"test_x": X[:9, :2]}),
    ("test_x", {"test_x": F[:9]}),
    ("val_x", {"val_x": X[:9, :, :5], "val_y": Y[:9]}),
    ("val_y", {"val_x": X[:9], "val_y": Y[:9] + 3}),
    ("val_y", {"val_x": X[:9]}),
    ("val_x", {"val_y": Y[:9]}),
    ("class_names", {"class_names": ["a", "b"]}),
    ("mean", {"mean": [0.5]}),
    ("mean", {"mean": [0.5, 0.5, float("nan")]}),
    ("mean", {"mean": ["a", "b", "c"]}),
    ("std", {"std": [0.5, 0.5, 0.0]}),
    ("std", {"std": [0.5, 0.5, -1.0]}),
    ("std", {"std": 0.5}),
    ("std", {"train_x": np.full_like(X, 7)}),
    ("augmentation", {"augmentation": "crop-flip"}),
    ("augmentation", {"train_x": X[:, :, :4], "test_x": X[:9, :, :4], "augmentation": "crop_flip"}),
    ("augmentation", {"train_x": F[:, 0, 0], "test_x": F[:9, 0, 0], "augmentation": "crop_flip"}),
]


@pytest.mark.parametrize(("key", "changed"), REFUSALS)
def test_refused_in_one_line(key: str, changed: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as refused:
        make(**changed)
    assert refused.value.key == key and "\n" not in str(refused.value)


def test_unknown_split_is_refused() -> None:
    with pytest.raises(RequestError, match="one of train, validation, test"):
        make().split("val")


def test_split_by_name() -> None:
    dataset = make()
    assert [dataset.split(name) for name in dataset.digests()] == [dataset.train, dataset.validation, dataset.test]


def test_digest_tells_inputs_labels_types_and_shapes_apart() -> None:
    x, y = torch.zeros(4, 2, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)
    changed = x.clone()
    changed[3, 1] = 1
    splits = [Split(x, y), Split(changed, y), Split(x, y + 1), Split(x.view(4, 1, 2), y), Split(x.view(torch.int8), y)]
    assert len({split.digest() for split in splits}) == len(splits)


def test_digest_is_that_of_every_release() -> None:
    split = Split(torch.arange(6, dtype=torch.uint8).view(3, 2), torch.tensor([0, 1, 1]))
    assert split.digest() == "1fc3a65151e6e62ec91c213b14924366bc3c63a1eab2dea6f39f20112391f2fe"


def test_digest_does_not_depend_on_memory_layout() -> None:
    x, y = torch.arange(24.0).view(4, 2, 3), torch.arange(4)
    assert Split(x.transpose(1, 2).contiguous().transpose(1, 2), y).digest() == Split(x, y).digest()


def test_take_keeps_the_order_asked_for() -> None:
    taken = make().test.take(torch.tensor([4, 0, 4]))
    assert taken.y.tolist() == [1, 0, 1] and len(taken) == 3
    assert torch.equal(taken.x, torch.from_numpy(X[[4, 0, 4]]))


def test_same_device_is_no_move() -> None:
    dataset = make()
    assert dataset.to("cpu") is dataset and dataset.train.to(torch.device("cpu")) is dataset.train


def test_move_takes_every_split_and_leaves_the_original() -> None:
    dataset = make()
    moved = dataset.to("meta")
    assert {moved.split(name).x.device.type for name in ("train", "validation", "test")} == {"meta"}
    assert dataset.train.x.device.type == "cpu" and moved.mean == dataset.mean


def test_measured_statistics_are_those_of_training_alone() -> None:
    dataset = make()
    pixels = dataset.train.x.double() / 255
    assert_close(torch.tensor(dataset.mean).double(), pixels.mean((0, 2, 3)), atol=1e-7, rtol=0)
    assert_close(torch.tensor(dataset.std).double(), pixels.std((0, 2, 3), correction=0), atol=1e-7, rtol=0)


def test_given_mean_is_kept_while_std_is_measured() -> None:
    dataset = make(mean=[0.1, 0.2, 0.3])
    assert dataset.mean == (0.1, 0.2, 0.3) and dataset.std == make().std


@pytest.mark.parametrize("shape", [(3, 8, 9), (20,), (2, 3, 4, 5)])
def test_normalised_training_has_mean_0_and_std_1(shape: tuple[int, ...]) -> None:
    dataset = with_shape(*shape)
    x = dataset.normalise(dataset.train.x)
    axes = [axis for axis in range(x.dim()) if axis != 1]
    assert_close(x.mean(axes), torch.zeros(shape[0]), atol=1e-5, rtol=0)
    assert_close(x.std(axes, correction=0), torch.ones(shape[0]))


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32, torch.float64])
def test_normalise_gives_float32_and_leaves_its_input(kind: torch.dtype) -> None:
    x = torch.randint(256, (5, 3, 8, 9)).to(kind)
    before = x.clone()
    normalised = make(mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6]).normalise(x)
    scale = 255 if kind == torch.uint8 else 1
    expected = (x.double() / scale - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.4, 0.5, 0.6]).view(
        3, 1, 1
    )
    assert normalised.dtype == torch.float32 and torch.equal(x, before)
    assert_close(normalised, expected.float(), atol=1e-5, rtol=1e-5)


@given(st.tuples(*[st.floats(0.01, 1)] * 3), st.tuples(*[st.floats(0.05, 1)] * 3))
def test_denormalise_undoes_normalise(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    dataset = make(mean=mean, std=std)
    assert_close(dataset.denormalise(dataset.normalise(dataset.test.x)), dataset.test.x / 255, atol=1e-5, rtol=0)


def test_denormalise_clips() -> None:
    x = torch.tensor([-100.0, 100.0]).view(2, 1, 1, 1).expand(2, 3, 8, 9)
    assert make().denormalise(x).unique().tolist() == [0, 1]


def test_pickled_and_back() -> None:
    dataset = make(name="mine", augmentation="crop_flip")
    again = pickle.loads(pickle.dumps(dataset))
    assert again.digests() == dataset.digests()
    assert (again.name, again.mean, again.std, again.augmentation) == ("mine", dataset.mean, dataset.std, "crop_flip")


def test_importing_the_data_room_loads_no_optional_package() -> None:
    optional = "{'ray', 'optuna', 'mlflow', 'torchvision', 'sklearn', 'matplotlib'}"
    code = f"import sys, ddray.data; sys.exit(bool({optional} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

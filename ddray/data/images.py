"""Image datasets, and a user's own arrays from an `.npz` file."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddray.data.dataset import Dataset, DatasetInfo
from ddray.data.files import located, read_idx
from ddray.data.splits import stratified_share
from ddray.errors import MissingExtra, RequestError

_DIGITS = tuple("0123456789")
_CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_THINGS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_DIGITS_SEED = 20181127
_CIFAR_FOLDER = "cifar-10-batches-py"
_REQUIRED = ("train_x", "train_y", "test_x", "test_y")
_OPTIONAL = ("val_x", "val_y", "class_names", "mean", "std")


def _digits(_: Path | None) -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtra("scikit-learn", "the digits dataset") from error
    raw = load_digits()
    small = torch.from_numpy(raw.images)[:, None].float() * (255.0 / 16.0)
    x = torch.nn.functional.interpolate(small, size=(28, 28), mode="bilinear", align_corners=False)
    x, y = x.round().clamp(0, 255).to(torch.uint8), torch.from_numpy(raw.target).long()
    test = stratified_share(y, 0.2, torch.Generator().manual_seed(_DIGITS_SEED))
    return Dataset(x[~test], y[~test], x[test], y[test], name="digits", class_names=_DIGITS)


def _idx_dataset(name: str, class_names: tuple[str, ...], mean: float, std: float, root: Path | None) -> Dataset:
    kinds = [(part, kind) for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    places = located(name, [f"{name}/raw/{part}-{kind}-ubyte" for part, kind in kinds], root)
    arrays = [read_idx(place, int(kind[-1])) for place, (_, kind) in zip(places, kinds, strict=True)]
    return Dataset(*arrays, name=name, class_names=class_names, mean=(mean,), std=(std,))


def _cifar10(root: Path | None) -> Dataset:
    batches = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"]
    place = located("CIFAR10", [f"{_CIFAR_FOLDER}/{file}" for file in batches], root)[0].parents[1]
    try:
        from torchvision.datasets import CIFAR10
    except ImportError as error:
        raise MissingExtra("torchvision", "reading CIFAR10") from error
    try:
        train, test = (CIFAR10(str(place), train=part, download=False) for part in (True, False))
    except RuntimeError:
        allowed = "the original files; a checksum differs"
        raise RequestError("dataset file", str(place / _CIFAR_FOLDER), allowed) from None
    arrays = [np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)) for part in (train, test)]
    return Dataset(
        arrays[0], np.array(train.targets), arrays[1], np.array(test.targets), name="CIFAR10", class_names=_THINGS,
        mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.243, 0.261), augmentation="crop_flip",
    )  # fmt: skip


def read_npz(path: Path) -> Dataset:
    """A user's own arrays: see `ddray.data.load`."""
    arrays = _npz_arrays(path)
    options: dict[str, Any] = {key: arrays[key] for key in ("val_x", "val_y") if key in arrays}
    options |= {key: np.atleast_1d(arrays[key]).tolist() for key in ("class_names", "mean", "std") if key in arrays}
    # The path is the name, so that the record of a distilled set leads back to its data.
    return Dataset(*(arrays[key] for key in _REQUIRED), name=str(path), **options)


def _npz_arrays(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            with file:
                lacking = [key for key in _REQUIRED if key not in file.files]
                unknown = sorted(set(file.files) - {*_REQUIRED, *_OPTIONAL})
                arrays = {} if lacking or unknown else {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError, MemoryError) as error:
        reason = " ".join(str(error).split())
        raise RequestError("dataset", str(path), f"an .npz file that can be read: {reason}") from None
    if lacking or unknown:
        allowed = f"arrays {', '.join(_REQUIRED)}; lacking: {lacking}, unknown: {unknown}"
        raise RequestError("dataset", str(path), allowed)
    return arrays


IMAGES: dict[str, tuple[DatasetInfo, Callable[[Path | None], Dataset]]] = {
    "digits": (DatasetInfo("digits", 10, (1, 28, 28), 1442, 355, "nothing: scikit-learn ships it"), _digits),
    "MNIST": (
        DatasetInfo("MNIST", 10, (1, 28, 28), 60_000, 10_000, "11 MB, downloaded once"),
        partial(_idx_dataset, "MNIST", _DIGITS, 0.1307, 0.3081),
    ),
    "FashionMNIST": (
        DatasetInfo("FashionMNIST", 10, (1, 28, 28), 60_000, 10_000, "30 MB, downloaded once"),
        partial(_idx_dataset, "FashionMNIST", _CLOTHES, 0.2860, 0.3530),
    ),
    "CIFAR10": (DatasetInfo("CIFAR10", 10, (3, 32, 32), 50_000, 10_000, "170 MB, downloaded once"), _cifar10),
}

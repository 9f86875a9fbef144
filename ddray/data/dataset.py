"""Real data as tensors: one dataset with its three splits."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ddray.data.augment import PADDING, crop_flip
from ddray.data.examples import Array, count_classes, examples, per_channel, statistics
from ddray.data.splits import validation_members
from ddray.errors import RequestError

Augmentation = Literal["none", "crop_flip"]


@dataclass(frozen=True)
class TextOptions:
    """How text is shown to a network; what is None is decided by the texts themselves (see `ddray.data.text`)."""

    vocab_size: int | None = None  # words, `<pad>` and `<unk>` among them
    max_length: int | None = None  # words of a sentence
    embedding_dim: int | None = None
    vectors: str = "auto"  # "auto", "learned", a GloVe name, or a file; several joined by "+" are laid side by side
    word_dropout: float = 0.0  # the share of words that are unknown, drawn anew for every batch of the outer loss


_VALIDATION_SEED = 20181127  # of no run: every user of a dataset holds out the same examples


@dataclass(frozen=True)
class DatasetInfo:
    """A dataset that ddray knows by name; `train` includes what becomes validation, `input_shape` is empty for text."""

    name: str
    classes: int
    input_shape: tuple[int, ...]
    train: int
    test: int
    needs: str


@dataclass(frozen=True, eq=False)
class Split:
    """Examples x, uint8 or float32 [N, ...], and their classes y, int64 [N]. Nothing writes into a split."""

    x: Tensor
    y: Tensor
    _digest: list[str] = field(default_factory=list, repr=False)

    def __len__(self) -> int:
        return len(self.y)

    def digest(self) -> str:
        """SHA-256 over types, shapes and bytes, worked out once."""
        if not self._digest:
            sha = hashlib.sha256()
            for tensor in (self.x, self.y):
                array = np.ascontiguousarray(tensor.cpu().numpy())
                sha.update(f"{array.dtype.str}{array.shape}".encode())
                sha.update(array.tobytes())
            self._digest.append(sha.hexdigest())
        return self._digest[0]

    def take(self, indices: Tensor) -> Split:
        """The examples at `indices`, in that order."""
        return Split(self.x[indices], self.y[indices])

    def to(self, device: torch.device | str) -> Split:
        """The split on a device; itself where it is there already."""
        if self.x.device == _indexed(device):
            return self
        return Split(self.x.to(device), self.y.to(device), self._digest)

    def __reduce__(self) -> tuple[Any, ...]:
        # As NumPy arrays, so that Ray's object store hands every reader the same memory.
        return _rebuild, (self.x.cpu().numpy(), self.y.cpu().numpy(), self._digest)


class Dataset:
    """Training, validation and test examples with what is needed to show them to a network.

    Args:
        train_x: images [N, H, W], [N, C, H, W] or [N, H, W, 1 or 3], or other inputs [N, ...]; uint8 or floating.
        train_y: classes [N], whole numbers 0 … K - 1, each at least once.
        test_x: like train_x, of the same shape.
        test_y: like train_y.
        val_x: an official validation split; without one, it is cut from training (see `validation_members`).
        val_y: its classes.
        name: what the dataset is called in records.
        class_names: K names; the class numbers without them.
        mean: of every channel, on the scale of x / 255 for uint8 and of x for floats; measured on training without it.
        std: likewise.
        augmentation: `crop_flip` pads by 4 (reflected), crops at random and flips at random.

    Raises:
        RequestError: arrays that do not go together, or hold what is not a number.

    Attributes:
        expands: an example that is shown to a network takes far more memory than a stored one: it is shown in small batches.

    """

    expands = False

    def __init__(
        self, train_x: Array | Tensor, train_y: Array | Tensor, test_x: Array | Tensor, test_y: Array | Tensor, *,
        val_x: Array | Tensor | None = None, val_y: Array | Tensor | None = None, name: str = "custom",
        class_names: Sequence[str] | None = None, mean: Sequence[float] | None = None, std: Sequence[float] | None = None,
        augmentation: Augmentation = "none",
    ) -> None:  # fmt: skip
        train, self.test = _split("train", train_x, train_y), _split("test", test_x, test_y)
        classes = count_classes(train.y)
        if (val_x is None) != (val_y is None):
            raise RequestError("val_x" if val_x is None else "val_y", None, "val_x and val_y, both or neither")
        if val_x is not None and val_y is not None:
            self.train, self.validation = train, _split("val", val_x, val_y)
        else:
            kept_back = held_out(train.y, "train_y", len(train))
            self.train, self.validation = train.take(~kept_back), train.take(kept_back)
        for part, split in (("val", self.validation), ("test", self.test)):
            _check_alike(part, split, train.x, classes)
        _check_augmentation(augmentation, train.x)
        self.name, self.augmentation = name, str(augmentation)
        self.class_names = tuple(str(c) for c in (range(classes) if class_names is None else class_names))
        if len(self.class_names) != classes:
            raise RequestError("class_names", len(self.class_names), f"{classes} names, one for each class")
        if mean is None or std is None:
            measured = statistics(self.train.x)
            mean, std = measured[0] if mean is None else mean, measured[1] if std is None else std
        channels = train.x.shape[1]
        self.mean, self.std = per_channel("mean", mean, channels), per_channel("std", std, channels)
        if min(self.std) <= 0:
            raise RequestError("std", self.std, "positive numbers (a channel that never changes has none)")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self.train.x.shape[1:])

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def split(self, name: str) -> Split:
        """`train`, `validation` or `test`."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        if name not in splits:
            raise RequestError("split", name, f"one of {', '.join(splits)}")
        return splits[name]

    def presented(self, options: TextOptions) -> Dataset:
        """The dataset that the options ask for: itself, for what is no text.

        Raises:
            RequestError: an option that only text has.

        """
        for key, value in vars(options).items():
            if value != getattr(TextOptions(), key):
                raise RequestError(f"data.{key}", value, f"for text alone: {self.name} has none")
        return self

    def digests(self) -> dict[str, str]:
        """SHA-256 of every split."""
        return {name: self.split(name).digest() for name in ("train", "validation", "test")}

    def to(self, device: torch.device | str) -> Dataset:
        """The dataset on a device; itself where it is there already."""
        if self.train.x.device == _indexed(device):
            return self
        moved = object.__new__(type(self))
        moved.__dict__.update(self.__dict__)
        moved.train, moved.validation, moved.test = (s.to(device) for s in (self.train, self.validation, self.test))
        return moved

    def normalise(self, x: Tensor) -> Tensor:
        """Stored examples [N, ...] as float32, less the mean and divided by the std of each channel."""
        scale = 255.0 if x.dtype == torch.uint8 else 1.0
        factor = self._per_channel([1 / (scale * s) for s in self.std], x)
        offset = self._per_channel([-m / s for m, s in zip(self.mean, self.std, strict=True)], x)
        return ((x if x.dtype == torch.uint8 else x.float()) * factor).add_(offset)

    def denormalise(self, x: Tensor) -> Tensor:
        """Normalised examples as pictures in [0, 1], clipped."""
        return (x * self._per_channel(self.std, x) + self._per_channel(self.mean, x)).clamp(0, 1)

    def augment(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Stored examples [N, C, H, W], augmented as the dataset is by custom; `generator` lives where x does."""
        return crop_flip(x, generator) if self.augmentation == "crop_flip" else x

    def _per_channel(self, values: Sequence[float], x: Tensor) -> Tensor:
        found = torch.tensor(values, dtype=torch.float32).view(-1, *([1] * (x.dim() - 2)))
        # Else the copy would wait for all that a GPU still has to do.
        return found.pin_memory().to(x.device, non_blocking=True) if x.is_cuda else found.to(x.device)


def _split(name: str, x: Array | Tensor, y: Array | Tensor) -> Split:
    inputs, classes = examples(name, x, y)
    return Split(share(inputs), share(classes))


def _check_alike(part: str, split: Split, train_x: Tensor, classes: int) -> None:
    given, wanted = ([str(x.dtype), *x.shape[1:]] for x in (split.x, train_x))
    if given != wanted:
        raise RequestError(f"{part}_x", given, f"type and shape of the examples in train_x, {wanted}")
    if int(split.y.max()) >= classes:
        raise RequestError(f"{part}_y", int(split.y.max()), f"only classes that train_y has, 0 … {classes - 1}")


def _check_augmentation(augmentation: str, x: Tensor) -> None:
    if augmentation not in get_args(Augmentation):
        raise RequestError("augmentation", augmentation, " or ".join(get_args(Augmentation)))
    if augmentation == "crop_flip" and (x.dim() != 4 or min(x.shape[2:]) <= PADDING):
        raise RequestError("augmentation", augmentation, f"for images of more than {PADDING}×{PADDING} pixels alone")


def _rebuild(x: Array, y: Array, digest: list[str]) -> Split:
    return Split(share(x), share(y), digest)


def held_out(y: Tensor, key: str, value: object) -> Tensor:
    """A mask, bool [N], of the examples of classes y, int64 [N], that every user of a dataset holds out for validation.

    Raises:
        RequestError: no class has an example to spare; it names `key` and `value`.

    """
    members = validation_members(y, torch.Generator().manual_seed(_VALIDATION_SEED))
    if not members.any():
        allowed = f"two training examples or more of some class, for a validation split; there are {len(y)} in all"
        raise RequestError(key, value, allowed)
    return members


def share(array: Array) -> Tensor:
    """The array's memory as a tensor that nothing writes into."""
    with warnings.catch_warnings():
        # Arrays from Ray's object store are read-only; that is safe, because nothing writes into a split.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)
        return torch.from_numpy(array)


def _indexed(device: torch.device | str) -> torch.device:
    """The device as tensors name it: `cuda` is `cuda:0` there."""
    return torch.empty(0, device=device).device

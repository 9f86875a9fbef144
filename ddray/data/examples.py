"""Arrays as a user gives them, checked and made into examples."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ddray.errors import RequestError

Array = npt.NDArray[Any]


def examples(name: str, x: Array | Tensor, y: Array | Tensor) -> tuple[Array, Array]:
    """Inputs, uint8 or float32 [N, ...], images as [N, C, H, W], and their classes, int64 [N]; no copy where none is needed.

    Raises:
        RequestError: no examples, lengths that differ, another type, NaN, infinity, or a class below 0; `name` is the
            split's.

    """
    inputs, classes = _array(x), _array(y)
    if inputs.ndim < 2 or classes.ndim != 1 or len(inputs) != len(classes) or not inputs.size:
        allowed = f"examples [N, …], and a class for each in {name}_y, which is {list(classes.shape)}"
        raise RequestError(f"{name}_x", list(inputs.shape), allowed)
    if not np.issubdtype(classes.dtype, np.integer):
        raise RequestError(f"{name}_y", str(classes.dtype), "whole numbers from 0")
    if classes.min() < 0:
        raise RequestError(f"{name}_y", int(classes.min()), "whole numbers from 0")
    return np.ascontiguousarray(_inputs(name, inputs)), np.ascontiguousarray(classes, np.int64)


def count_classes(y: Tensor) -> int:
    """K of classes 0 … K - 1, each at least once in training.

    Raises:
        RequestError: one class only, or numbers with gaps.

    """
    present = y.unique().tolist()
    if len(present) < 2 or present != list(range(len(present))):
        raise RequestError("train_y", present[:5], "at least two classes, numbered from 0 without gaps")
    return len(present)


def per_channel(key: str, values: Iterable[float], channels: int) -> tuple[float, ...]:
    """A mean or std of every channel.

    Raises:
        RequestError: another number of them, or what is not a finite number; `key` names them.

    """
    allowed = f"{channels} finite numbers, one for each channel"
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        raise RequestError(key, values, allowed) from None
    if len(numbers) != channels or not np.isfinite(numbers).all():
        raise RequestError(key, numbers, allowed)
    return numbers


def statistics(x: Tensor) -> tuple[list[float], list[float]]:
    """Mean and std of every channel of [N, C, ...], on the scale of x / 255 for uint8 and of x for floats."""
    scale, count = 255.0 if x.dtype == torch.uint8 else 1.0, x.numel() / x.shape[1]
    axes = [axis for axis in range(x.dim()) if axis != 1]
    chunks = x.split(4096)  # in float64, which all of x at once need not become
    mean = torch.stack([chunk.double().sum(axes) for chunk in chunks]).sum(0) / count
    center = mean.view(-1, *([1] * (x.dim() - 2)))
    variance = torch.stack([(chunk.double() - center).square_().sum(axes) for chunk in chunks]).sum(0) / count
    return (mean / scale).tolist(), (variance.sqrt() / scale).tolist()


def _array(values: Array | Tensor) -> Array:
    if not isinstance(values, Tensor):
        return np.asarray(values)
    # NumPy has no bfloat16.
    return (values.float() if values.is_floating_point() else values).detach().cpu().numpy()


def _inputs(name: str, x: Array) -> Array:
    if x.dtype != np.uint8:
        if not np.issubdtype(x.dtype, np.floating):
            raise RequestError(f"{name}_x", str(x.dtype), "uint8 or floating numbers")
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused below
            x = x.astype(np.float32, copy=False)
        if not np.isfinite(x).all():
            raise RequestError(f"{name}_x", "NaN or infinity", "finite numbers that float32 can hold")
    if x.ndim == 3:
        return x[:, None]
    channels_last = x.ndim == 4 and x.shape[-1] in (1, 3) and x.shape[1] not in (1, 3)
    return x.transpose(0, 3, 1, 2) if channels_last else x

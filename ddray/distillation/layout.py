"""How a convolution is computed: which of several kernels, for the same numbers to rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

LAYOUTS = ("blocked", "plain", "im2col")


@contextmanager
def convolutions(layout: str) -> Iterator[None]:
    """Inside, convolutions are computed in one way.

    blocked     as torch chooses: on a CPU oneDNN, which reorders tensors into blocks first
    plain       on a CPU torch's own kernels, without the reordering, which costs more than it gains on ten small images
    im2col      every 2-D convolution is written as one matrix product over patches, so that its derivatives are products too
    a word      of letters, one for each convolution (on a GPU, product too) of a traced step, as `ddray.distillation.kernels`
                says; elsewhere as blocked
    """
    if layout == "im2col":
        with _Im2col():
            yield
        return
    before = bool(torch.backends.mkldnn.enabled)
    torch.backends.mkldnn.enabled = before and layout != "plain"  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before  # type: ignore[assignment]


class _Im2col(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        if func is F.conv2d:
            return conv2d_by_patches(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def conv2d_by_patches(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int | tuple[int, int] = 1,
    padding: int | str | tuple[int, int] = 0, dilation: int | tuple[int, int] = 1, groups: int = 1,
) -> Tensor:  # fmt: skip
    """`torch.nn.functional.conv2d` of x [N, C, H, W] as a matrix product; groups and named padding go to the original."""
    if groups != 1 or isinstance(padding, str):
        with torch._C.DisableTorchFunction():
            return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    kernel, pads, strides, steps = weight.shape[2:], pair(padding), pair(stride), pair(dilation)
    patches = F.unfold(x, tuple(kernel), padding=pads, stride=strides, dilation=steps)  # [N, C·h·w, positions]
    out = weight.flatten(1) @ patches
    if bias is not None:
        out = out + bias[:, None]
    height = (x.shape[2] + 2 * pads[0] - steps[0] * (kernel[0] - 1) - 1) // strides[0] + 1
    image: Tensor = out.unflatten(-1, (height, -1))
    return image


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """Height and width, of which one number may stand for both."""
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def is_usual(arguments: Sequence[Any], *, backward: bool) -> bool:
    """Whether `aten.convolution`'s arguments, or those of its derivative, are 2-D, of one group, and without dilation.

    Of the derivative of a transposed convolution, they are not.
    """
    *_, stride, _, dilation, transposed, _, groups = arguments[: 10 if backward else 9]
    return len(stride) == 2 and groups == 1 and list(dilation) == [1, 1] and not (backward and transposed)

"""A CPU's kernels for convolutions and matrix products: torch's own, oneDNN's, and a derivative as a convolution turned around."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ddray.distillation.layout import is_usual

_aten = torch.ops.aten
_FORWARD, _BACKWARD = _aten.convolution.default, _aten.convolution_backward.default
_PRODUCT = _aten.mm.default
_LINEAR = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def convolution_forms(target: Any, args: Sequence[Any]) -> dict[str, Callable[..., Any]]:
    """What computes `aten.convolution`, or `aten.convolution_backward`, of such arguments, by letter."""
    backward = target is _BACKWARD
    if not is_usual(args, backward=backward):
        return {"B": target}
    if not backward:
        return {"B": _FORWARD, "P": plain_forward}
    forms: dict[str, Callable[..., Any]] = {"B": _BACKWARD, "P": plain_backward}
    by_input, by_weight, _ = args[-1]
    if by_input and by_weight:
        forms |= {"X": plain_blocked, "Y": blocked_plain, "T": blocked_turned, "Z": plain_turned}
    elif by_weight:
        forms["T"] = turned_backward
    return forms


def product_forms(target: Any, args: Sequence[Any]) -> dict[str, Callable[..., Any]]:
    """What computes `aten.mm`, or `aten.addmm`, of such arguments, by letter."""
    plain = all(factor.dtype == torch.float32 for factor in args) and (target is _PRODUCT or args[0].dim() == 1)
    if _LINEAR is None or not plain:
        return {"B": target}
    return {"B": target, "L": linear if target is _PRODUCT else linear_plus}


def plain_forward(*args: Any) -> Any:
    """A convolution by torch's own kernel."""
    x, weight, bias, stride, padding, dilation, transposed, output_padding, _ = args
    kernel = weight.shape[2:]
    if not transposed:
        return _aten._slow_conv2d_forward(x, weight, kernel, bias, stride, padding)
    if bias is not None or not _divides(x, weight, stride, padding, output_padding):
        return _aten.slow_conv_transpose2d(x, weight, kernel, bias, stride, padding, output_padding, dilation)
    # As the derivative of a convolution by its input, of which only the shape counts: more than twice as fast.
    rows, columns = (_length(x, weight, i, stride, padding, output_padding) for i in range(2))
    like = x.new_empty(1).expand(len(x), weight.shape[1], rows, columns)
    return _aten._slow_conv2d_backward.output_mask(x, like, weight, kernel, stride, padding, [True, False, False])[0]


def _length(
    x: Tensor, weight: Tensor, i: int, stride: Sequence[int], padding: Sequence[int], more: Sequence[int]
) -> int:
    """Rows (i = 0) or columns (1) of a transposed convolution."""
    return (x.shape[i + 2] - 1) * stride[i] - 2 * padding[i] + weight.shape[i + 2] + more[i]


def _divides(x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], more: Sequence[int]) -> bool:
    """Whether a convolution of what a transposed one gives has the shape of what that was given."""
    lengths = [_length(x, weight, i, stride, padding, more) + 2 * padding[i] - weight.shape[i + 2] for i in range(2)]
    return all(length // stride[i] + 1 == x.shape[i + 2] for i, length in enumerate(lengths))


def plain_backward(*args: Any) -> Any:
    """A convolution's derivatives by torch's own kernels."""
    slope, x, weight, _, stride, padding, _, _, _, _, mask = args
    return _aten._slow_conv2d_backward.output_mask(slope, x, weight, weight.shape[2:], stride, padding, mask)


def turned_backward(*args: Any) -> Any:
    """A convolution's derivatives by weight and bias, the former as a convolution whose channels are examples, by oneDNN."""
    slope, x, weight, _, stride, padding, *_, (_, by_weight, by_bias) = args
    rows, columns = weight.shape[2:]
    turned = None
    if by_weight:
        whole = _FORWARD(x.transpose(0, 1), slope.transpose(0, 1), None, [1, 1], padding, stride, False, [0, 0], 1)
        # [in, out, h, w]; a stride may leave more of h and w than the kernel has. What follows in a graph views it as a vector.
        turned = whole[..., :rows, :columns].transpose(0, 1).contiguous()
    return None, turned, slope.sum((0, 2, 3)) if by_bias else None


def plain_blocked(*args: Any) -> Any:
    """A convolution's derivatives: by the input plain, by weight and bias blocked."""
    return _in_halves(plain_backward, _BACKWARD, args)


def blocked_plain(*args: Any) -> Any:
    """A convolution's derivatives: by the input blocked, by weight and bias plain."""
    return _in_halves(_BACKWARD, plain_backward, args)


def blocked_turned(*args: Any) -> Any:
    """A convolution's derivatives: by the input blocked, by the weight turned."""
    return _in_halves(_BACKWARD, turned_backward, args)


def plain_turned(*args: Any) -> Any:
    """A convolution's derivatives: by the input plain, by the weight turned."""
    return _in_halves(plain_backward, turned_backward, args)


def _in_halves(by_input: Callable[..., Any], by_weight: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    *same, (_, weight, bias) = args
    return (by_input(*same, [True, False, False])[0], *by_weight(*same, [False, weight, bias])[1:])


def linear(a: Tensor, b: Tensor) -> Any:
    """`aten.mm` by oneDNN."""
    return linear_plus(None, a, b)


def linear_plus(bias: Tensor | None, a: Tensor, b: Tensor) -> Any:
    """`aten.addmm` by oneDNN."""
    assert _LINEAR is not None
    return _LINEAR(a, b.t(), bias, "none", [], "")

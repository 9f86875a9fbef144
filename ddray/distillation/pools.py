"""Max-pools by comparisons of whole tensors: on a CPU, torch's own kernel asks value by value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

from ddray.distillation.layout import pair

_POOL = torch.ops.aten.max_pool2d_with_indices.default
_LARGE = 100_000  # values of an input from which on a pool by comparisons pays


def compare_in_pools(graph: fx.Graph) -> None:
    """Take the largest of 2×2 values by three comparisons of whole tensors, where torch's kernel asks value by value."""
    for node in graph.nodes:
        if node.target is _POOL and _is_two_by_two(node):
            node.target = pool_by_comparisons


def _is_two_by_two(node: fx.Node) -> bool:
    x, kernel, *rest = node.args
    value = x.meta.get("val") if isinstance(x, fx.Node) else None
    usual = tuple(kernel) == (2, 2) and (not rest or tuple(rest[0]) in ((), (2, 2))) and len(rest) < 2  # type: ignore[arg-type]
    if not usual or node.kwargs or not isinstance(value, Tensor) or value.is_cuda or value.dim() != 4:
        return False
    return value.numel() >= _LARGE and value.shape[-1] % 2 == 0 and value.shape[-2] % 2 == 0


def pool_by_comparisons(x: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    """`max_pool2d_with_indices` of x [N, C, H, W] with kernel and stride 2, H and W even; of equals, the first counts.

    Returns:
        The largest of each 2×2, and its place in the plane, int64; both [N, C, H / 2, W / 2].

    """
    batch, channels, height, width = x.shape
    quarters = x.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(3, 5, 0, 1, 2, 4).contiguous()
    (a, b), (c, d) = quarters
    top, right = torch.maximum(a, b), b > a
    bottom, bottom_right = torch.maximum(c, d), d > c
    low = bottom > top
    offset = torch.where(low, bottom_right.long() + width, right.long())
    rows = torch.arange(0, height, 2, device=x.device)[:, None] * width
    corner = rows + torch.arange(0, width, 2, device=x.device)
    return torch.maximum(top, bottom), offset.add_(corner)


class ComparedPools(TorchFunctionMode):
    """Inside, where no gradient is asked for, large 2×2 max-pools on a CPU are taken by comparisons of whole tensors.

    The values are the same to the bit. Of judging a LeNet, torch's own kernel is two thirds of the time.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        given = kwargs or {}
        if func in (F.max_pool2d, torch.max_pool2d) and not torch.is_grad_enabled() and _of_quarters(*args, **given):
            return largest_of_quarters(args[0] if args else given["input"])
        return func(*args, **given)


def _of_quarters(
    input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
    return_indices: bool = False,
) -> bool:  # fmt: skip
    """Whether a pool takes the largest of 2×2 values that no other takes, of enough values to pay."""
    usual = pair(kernel_size) == pair(stride or kernel_size) == (2, 2) and pair(padding) == (0, 0)
    usual = usual and pair(dilation) == (1, 1) and not ceil_mode and not return_indices
    return usual and not input.is_cuda and input.numel() >= _LARGE


def largest_of_quarters(x: Tensor) -> Tensor:
    """`max_pool2d` of x [..., H, W] with kernel and stride 2: [..., H // 2, W // 2]."""
    rows = x[..., : x.shape[-2] // 2 * 2, : x.shape[-1] // 2 * 2]
    rows = torch.maximum(rows[..., 0::2, :], rows[..., 1::2, :])
    return torch.maximum(rows[..., 0::2], rows[..., 1::2])

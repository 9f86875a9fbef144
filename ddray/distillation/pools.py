"""Max-pools by comparisons of whole tensors: on a CPU, torch's own kernel asks value by value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

from ddray.distillation.layout import pair

_aten = torch.ops.aten
_POOL, _POOL_BACKWARD = _aten.max_pool2d_with_indices.default, _aten.max_pool2d_with_indices_backward.default
_LARGE = 40_000  # values of an input, for each thread, from which on a pool by comparisons pays
_PIECE = 2**20  # values at a time, which stay in a cache


def compare_in_pools(graph: fx.Graph) -> None:
    """Take the largest of 2×2 values by three comparisons of whole tensors, where torch's kernel asks value by value."""
    for node in graph.nodes:
        if node.target is _POOL and _is_two_by_two(node):
            node.target = pool_by_comparisons


def forget_pooled(graph: fx.Graph) -> None:
    """Give a pool's derivative a tensor without values in place of what was pooled, of which it takes the shape alone.

    On a CPU; so what was pooled need not be kept for the reverse.
    """
    for node in graph.nodes:
        pooled = node.args[1] if node.target is _POOL_BACKWARD else None
        value = pooled.meta.get("val") if isinstance(pooled, fx.Node) else None
        if isinstance(value, Tensor) and not value.is_cuda and value.is_contiguous():
            kind: dict[str, Any] = {"dtype": value.dtype, "device": value.device}
            with graph.inserting_before(node):
                nothing = graph.call_function(_aten.empty.memory_format, ([1],), kind)
                shaped = graph.call_function(_aten.expand.default, (nothing, list(value.shape)))
            nothing.meta["val"] = value.new_empty(1)
            shaped.meta["val"] = nothing.meta["val"].expand(value.shape)
            node.update_arg(1, shaped)
    graph.eliminate_dead_code()


def _is_two_by_two(node: fx.Node) -> bool:
    x, kernel, *rest = node.args
    value = x.meta.get("val") if isinstance(x, fx.Node) else None
    usual = tuple(kernel) == (2, 2) and (not rest or tuple(rest[0]) in ((), (2, 2))) and len(rest) < 2  # type: ignore[arg-type]
    if not usual or node.kwargs or not isinstance(value, Tensor) or value.is_cuda or value.dim() != 4:
        return False
    height, width = value.shape[-2:]
    exact = width < 2**8 and height * width <= 2**24  # an offset to the next row in bfloat16, a place in float32
    return value.numel() >= _enough() and height % 2 == 0 and width % 2 == 0 and exact


def pool_by_comparisons(x: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    """`max_pool2d_with_indices` of x [N, C, H, W] with kernel and stride 2, H and W even; of equals, the first counts.

    Returns:
        The largest of each 2×2, and its place in the plane, int64; both [N, C, H / 2, W / 2].

    """
    pieces = x.split(max(_PIECE // max(x[0].numel(), 1), 1))
    found = [_largest_and_place(piece) for piece in pieces]
    if len(found) == 1:
        return found[0]
    return torch.cat([largest for largest, _ in found]), torch.cat([place for _, place in found])


def _largest_and_place(x: Tensor) -> tuple[Tensor, Tensor]:
    batch, channels, height, width = x.shape
    windows = x.reshape(batch, channels, height // 2, 2, width // 2, 2)
    (a, b), (c, d) = windows.permute(3, 5, 0, 1, 2, 4).clone(memory_format=torch.contiguous_format)
    top, bottom = torch.maximum(a, b), torch.maximum(c, d)
    largest = torch.maximum(top, bottom)
    # 0 and 1 as ordinary numbers, in place: booleans and long integers take several times as long.
    top_right, bottom_right, low = a.lt_(b), c.lt_(d), top.lt_(bottom)
    offset = bottom_right.sub_(top_right).add_(width).mul_(low).add_(top_right)
    exact = torch.promote_types(x.dtype, torch.float32)  # for places in a plane of up to 2²⁴ values
    rows = torch.arange(0, height, 2, dtype=exact, device=x.device)[:, None] * width
    corner = rows + torch.arange(0, width, 2, dtype=exact, device=x.device)
    return largest, (offset.to(exact) + corner).long()


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
    return usual and not input.is_cuda and input.numel() >= _enough()


def _enough() -> int:
    """Torch's own kernel has every thread ask; ours gains less from more of them."""
    return _LARGE * torch.get_num_threads()


def largest_of_quarters(x: Tensor) -> Tensor:
    """`max_pool2d` of x [..., H, W] with kernel and stride 2: [..., H // 2, W // 2]."""
    rows = x[..., : x.shape[-2] // 2 * 2, : x.shape[-1] // 2 * 2]
    rows = torch.maximum(rows[..., 0::2, :], rows[..., 1::2, :])
    return torch.maximum(rows[..., 0::2], rows[..., 1::2])

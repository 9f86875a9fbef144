"""Which kernel computes each convolution and each pool: for the same numbers, the one that is fastest here.

oneDNN, which torch takes on a CPU, reorders tensors into blocks first; torch's own kernels do not. On ten small images either may
be three times as fast as the other, by layer, by direction and by number of threads. A choice is a word with a letter for every
convolution of the graph, in order, so that it can be written down and kept:

    B   blocked: oneDNN
    P   plain: torch's own kernel
    X   a derivative in two halves: by the input plain, by the weight blocked
    Y   the other way round

On a GPU, where B is cuDNN:

    M   matrix products over patches
    U   a derivative in two halves: by the input as products, by the weight by cuDNN
    V   the other way round

and matrix products have letters too:

    B   cuBLAS
    S   the sum in parts
    D   term by term
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

from ddray.distillation import products
from ddray.distillation.cuda_graph import Captured, now
from ddray.distillation.layout import pair

_aten = torch.ops.aten
_FORWARD, _BACKWARD, _POOL = (
    _aten.convolution.default, _aten.convolution_backward.default, _aten.max_pool2d_with_indices.default,
)  # fmt: skip
_PRODUCT, _PRODUCT_PLUS = _aten.mm.default, _aten.addmm.default
_LONG = 64  # terms of a product's sums from which on parts are tried
_FEW = 2**20  # products of numbers up to which they are tried one by one
_SECONDS = 0.02  # to spend on the timing of one convolution, if it is not slower than that
_LARGE = 100_000  # values of an input from which on a pool by comparisons pays


def assign(graph: fx.Graph, letters: str) -> None:
    """Compute the graph's convolutions (on a GPU, its products too) as the letters say; those beyond the word are blocked."""
    for node, letter in zip_longest(_chosen(graph), letters, fillvalue="B"):
        if isinstance(node, fx.Node):
            form = _forms(node.target, [_value(a) for a in node.args]).get(letter, node.target)
            if letter in "MUVSD" and callable(form) and form is not node.target:
                products.inline(graph, node, form)
            else:
                node.target = form


def measure(graph: fx.GraphModule, given: list[Tensor]) -> str:
    """The fastest letter for all in a graph that has letters, on values that it is given."""
    timing = _Timing(graph)
    with torch.no_grad():
        timing.run(*given)
    return "".join(timing.letters)


class _Timing(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.letters: list[str] = []

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if _has_letters(target, args):
            forms = _forms(target, args)
            best = dict.fromkeys(forms, float("inf"))
            runs = {letter: _run(form, args) for letter, form in forms.items()}
            began_at = time.perf_counter()
            while time.perf_counter() - began_at < _SECONDS or min(best.values()) == float("inf"):
                for letter, run in runs.items():
                    began = now(args[0].device)
                    run()
                    best[letter] = min(best[letter], now(args[0].device) - began)
            self.letters.append(min(best, key=lambda letter: best[letter]))
        return super().call_function(target, args, kwargs)


def _run(form: Callable[..., Any], args: tuple[Any, ...]) -> Callable[[], object]:
    """A form as it will run: on a GPU recorded, for launching it takes longer than it does."""

    def launched() -> list[Tensor]:
        found = form(*args)
        return [part for part in ([found] if isinstance(found, Tensor) else found) if isinstance(part, Tensor)]

    return Captured(launched) if args[0].is_cuda else launched


def _value(argument: Any) -> Any:
    return argument.meta["val"] if isinstance(argument, fx.Node) else argument


def _chosen(graph: fx.Graph) -> list[fx.Node]:
    nodes = (node for node in graph.nodes if node.op == "call_function")
    return [node for node in nodes if _has_letters(node.target, [_value(a) for a in node.args])]


def _has_letters(target: Any, args: Sequence[Any]) -> bool:
    return target in (_FORWARD, _BACKWARD) or (target in (_PRODUCT, _PRODUCT_PLUS) and _on_card(args[-1]))


def _on_card(tensor: Tensor) -> bool:
    return tensor.device.type == "cuda"


def _forms(target: Any, args: Sequence[Any]) -> dict[str, Callable[..., Any]]:
    """What computes a convolution or a product, by letter."""
    if _on_card(args[0]):
        return _product_forms(target, args) if target in (_PRODUCT, _PRODUCT_PLUS) else _forms_on_card(target, args)
    if not _has_plain(args, backward=target is _BACKWARD):
        return {"B": target}
    if target is _FORWARD:
        return {"B": _FORWARD, "P": plain_forward}
    forms: dict[str, Callable[..., Any]] = {
        "B": _BACKWARD,
        "P": plain_backward,
        "X": input_plain_backward,
        "Y": weight_plain_backward,
    }
    halves = args[-1][0] and args[-1][1]
    return forms if halves else {letter: forms[letter] for letter in "BP"}


def _product_forms(target: Any, args: Sequence[Any]) -> dict[str, Callable[..., Any]]:
    forms: dict[str, Callable[..., Any]] = {}
    (rows, length), columns = args[-2].shape, args[-1].shape[1]
    if products.number_of_parts(length) > 1 and length >= _LONG:
        forms["S"] = products.in_parts
    if rows * length * columns <= _FEW:
        forms["D"] = products.term_by_term
    if target is _PRODUCT_PLUS:
        forms = {letter: products.plus(form) for letter, form in forms.items()}
    return {"B": target, **forms}


def _forms_on_card(target: Any, args: Sequence[Any]) -> dict[str, Callable[..., Any]]:
    backward = target is _BACKWARD
    if not _has_plain(args, backward=backward):
        return {"B": target}
    if not backward:
        x, weight, _, stride, padding, _, transposed, *_ = args
        fits = products.takes(x, weight, stride, padding, turned=transposed)
        return {"B": _FORWARD, "M": products.forward} if fits else {"B": _FORWARD}
    slope, x, weight, _, stride, padding, *_, mask = args
    by_input = mask[0] and products.takes(slope, weight, stride, padding, turned=True)
    by_weight = mask[1] and products.takes(x, weight, stride, padding)
    forms: dict[str, Callable[..., Any]] = {"B": _BACKWARD}
    if by_input == mask[0] and by_weight == mask[1]:
        forms["M"] = products.backward
    if mask[0] and mask[1]:
        forms |= {"U": input_by_products} if by_input else {}
        forms |= {"V": weight_by_products} if by_weight else {}
    return forms


def input_by_products(*args: Any) -> Any:
    """A convolution's derivative by its input as matrix products, those by weight and bias by cuDNN."""
    *same, (_, weight, bias) = args
    return (products.backward(*same, [True, False, False])[0], *_BACKWARD(*same, [False, weight, bias])[1:])


def weight_by_products(*args: Any) -> Any:
    """The other way round."""
    *same, (_, weight, bias) = args
    return (_BACKWARD(*same, [True, False, False])[0], *products.backward(*same, [False, weight, bias])[1:])


def plain_forward(*args: Any) -> Any:
    """A convolution by torch's own kernel."""
    x, weight, bias, stride, padding, dilation, transposed, output_padding, _ = args
    kernel = weight.shape[2:]
    if transposed:
        return _aten.slow_conv_transpose2d(x, weight, kernel, bias, stride, padding, output_padding, dilation)
    return _aten._slow_conv2d_forward(x, weight, kernel, bias, stride, padding)


def plain_backward(*args: Any) -> Any:
    """Its derivatives by torch's own kernels."""
    slope, x, weight, _, stride, padding, _, _, _, _, mask = args
    return _aten._slow_conv2d_backward.output_mask(slope, x, weight, weight.shape[2:], stride, padding, mask)


def input_plain_backward(*args: Any) -> Any:
    """Its derivative by the input by torch's own kernel, those by weight and bias by oneDNN."""
    *same, (_, weight, bias) = args
    by_input = plain_backward(*same, [True, False, False])[0]
    return (by_input, *_BACKWARD(*same, [False, weight, bias])[1:])


def weight_plain_backward(*args: Any) -> Any:
    """The other way round."""
    *same, (_, weight, bias) = args
    by_input = _BACKWARD(*same, [True, False, False])[0]
    return (by_input, *plain_backward(*same, [False, weight, bias])[1:])


def _has_plain(node_args: Sequence[Any], *, backward: bool) -> bool:
    """Whether torch's own kernels take a convolution: 2-D, one group, no dilation; no derivative of a transposed one."""
    *_, stride, _, dilation, transposed, _, groups = node_args[: 10 if backward else 9]
    return len(stride) == 2 and groups == 1 and list(dilation) == [1, 1] and not (backward and transposed)


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

"""Convolutions as matrix products over patches, and long thin products in parts, inside a graph.

A GPU's libraries are made for large layers: of ten images with few channels they let one of its many processors do all the work.
Each form is written out in elementary operations, so that convolutions of one input share its patches, and a compiler sees through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from ddray.distillation.layout import is_usual

_aten = torch.ops.aten
_FORWARD, _BACKWARD = _aten.convolution.default, _aten.convolution_backward.default
_LARGEST = 2**29  # bytes of patches from which on a product is not tried
_MIN_TERMS_IN_PARTS = 64  # of a product's sums, to try them in parts
_MAX_TERM_BY_TERM = 2**20  # multiplications in a product, to try it term by term


def product_forms(target: Any, args: Sequence[Any]) -> dict[str, Callable[..., Any]]:
    """What computes `aten.mm`, or `aten.addmm`, of such arguments on a GPU, by letter."""
    forms: dict[str, Callable[..., Any]] = {}
    (rows, length), columns = args[-2].shape, args[-1].shape[1]
    parts = number_of_parts(length)
    if parts > 1 and length >= _MIN_TERMS_IN_PARTS and 4 * parts * rows * columns <= _LARGEST:
        forms["S"] = in_parts
    if rows * length * columns <= _MAX_TERM_BY_TERM:
        forms["D"] = term_by_term
    if target is _aten.addmm.default:
        forms = {letter: plus(form) for letter, form in forms.items()}
    return {"B": target, **forms}


def convolution_forms(target: Any, args: Sequence[Any]) -> dict[str, Callable[..., Any]]:
    """What computes `aten.convolution`, or `aten.convolution_backward`, of such arguments on a GPU, by letter."""
    derivative = target is _BACKWARD
    if not is_usual(args, backward=derivative):
        return {"B": target}
    if not derivative:
        x, weight, _, stride, padding, _, transposed, *_ = args
        fits = takes(x, weight, stride, padding, turned=transposed)
        return {"B": _FORWARD, "M": forward} if fits else {"B": _FORWARD}
    slope, x, weight, _, stride, padding, *_, mask = args
    by_input = mask[0] and takes(slope, weight, stride, padding, turned=True)
    by_weight = mask[1] and takes(x, weight, stride, padding)
    forms: dict[str, Callable[..., Any]] = {"B": _BACKWARD}
    if by_input == mask[0] and by_weight == mask[1]:
        forms["M"] = backward
    if mask[0] and mask[1]:
        forms |= {"U": input_by_products} if by_input else {}
        forms |= {"V": weight_by_products} if by_weight else {}
    return forms


def input_by_products(*args: Any) -> Any:
    """A convolution's derivative by its input as matrix products, those by weight and bias by cuDNN."""
    *same, (_, weight, bias) = args
    return (backward(*same, [True, False, False])[0], *_BACKWARD(*same, [False, weight, bias])[1:])


def weight_by_products(*args: Any) -> Any:
    """A convolution's derivatives by weight and bias as matrix products, that by the input by cuDNN."""
    *same, (_, weight, bias) = args
    return (_BACKWARD(*same, [True, False, False])[0], *backward(*same, [False, weight, bias])[1:])


def patches(x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """What a kernel sees of x [N, C, H, W] at each of its places: [N, C · h · w, places]."""
    if any(padding):
        x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    seen = x.unfold(2, kernel[0], stride[0]).unfold(3, kernel[1], stride[1])  # [N, C, rows, columns, h, w]
    return seen.permute(0, 1, 4, 5, 2, 3).reshape(len(x), x.shape[1] * kernel[0] * kernel[1], seen.shape[2] * seen.shape[3])


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int],
    _dilation: Sequence[int], transposed: bool, *_: Any,
) -> Tensor:  # fmt: skip
    """`aten.convolution` without dilation and groups; a transposed one, which must have stride 1, by the kernel turned around."""
    if transposed:
        weight = weight.transpose(0, 1).flip(2, 3)
        padding = [k - 1 - p for k, p in zip(weight.shape[2:], padding, strict=True)]
    kernel = weight.shape[2:]
    rows, columns = ((x.shape[i + 2] + 2 * padding[i] - kernel[i]) // stride[i] + 1 for i in range(2))
    kernels = weight.flatten(1).expand(len(x), -1, -1)
    out = torch.bmm(kernels, patches(x, kernel, stride, padding)).view(len(x), len(weight), rows, columns)
    return out if bias is None else out + bias[:, None, None]


def backward(
    slope: Tensor, x: Tensor, weight: Tensor, _bias: Any, stride: Sequence[int], padding: Sequence[int], *rest: Any,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """`aten.convolution_backward`; the derivative by the input must be of stride 1."""
    dilation, *_, mask = rest
    by_input = forward(slope, weight, None, stride, padding, dilation, True) if mask[0] else None
    by_weight = None
    if mask[1]:
        seen = patches(x, weight.shape[2:], stride, padding)
        by_weight = torch.bmm(slope.flatten(2), seen.transpose(1, 2)).sum(0).view(weight.shape)
    return by_input, by_weight, slope.sum((0, 2, 3)) if mask[2] else None


def takes(x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], *, turned: bool = False) -> bool:
    """Whether the products of x and a kernel are of a kind and size worth a try; `turned`: of a kernel turned around."""
    kernel = weight.shape[2:]
    if turned and (list(stride) != [1, 1] or any(p >= k for p, k in zip(padding, kernel, strict=True))):
        return False
    places = 1
    for i in range(2):
        pad = kernel[i] - 1 - padding[i] if turned else padding[i]
        places *= (x.shape[i + 2] + 2 * pad - kernel[i]) // stride[i] + 1
    return x.shape[0] * x.shape[1] * kernel.numel() * places * x.element_size() <= _LARGEST


def in_parts(a: Tensor, b: Tensor) -> Tensor:
    """`aten.mm` of a [m, k] and b [k, n], the sum over k in parts side by side."""
    parts = number_of_parts(a.shape[1])
    return torch.bmm(a.unflatten(1, (parts, -1)).transpose(0, 1), b.unflatten(0, (parts, -1))).sum(0)


def number_of_parts(length: int) -> int:
    """The most parts, up to 32, that a sum is split into equally with eight terms or more in each."""
    return next(parts for parts in range(32, 0, -1) if length % parts == 0 and (parts == 1 or length // parts >= 8))


def term_by_term(a: Tensor, b: Tensor) -> Tensor:
    """`aten.mm` of a [m, k] and b [k, n] as k products of numbers and their sum."""
    return (a[:, :, None] * b).sum(1)


def plus(form: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """`aten.addmm` by a form of `aten.mm`."""
    return lambda bias, a, b: form(a, b) + bias


def inline(graph: fx.Graph, node: fx.Node, form: Callable[..., Any]) -> None:
    """Put the operations of a form in a node's place."""
    sources = [a for a in node.args if isinstance(a, fx.Node)]

    def of_tensors(*tensors: Tensor) -> Any:
        remaining = iter(tensors)
        return form(*(next(remaining) if isinstance(a, fx.Node) else a for a in node.args))

    made: dict[fx.Node, Any] = {}
    body = make_fx(of_tensors)(*(source.meta["val"] for source in sources)).graph
    found: Any = None
    with graph.inserting_before(node):
        given = iter(sources)
        for inner in body.nodes:
            if inner.op == "placeholder":
                made[inner] = next(given)
            elif inner.op == "output":
                found = fx.map_arg(inner.args[0], lambda n: made[n])
            else:
                made[inner] = graph.node_copy(inner, lambda n: made[n])
    if isinstance(found, fx.Node):
        node.replace_all_uses_with(found)
    else:
        for user in list(node.users):  # getitem
            part = found[user.args[1]]
            user.replace_all_uses_with(part)
            graph.erase_node(user)
    graph.erase_node(node)

"""Which kernel computes each convolution and product: for the same numbers, the one that is fastest here.

oneDNN, which torch takes on a CPU, reorders tensors into blocks first; torch's own kernels do not. On ten small images either may
be three times as fast as the other, by layer, by direction and by number of threads. A choice is a word with a letter for every
convolution of the graph, in order, so that it can be written down and kept:

    B   blocked: oneDNN
    P   plain: torch's own kernel
    X   a derivative in two halves: by the input plain, by the weight blocked
    Y   a derivative in two halves: by the input blocked, by the weight plain

On a GPU, where B is cuDNN:

    M   matrix products over patches
    U   a derivative in two halves: by the input as products, by the weight by cuDNN
    V   a derivative in two halves: by the input by cuDNN, by the weight as products

and matrix products have letters too:

    B   cuBLAS
    S   the sum in parts
    D   term by term
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, fx

from ddray.distillation import products
from ddray.distillation.cuda_graph import Captured, now

_aten = torch.ops.aten
_FORWARD, _BACKWARD = _aten.convolution.default, _aten.convolution_backward.default
_PRODUCT, _PRODUCT_PLUS = _aten.mm.default, _aten.addmm.default
_MIN_TERMS_IN_PARTS = 64  # of a product's sums, to try them in parts
_MAX_TERM_BY_TERM = 2**20  # multiplications in a product, to try it term by term
_SECONDS = 0.02  # to spend on the timing of one of them, if it is not slower than that


def assign(graph: fx.Graph, letters: str) -> None:
    """Compute the graph's convolutions (on a GPU, its products too) as the letters say; those beyond the word are blocked."""
    # Letters of a GPU say so themselves: a graph is sketched without one to tell its memory.
    card = not set(letters).isdisjoint("MUVSD")
    for node, letter in zip_longest(_chosen(graph, card=card), letters, fillvalue="B"):
        if isinstance(node, fx.Node):
            form = _forms(node.target, [_value(a) for a in node.args], card=card).get(letter, node.target)
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
        card = _on_card(args)
        if _has_letters(target, kwargs, card=card):
            runs = _runs(_forms(target, args, card=card), args)
            best = dict.fromkeys(runs, float("inf"))
            began_at = time.perf_counter()
            while time.perf_counter() - began_at < _SECONDS or min(best.values()) == float("inf"):
                for letter, run in runs.items():
                    began = now(args[0].device)
                    run()
                    best[letter] = min(best[letter], now(args[0].device) - began)
            self.letters.append(min(best, key=lambda letter: best[letter]))
        return super().call_function(target, args, kwargs)


def _runs(forms: Mapping[str, Callable[..., Any]], args: tuple[Any, ...]) -> dict[str, Callable[[], object]]:
    """Forms as they will run, but for those that cannot: of memory, an unusual one may take more than there is."""
    runs = {"B": _run(forms["B"], args)}
    for letter in forms:
        if letter != "B":
            with suppress(RuntimeError):
                run = _run(forms[letter], args)
                run()
                runs[letter] = run
    return runs


def _run(form: Callable[..., Any], args: tuple[Any, ...]) -> Callable[[], object]:
    """A form as it will run: on a GPU recorded, for launching it takes longer than it does."""

    def launched() -> list[Tensor]:
        found = form(*args)
        return [part for part in ([found] if isinstance(found, Tensor) else found) if isinstance(part, Tensor)]

    return Captured(launched, device=args[0].device) if _on_card(args) else launched


def _value(argument: Any) -> Any:
    return argument.meta["val"] if isinstance(argument, fx.Node) else argument


def _chosen(graph: fx.Graph, *, card: bool) -> list[fx.Node]:
    nodes = (node for node in graph.nodes if node.op == "call_function")
    return [node for node in nodes if _has_letters(node.target, node.kwargs, card=card)]


def _has_letters(target: Any, kwargs: Mapping[str, Any], *, card: bool) -> bool:
    if target in (_PRODUCT, _PRODUCT_PLUS):  # of kwargs, those of addmm would be factors
        return card and not kwargs
    return target in (_FORWARD, _BACKWARD)


def _on_card(args: Sequence[Any]) -> bool:
    return any(isinstance(a, Tensor) and a.is_cuda for a in args)


def _forms(target: Any, args: Sequence[Any], *, card: bool) -> dict[str, Callable[..., Any]]:
    """What computes a convolution or a product, by letter, on a GPU or a CPU."""
    if card:
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
    parts = products.number_of_parts(length)
    if parts > 1 and length >= _MIN_TERMS_IN_PARTS and 4 * parts * rows * columns <= products.LARGEST:
        forms["S"] = products.in_parts
    if rows * length * columns <= _MAX_TERM_BY_TERM:
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
    """A convolution's derivatives by weight and bias as matrix products, that by the input by cuDNN."""
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
    """A convolution's derivatives by torch's own kernels."""
    slope, x, weight, _, stride, padding, _, _, _, _, mask = args
    return _aten._slow_conv2d_backward.output_mask(slope, x, weight, weight.shape[2:], stride, padding, mask)


def input_plain_backward(*args: Any) -> Any:
    """A convolution's derivative by the input by torch's own kernel, those by weight and bias by oneDNN."""
    *same, (_, weight, bias) = args
    by_input = plain_backward(*same, [True, False, False])[0]
    return (by_input, *_BACKWARD(*same, [False, weight, bias])[1:])


def weight_plain_backward(*args: Any) -> Any:
    """A convolution's derivatives by weight and bias by torch's own kernel, that by the input by oneDNN."""
    *same, (_, weight, bias) = args
    by_input = _BACKWARD(*same, [True, False, False])[0]
    return (by_input, *plain_backward(*same, [False, weight, bias])[1:])


def _has_plain(node_args: Sequence[Any], *, backward: bool) -> bool:
    """Whether torch's own kernels take a convolution: 2-D, one group, no dilation; no derivative of a transposed one."""
    *_, stride, _, dilation, transposed, _, groups = node_args[: 10 if backward else 9]
    return len(stride) == 2 and groups == 1 and list(dilation) == [1, 1] and not (backward and transposed)

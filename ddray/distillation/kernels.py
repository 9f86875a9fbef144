"""Which kernel computes each convolution and product: for the same numbers, the one that is fastest here.

oneDNN, which torch takes for convolutions on a CPU, reorders tensors into blocks first; torch's own kernels do not. On ten small
images either may be three times as fast as the other, by layer, by direction and by number of threads. A choice is a word with a
letter for every convolution of the graph, in order, so that it can be written down and kept:

    B   blocked: oneDNN
    P   plain: torch's own kernel
    T   the derivative by the weight as a convolution turned around, by oneDNN
    X   a derivative in two halves: by the input plain, by the weight blocked
    Y   a derivative in two halves: by the input blocked, by the weight plain
    Z   a derivative in two halves: by the input plain, by the weight turned; T: by the input blocked

and behind a `/`, where one of them gains by it, a letter for every matrix product:

    B   as torch computes it: MKL or OpenBLAS
    L   a linear layer of oneDNN

On a GPU convolutions and products are in one word:

    B   cuDNN, cuBLAS
    M   a convolution as matrix products over patches
    U   a derivative in two halves: by the input as products, by the weight by cuDNN
    V   a derivative in two halves: by the input by cuDNN, by the weight as products
    S   a product whose sum is taken in parts
    D   a product term by term
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, fx

from ddray.distillation import cpu_kernels, products
from ddray.distillation.cuda_graph import Captured, now

_aten = torch.ops.aten
_FORWARD, _BACKWARD = _aten.convolution.default, _aten.convolution_backward.default
_PRODUCT, _PRODUCT_PLUS = _aten.mm.default, _aten.addmm.default
_SECONDS = 0.05  # to spend on the timing of one of them, if it is not slower than that
_MARGIN = 0.97  # another form than torch's has to be faster than this share of its time


def assign(graph: fx.Graph, word: str) -> None:
    """Compute the graph's convolutions and products as the word says; those beyond it as torch does."""
    card = is_of_card(word)
    for nodes, letters in zip(_chosen(graph, card=card), word.split("/"), strict=False):
        for node, letter in zip(nodes, letters, strict=False):
            form = _forms(node.target, [_value(a) for a in node.args], card=card).get(letter, node.target)
            if letter in "MUVSD" and callable(form) and form is not node.target:
                products.inline(graph, node, form)
            else:
                node.target = form


def is_of_card(word: str) -> bool:
    """Whether a word has letters that only a GPU has: a graph is sketched without one to tell its memory."""
    return not set(word).isdisjoint("MUVSD")


def measure(graph: fx.GraphModule, given: list[Tensor]) -> str:
    """The word of the fastest letters for a graph, on values that it is given."""
    timing = _Timing(graph)
    with torch.no_grad():
        timing.run(*given)
    first, second = ("".join(letters) for letters in timing.letters)
    return f"{first}/{second}" if second.strip("B") else first


class _Timing(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.letters: tuple[list[str], list[str]] = ([], [])  # as `_chosen` lists what they are for

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        card = _on_card(args)
        if _has_letters(target, kwargs):
            runs = _runs(_forms(target, args, card=card), args)
            best = dict.fromkeys(runs, float("inf"))
            began_at = time.perf_counter()
            while time.perf_counter() - began_at < _SECONDS or min(best.values()) == float("inf"):
                for letter, run in runs.items():
                    began = now(args[0].device)
                    run()
                    best[letter] = min(best[letter], now(args[0].device) - began)
            fastest = min(best, key=lambda letter: best[letter])
            self.letters[_part(target, card=card)].append(fastest if best[fastest] < _MARGIN * best["B"] else "B")
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


def _chosen(graph: fx.Graph, *, card: bool) -> tuple[list[fx.Node], list[fx.Node]]:
    """What has letters, in order: on a CPU convolutions, and products; on a GPU both in one list."""
    found: tuple[list[fx.Node], list[fx.Node]] = ([], [])
    for node in graph.nodes:
        if node.op == "call_function" and _has_letters(node.target, node.kwargs):
            found[_part(node.target, card=card)].append(node)
    return found


def _part(target: Any, *, card: bool) -> int:
    return 0 if card or target in (_FORWARD, _BACKWARD) else 1


def _has_letters(target: Any, kwargs: Mapping[str, Any]) -> bool:
    if target in (_PRODUCT, _PRODUCT_PLUS):
        return not kwargs  # those of addmm would be factors
    return target in (_FORWARD, _BACKWARD)


def _on_card(args: Sequence[Any]) -> bool:
    return any(isinstance(a, Tensor) and a.is_cuda for a in args)


def _forms(target: Any, args: Sequence[Any], *, card: bool) -> dict[str, Callable[..., Any]]:
    """What computes a convolution or a product, by letter, on a GPU or a CPU."""
    product = target in (_PRODUCT, _PRODUCT_PLUS)
    if card:
        return products.product_forms(target, args) if product else products.convolution_forms(target, args)
    return cpu_kernels.product_forms(target, args) if product else cpu_kernels.convolution_forms(target, args)

"""Convolutions and products by other kernels, in graphs."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ddray.distillation import cpu_kernels, traced
from ddray.distillation.cpu_kernels import plain_forward
from ddray.distillation.graphs import simplify, trace
from ddray.distillation.inner import InnerStep
from ddray.distillation.kernels import assign, measure
from ddray.distillation.outer import OuterLoss, RealBatch
from ddray.distillation.reference import differentiate
from ddray.distillation.traced import TracedOuterLoss, TracedStep

from .unrolls import ORDER, check_equal, problem


def squares(x: Tensor, w: Tensor) -> Tensor:
    """A convolution and a product."""
    seen = F.conv2d(x, w).flatten(1)
    return seen @ seen.t()


def layers(x: Tensor, w: Tensor, b: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """A convolution and a transposed one, with all their derivatives."""

    def summed(x: Tensor, w: Tensor, b: Tensor, v: Tensor) -> Tensor:
        return F.conv_transpose2d(F.conv2d(x, w, b, 2, 1).tanh(), v, stride=2).square().sum()

    gradients: tuple[Tensor, ...] = torch.func.grad(summed, (0, 1, 2, 3))(x, w, b, v)
    return gradients


@pytest.mark.parametrize("letter", "BPXYTZ")
@pytest.mark.parametrize("size", [(9, 9), (8, 11)])  # with a stride of 2, the padding's last row and column are left out of 8
def test_every_letter_computes_the_same(letter: str, size: tuple[int, int]) -> None:
    g = torch.Generator().manual_seed(0)
    shapes = ((2, 3, *size), (4, 3, 3, 3), (4,), (4, 2, 3, 3))
    given = [torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes]
    graph = trace(layers, *given)
    expected = graph(*given)
    assign(graph.graph, 20 * letter)
    graph.recompile()
    assert ("plain" in graph.code) == (letter in "PXYZ") and ("turned" in graph.code) == (letter in "TZ")
    for found, wanted in zip(graph(*given), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (3, 2)])
@pytest.mark.parametrize("padding", [(0, 0), (1, 2)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("more", [(0, 0), (1, 0)])
def test_a_plain_transposed_convolution_is_torchs(
    stride: tuple[int, int], padding: tuple[int, int], bias: bool, more: tuple[int, int]
) -> None:
    g = torch.Generator().manual_seed(0)
    shapes = ((2, 4, 7, 6), (4, 3, 3, 5), (3,))
    x, weight, added = (torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes)
    more = tuple(min(m, s - 1) for m, s in zip(more, stride, strict=True))  # an output padding is smaller than its stride
    args = (x, weight, added if bias else None, stride, padding, (1, 1), True, more, 1)
    torch.testing.assert_close(plain_forward(*args), torch.ops.aten.convolution(*args), rtol=1e-12, atol=1e-12)


def test_products_by_onednn_are_torchs() -> None:
    g = torch.Generator().manual_seed(0)
    c, a, b = (torch.randn(shape, generator=g) for shape in ((5,), (3, 64), (64, 5)))
    graph = trace(lambda c, a, b: (torch.addmm(c, a, b), a.t() @ a, torch.addmm(a @ b, a, b)), c, a, b)
    expected = graph(c, a, b)
    assign(graph.graph, "/LLLL")
    graph.recompile()
    assert graph.code.count("linear_plus") == 1 and graph.code.count("linear") == 3  # a sum with a matrix is no layer
    torch.testing.assert_close(graph(c, a, b), expected, rtol=1e-5, atol=1e-5)


def test_a_word_of_products_leaves_convolutions_alone() -> None:
    g = torch.Generator().manual_seed(0)
    x, w = (torch.randn(shape, generator=g) for shape in ((3, 1, 8, 8), (2, 1, 3, 3)))
    for word, kernels in (("P", (1, 0)), ("/L", (0, 1)), ("P/L", (1, 1)), ("B/B", (0, 0)), ("", (0, 0))):
        graph = trace(squares, x, w)
        assign(graph.graph, word)
        graph.recompile()
        assert (graph.code.count("plain_forward"), graph.code.count("linear")) == kernels


@pytest.mark.parametrize(("quick", "word"), [("B", "B"), ("P", "P"), ("L", "B/L"), ("PL", "P/L")])
def test_a_word_has_the_fastest_of_each(quick: str, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowed(forms: Callable[..., dict[str, Callable[..., Any]]]) -> Callable[..., dict[str, Callable[..., Any]]]:
        def all_but_the_quick(*given: Any) -> dict[str, Callable[..., Any]]:
            found = forms(*given)
            best = next((letter for letter in found if letter in quick), "B")
            return {letter: form if letter == best else sleeping(form) for letter, form in found.items()}

        return all_but_the_quick

    def sleeping(form: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: (time.sleep(0.003), form(*args))[1]

    for name in ("convolution_forms", "product_forms"):
        monkeypatch.setattr(cpu_kernels, name, slowed(getattr(cpu_kernels, name)))
    g = torch.Generator().manual_seed(0)
    x, w = (torch.randn(shape, generator=g) for shape in ((3, 1, 8, 8), (2, 1, 3, 3)))
    assert measure(trace(squares, x, w), [x, w]) == word


@pytest.mark.parametrize(("letter", "stride"), [("M", 1), ("M", 2), ("U", 1), ("V", 1), ("V", 2)])  # U has none of stride 2
def test_every_letter_of_a_gpu_computes_the_same(letter: str, stride: int) -> None:
    g = torch.Generator().manual_seed(0)
    shapes = ((2, 3, 9, 8), (4, 3, 3, 2), (4,), (4, 2, 3, 3))
    given = [torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes]

    def both(x: Tensor, w: Tensor, b: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        def summed(*given: Tensor) -> Tensor:
            x, w, b, v = given
            return F.conv_transpose2d(F.conv2d(x, w, b, stride, 1).tanh(), v, padding=1).square().sum()

        def squared(*given: Tensor) -> Tensor:
            return sum(g.square().sum() for g in torch.func.grad(summed, (0, 1, 2, 3))(*given))

        gradients: tuple[Tensor, ...] = torch.func.grad(squared, (0, 1, 2, 3))(x, w, b, v)
        return gradients

    graph = trace(both, *given)
    expected, convolutions = graph(*given), graph.code.count("convolution")
    assign(graph.graph, 40 * letter)
    simplify(graph.graph)
    graph.recompile()
    assert graph.code.count("bmm") > 0 and graph.code.count("convolution") < convolutions
    for found, wanted in zip(graph(*given), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_networks_by_products_compute_the_same() -> None:
    for name in ("LeNet", "AlexCifarNet", "batch norm"):
        network, weights, synthetic, batch = problem(name)
        expected = differentiate(InnerStep(network), weights, synthetic, ORDER, batch, 7)
        outer = TracedOuterLoss(network, layout="MMMMMM")
        for letter in "MSD":
            traced._graphs.clear()
            step = TracedStep(network, layout=60 * letter)
            check_equal(differentiate(step, weights, synthetic, ORDER, batch, 7, outer=outer), expected)


def test_a_product_with_factors_has_no_letter() -> None:
    g = torch.Generator().manual_seed(0)
    given = [torch.randn(shape, generator=g, dtype=torch.float64) for shape in ((5,), (3, 64), (64, 5))]
    graph = trace(lambda c, a, b: torch.addmm(c, a, b, beta=0.5, alpha=2.0) + torch.addmm(c, a, b), *given)
    expected = graph(*given)
    for letters in ("S", "D"):
        assign(graph.graph, letters)
        simplify(graph.graph)
        graph.recompile()
        torch.testing.assert_close(graph(*given), expected, rtol=1e-12, atol=1e-12)
    assert "alpha" in graph.code


def test_a_kernel_that_cannot_run_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(cpu_kernels, "plain_forward", fails)
    g = torch.Generator().manual_seed(0)
    x, w = (torch.randn(shape, generator=g) for shape in ((2, 4, 9, 9), (6, 4, 3, 3)))
    assert measure(trace(F.conv2d, x, w), [x, w]) == "B"


@pytest.mark.parametrize("name", ["LeNet", "AlexCifarNet", "batch norm"])
def test_a_measured_word_computes_the_same(name: str) -> None:
    network, weights, synthetic, batch = problem(name)
    word = TracedStep(network).measured_layout(weights, synthetic.inputs[0], synthetic.labels[0])
    assert word and set(word) <= set("BPXYTZL/")
    expected = differentiate(InnerStep(network), weights, synthetic, ORDER, batch, 7)
    for layout in (word, "PX", "Y" * len(word), "T" * len(word), "Z" * len(word)):
        check_equal(differentiate(TracedStep(network, layout=layout), weights, synthetic, ORDER, batch, 7), expected)


def test_a_measured_word_has_a_letter_for_every_convolution() -> None:
    g = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(shape, generator=g) for shape in ((2, 4, 9, 9), (6, 2, 3, 3), (6,)))
    graph = trace(lambda x, w, b: F.conv2d(F.conv2d(x, w, b, groups=2)[:, :4], w, b, groups=2), x, w, b)
    assert measure(graph, [x, w, b]) == "BB"  # torch's own kernels have no groups


def test_a_step_without_a_trace_has_no_word() -> None:
    network, weights, synthetic, _ = problem("LeNet")
    assert TracedStep(network).measured_layout(weights[:-1], synthetic.inputs[0], synthetic.labels[0]) == ""


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_the_traced_outer_loss_equals_the_plain_one(several: bool, bfloat16: bool) -> None:
    network, weights, _, _ = problem("LeNet", torch.float32)
    g = torch.Generator().manual_seed(1)
    batch = RealBatch(torch.randn(300, 1, 28, 28, generator=g), torch.randint(10, (300,), generator=g))
    start = torch.stack([weights, 0.9 * weights]) if several else weights
    found, expected = (loss(network, 128, bfloat16)(start, batch) for loss in (TracedOuterLoss, OuterLoss))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)

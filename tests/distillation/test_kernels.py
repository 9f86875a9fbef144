"""Convolutions and pools by other kernels, in graphs."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ddray.distillation import kernels, products, traced
from ddray.distillation.graphs import simplify, trace
from ddray.distillation.inner import InnerStep
from ddray.distillation.kernels import ComparedPools, assign, compare_in_pools, measure, pool_by_comparisons
from ddray.distillation.outer import OuterLoss, RealBatch
from ddray.distillation.traced import TracedOuterLoss, TracedStep
from ddray.distillation.unroll import differentiate

from .unrolls import ORDER, check_equal, problem


def layers(x: Tensor, w: Tensor, b: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """A convolution and a transposed one, with all their derivatives."""

    def summed(x: Tensor, w: Tensor, b: Tensor, v: Tensor) -> Tensor:
        return F.conv_transpose2d(F.conv2d(x, w, b, 2, 1).tanh(), v, stride=2).square().sum()

    gradients: tuple[Tensor, ...] = torch.func.grad(summed, (0, 1, 2, 3))(x, w, b, v)
    return gradients


@pytest.mark.parametrize("letter", "BPXY")
def test_every_letter_computes_the_same(letter: str) -> None:
    g = torch.Generator().manual_seed(0)
    shapes = ((2, 3, 9, 9), (4, 3, 3, 3), (4,), (4, 2, 3, 3))
    given = [torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes]
    graph = trace(layers, *given)
    expected = graph(*given)
    assign(graph.graph, 20 * letter)
    graph.recompile()
    assert ("slow" in graph.code or "plain" in graph.code) == (letter != "B")
    for found, wanted in zip(graph(*given), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("letter", "stride"), [("M", 1), ("M", 2), ("U", 1), ("V", 1), ("V", 2)])  # U has none of stride 2
def test_every_letter_of_a_gpu_computes_the_same(letter: str, stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_on_card", lambda _: True)
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


def test_networks_by_products_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_on_card", lambda _: True)
    for name in ("LeNet", "AlexCifarNet", "batch norm"):
        network, weights, synthetic, batch = problem(name)
        expected = differentiate(InnerStep(network), weights, synthetic, ORDER, batch, 7)
        outer = TracedOuterLoss(network, layout="MMMMMM")
        for letter in "MSD":
            traced._graphs.clear()
            step = TracedStep(network, layout=60 * letter)
            check_equal(differentiate(step, weights, synthetic, ORDER, batch, 7, outer=outer), expected)


def test_products_in_parts_and_term_by_term_are_products() -> None:
    g = torch.Generator().manual_seed(0)
    assert [products.number_of_parts(n) for n in (7, 16, 84, 97, 400, 7840)] == [1, 2, 7, 1, 25, 32]
    for shape in ((10, 400, 120), (1, 64, 1), (3, 97, 5)):
        a, b = torch.randn(shape[:2], generator=g).double(), torch.randn(shape[1:], generator=g).double()
        bias = torch.randn(shape[2], generator=g).double()
        for form in (products.in_parts, products.term_by_term):
            torch.testing.assert_close(form(a, b), a @ b, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(form(b.T, a.T), b.T @ a.T, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(products.plus(form)(bias, a, b), a @ b + bias, rtol=1e-12, atol=1e-12)


def test_large_patches_are_not_tried() -> None:
    with FakeTensorMode():
        x, w = torch.empty(1024, 128, 32, 32), torch.empty(128, 128, 3, 3)
    assert products.takes(x[:10], w, [1, 1], [1, 1]) and not products.takes(x, w, [1, 1], [1, 1])
    assert products.takes(x[:10], w, [2, 2], [1, 1]) and not products.takes(x[:10], w, [2, 2], [1, 1], turned=True)


@pytest.mark.parametrize("name", ["LeNet", "AlexCifarNet", "batch norm"])
def test_a_measured_word_computes_the_same(name: str) -> None:
    network, weights, synthetic, batch = problem(name)
    word = TracedStep(network).measured_layout(weights, synthetic.inputs[0], synthetic.labels[0])
    assert word and set(word) <= set("BPXY")
    expected = differentiate(InnerStep(network), weights, synthetic, ORDER, batch, 7)
    for layout in (word, "PX", "Y" * len(word)):
        check_equal(differentiate(TracedStep(network, layout=layout), weights, synthetic, ORDER, batch, 7), expected)


def test_a_measured_word_has_a_letter_for_every_convolution() -> None:
    g = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(shape, generator=g) for shape in ((2, 4, 9, 9), (6, 2, 3, 3), (6,)))
    graph = trace(lambda x, w, b: F.conv2d(F.conv2d(x, w, b, groups=2)[:, :4], w, b, groups=2), x, w, b)
    assert measure(graph, [x, w, b]) == "BB"  # torch's own kernels have no groups


def test_a_step_without_a_trace_has_no_word() -> None:
    network, weights, synthetic, _ = problem("LeNet")
    assert TracedStep(network).measured_layout(weights[:-1], synthetic.inputs[0], synthetic.labels[0]) == ""


@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (1, 1, 2, 2), (3, 2, 10, 8)])
@pytest.mark.parametrize("values", ["normal", "ties", "infinite"])
def test_a_pool_by_comparisons_is_torchs_to_the_bit(shape: tuple[int, ...], values: str) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    if values != "normal":
        x = x.round()
    if values == "infinite":
        x[x > 1], x[x < -1] = float("inf"), -float("inf")
    largest, places = F.max_pool2d(x, 2, return_indices=True)
    ours = pool_by_comparisons(x, [2, 2], [2, 2])
    assert torch.equal(ours[0], largest) and torch.equal(ours[1], places)


def test_every_order_of_four_values_has_its_first_largest() -> None:
    x = torch.tensor(list(itertools.product(range(4), repeat=4)), dtype=torch.float32).view(-1, 1, 2, 2)
    largest, places = F.max_pool2d(x, 2, return_indices=True)
    ours = pool_by_comparisons(x)
    assert torch.equal(ours[0], largest) and torch.equal(ours[1], places)


@pytest.mark.parametrize(
    ("options", "shape", "taken"),
    [
        ({"kernel_size": 2}, (64, 4, 28, 28), True),
        ({"kernel_size": 2, "stride": 2}, (64, 4, 28, 28), True),
        ({"kernel_size": 2}, (2, 4, 28, 28), False),
        ({"kernel_size": 2}, (64, 4, 27, 28), False),
        ({"kernel_size": 2}, (256, 28, 28), False),
        ({"kernel_size": 3}, (64, 4, 28, 28), False),
        ({"kernel_size": 2, "stride": 1}, (64, 4, 28, 28), False),
        ({"kernel_size": 2, "padding": 1}, (64, 4, 28, 28), False),
        ({"kernel_size": 2, "ceil_mode": True}, (64, 4, 28, 28), False),
    ],
)
def test_only_large_pools_of_two_by_two_go_by_comparisons(
    options: dict[str, int], shape: tuple[int, ...], taken: bool
) -> None:
    x = torch.randn(shape)
    graph = trace(lambda x: F.max_pool2d(x, return_indices=True, **options), x)
    compare_in_pools(graph.graph)
    graph.recompile()
    assert ("pool_by_comparisons" in graph.code) == taken
    for found, expected in zip(graph(x), F.max_pool2d(x, return_indices=True, **options), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("options", "shape", "taken"),
    [
        ({"kernel_size": 2}, (64, 4, 28, 28), True),
        ({"kernel_size": (2, 2), "stride": [2]}, (64, 4, 28, 28), True),
        ({"kernel_size": 2}, (64, 4, 27, 29), True),
        ({"kernel_size": 2}, (2, 4, 28, 28), False),
        ({"kernel_size": (2, 3)}, (64, 4, 28, 28), False),
        ({"kernel_size": 2, "stride": 1}, (64, 4, 28, 28), False),
        ({"kernel_size": 2, "padding": 1}, (64, 4, 28, 28), False),
        ({"kernel_size": 2, "dilation": 2}, (64, 4, 28, 28), False),
        ({"kernel_size": 2, "ceil_mode": True}, (64, 4, 27, 28), False),
        ({"kernel_size": 2, "return_indices": True}, (64, 4, 28, 28), False),
    ],
)
@pytest.mark.parametrize("values", ["normal", "not finite"])
def test_large_pools_without_a_gradient_go_by_comparisons_and_are_torchs_to_the_bit(
    options: dict[str, Any], shape: tuple[int, ...], taken: bool, values: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    if values == "not finite":
        x[x > 1], x[x < -1], x[x.abs() < 0.01] = float("inf"), -float("inf"), float("nan")
    asked: list[Tensor] = []
    ours = kernels.largest_of_quarters
    monkeypatch.setattr(kernels, "largest_of_quarters", lambda x: (asked.append(x), ours(x))[1])
    with torch.no_grad(), ComparedPools():
        found = [nn.MaxPool2d(**options)(x), F.max_pool2d(x, **options), F.max_pool2d(input=x, **options)]
        found += [] if options.get("return_indices") else [torch.max_pool2d(x, **options)]
    assert len(asked) == (len(found) if taken else 0)
    for pooled in found:
        torch.testing.assert_close(pooled, F.max_pool2d(x, **options), rtol=0, atol=0, equal_nan=True)


def test_pools_that_need_a_gradient_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "largest_of_quarters", None)
    x = torch.randn(64, 4, 28, 28, requires_grad=True)
    with ComparedPools():
        (slope,) = torch.autograd.grad(F.max_pool2d(x, 2).sum(), x)
    assert slope.sum() == 64 * 4 * 14 * 14


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_the_traced_outer_loss_equals_the_plain_one(several: bool, bfloat16: bool) -> None:
    network, weights, _, _ = problem("LeNet", torch.float32)
    g = torch.Generator().manual_seed(1)
    batch = RealBatch(torch.randn(300, 1, 28, 28, generator=g), torch.randint(10, (300,), generator=g))
    start = torch.stack([weights, 0.9 * weights]) if several else weights
    found, expected = (loss(network, 128, bfloat16)(start, batch) for loss in (TracedOuterLoss, OuterLoss))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)

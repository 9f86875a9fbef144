"""Sums of two convolutions, computed as one."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from ddray.distillation import traced
from ddray.distillation.graphs import trace
from ddray.distillation.inner import InnerStep
from ddray.distillation.merge import merge_sums
from ddray.distillation.reference import differentiate
from ddray.distillation.traced import TracedStep

from .unrolls import ORDER, check_equal, problem


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def convolutions(graph: fx.GraphModule) -> int:
    return graph.code.count("convolution.default") + graph.code.count("convolution_backward.default")


def merged(function: Callable[..., Tensor], *given: Tensor) -> tuple[int, int]:
    """Convolutions before and after; what is computed has to stay."""
    graph = trace(function, *given)
    expected, before = graph(*given), convolutions(graph)
    merge_sums(graph.graph)
    graph.graph.lint()
    graph.recompile()
    torch.testing.assert_close(graph(*given), expected, rtol=1e-12, atol=1e-12)
    return before, convolutions(graph)


A, B, W, V = random(2, 3, 9, 8), random(2, 5, 9, 8), random(4, 3, 3, 2), random(4, 5, 3, 2)


@pytest.mark.parametrize("stride", [1, 2, (2, 1)])
@pytest.mark.parametrize("padding", [0, 1, (1, 0)])
def test_a_sum_of_convolutions_is_one(stride: int | tuple[int, int], padding: int | tuple[int, int]) -> None:
    def added(a: Tensor, b: Tensor, w: Tensor, v: Tensor) -> Tensor:
        return F.conv2d(a, w, None, stride, padding) + F.conv2d(b, v, None, stride, padding)

    assert merged(added, A, B, W, V) == (2, 1)


@pytest.mark.parametrize("stride", [1, 2, (2, 1)])
@pytest.mark.parametrize("padding", [0, 1, (1, 0)])
def test_a_sum_of_derivatives_by_the_input_is_one(
    stride: int | tuple[int, int], padding: int | tuple[int, int]
) -> None:
    """As in the reverse of a step: u reaches the slope of x through the slope of w, and through that of x itself."""

    def twice(x: Tensor, w: Tensor, u: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        def slopes(x: Tensor, w: Tensor) -> Tensor:
            d_x, d_w = torch.func.grad(lambda x, w: F.conv2d(x, w, None, stride, padding).exp().sum(), (0, 1))(x, w)
            return (d_x * u).sum() + (d_w * r).sum()

        return torch.func.grad(slopes, (0, 1))(x, w)

    before, after = merged(twice, 0.3 * A, 0.3 * W, random(2, 3, 9, 8), random(4, 3, 3, 2))
    assert after <= before - 1


@pytest.mark.parametrize(("columns", "beyond"), [(9, (0, 0)), (10, (0, 1))])
def test_transposed_convolutions_and_derivatives_go_together(columns: int, beyond: tuple[int, int]) -> None:
    def sums(slope: Tensor, x: Tensor, w: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        _, back = torch.func.vjp(lambda x, w: F.conv2d(x, w, None, 2, 1), x, w)
        d_x, d_w = back(slope)
        return d_x + F.conv_transpose2d(slope.sin(), v, None, 2, 1, beyond), d_w

    x, w, v = random(2, 3, 9, columns), random(4, 3, 3, 3), random(4, 3, 3, 3)
    # The derivative by the weight stays. Of 10 columns, a stride of 2 leaves the last one out.
    assert merged(sums, random(2, 4, 5, 5), x, w, v) == (2, 2)


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b, w, v: F.conv2d(a, w) + F.conv2d(b, v, padding=(0, 0), stride=(1, 1), bias=torch.ones(4, dtype=a.dtype)),
        lambda a, b, w, v: F.conv2d(a, w, padding=1) + F.conv2d(F.pad(b, (1, 1, 1, 1)), v),
        lambda a, b, w, v: F.conv2d(a, w)[:, :1] + F.conv2d(b, v),
        lambda a, b, w, v: torch.add(F.conv2d(a, w), F.conv2d(b, v), alpha=2),
        lambda a, _b, w, _v: F.conv2d(a, w) + F.conv2d(a, w),
        lambda a, b, w, v: F.conv2d(a[:1], w) + F.conv2d(b, v),
        lambda a, b, w, v: F.conv2d(a, w, dilation=2) + F.conv2d(b, v, dilation=2),
        lambda a, _b, w, _v: F.conv2d(a, w) + 1,
    ],
)  # fmt: skip
def test_what_is_no_sum_of_two_stays(function: Callable[..., Tensor]) -> None:
    before, after = merged(function, A, B, W, V)
    assert before == after


def test_a_convolution_that_others_use_stays() -> None:
    def used(a: Tensor, b: Tensor, w: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        first = F.conv2d(a, w)
        return first + F.conv2d(b, v), first.sin()

    assert merged(used, A, B, W, V) == (2, 2)


def test_many_channels_stay() -> None:
    def added(a: Tensor, b: Tensor, w: Tensor, v: Tensor) -> Tensor:
        return F.conv2d(a, w) + F.conv2d(b, v)

    few, many = random(1, 16, 4, 4), random(1, 17, 4, 4)
    assert merged(added, few, few, random(2, 16, 3, 3), random(2, 16, 3, 3)) == (2, 1)
    assert merged(added, few, many, random(2, 16, 3, 3), random(2, 17, 3, 3)) == (2, 2)


def test_a_traced_step_is_merged_and_computes_the_same() -> None:
    traced._graphs.clear()
    network, weights, synthetic, batch = problem("LeNet")
    step = TracedStep(network)
    graphs = step.graphs(step.begin(weights), synthetic.inputs[0], synthetic.labels[0], synthetic.rates[0])
    assert graphs is not None and graphs.reverse.code.count("torch.cat") > 3  # type: ignore[attr-defined]
    expected = differentiate(InnerStep(network), weights, synthetic, ORDER, batch, 7)
    check_equal(differentiate(step, weights, synthetic, ORDER, batch, 7), expected)

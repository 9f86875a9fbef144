"""Pools by comparisons, in graphs and where no gradient is asked for."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddray.distillation import pools
from ddray.distillation.graphs import trace
from ddray.distillation.pools import ComparedPools, compare_in_pools, forget_pooled, pool_by_comparisons


@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (1, 1, 2, 2), (3, 2, 10, 8), (1, 1, 2, 254)])
@pytest.mark.parametrize("values", ["normal", "ties", "infinite"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("piece", [2**20, 50])
def test_a_pool_by_comparisons_is_torchs_to_the_bit(
    shape: tuple[int, ...], values: str, dtype: torch.dtype, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "_PIECE", piece)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    if values != "normal":
        x = x.round()
    if values == "infinite":
        x[x > 1], x[x < -1] = float("inf"), -float("inf")
    given = x.clone()
    largest, places = F.max_pool2d(x, 2, return_indices=True)
    ours = pool_by_comparisons(x, [2, 2], [2, 2])
    assert torch.equal(ours[0], largest) and torch.equal(ours[1], places) and torch.equal(x, given)


def test_places_in_a_large_plane_are_exact() -> None:
    x = torch.randn(1, 1, 1024, 254, generator=torch.Generator().manual_seed(1), dtype=torch.bfloat16)
    assert torch.equal(pool_by_comparisons(x)[1], F.max_pool2d(x, 2, return_indices=True)[1])


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
        ({"kernel_size": 2}, (64, 4, 28, 254), True),
        ({"kernel_size": 2}, (64, 4, 28, 256), False),
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
    ours = pools.largest_of_quarters
    monkeypatch.setattr(pools, "largest_of_quarters", lambda x: (asked.append(x), ours(x))[1])
    with torch.no_grad(), ComparedPools():
        found = [nn.MaxPool2d(**options)(x), F.max_pool2d(x, **options), F.max_pool2d(input=x, **options)]
        found += [] if options.get("return_indices") else [torch.max_pool2d(x, **options)]
    assert len(asked) == (len(found) if taken else 0)
    for pooled in found:
        torch.testing.assert_close(pooled, F.max_pool2d(x, **options), rtol=0, atol=0, equal_nan=True)


def test_pools_that_need_a_gradient_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "largest_of_quarters", None)
    x = torch.randn(64, 4, 28, 28, requires_grad=True)
    with ComparedPools():
        (slope,) = torch.autograd.grad(F.max_pool2d(x, 2).sum(), x)
    assert slope.sum() == 64 * 4 * 14 * 14


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{"kernel_size": 2}, {"kernel_size": 3, "stride": 2, "padding": 1}])
def test_a_pools_derivative_needs_the_shape_of_what_was_pooled_and_not_its_values(
    options: dict[str, int], dtype: torch.dtype
) -> None:
    x = torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(1), dtype=dtype)
    graph = trace(torch.func.grad(lambda x: F.max_pool2d(x.sin(), **options).exp().sum()), x)
    (node,) = (node for node in graph.graph.nodes if "max_pool2d_with_indices_backward" in str(node.target))
    assert node.args[1].meta["val"].stride() == (0, 0, 0, 0)
    graph.graph.lint()
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(F.max_pool2d(leaf.sin(), **options).exp().sum(), leaf)
    torch.testing.assert_close(graph(x), expected)


def test_what_is_not_contiguous_keeps_its_layout() -> None:
    x = torch.randn(2, 3, 8, 6).to(memory_format=torch.channels_last)
    graph = trace(torch.func.grad(lambda x: F.max_pool2d(x, 2).exp().sum()), x)
    before = graph.code
    forget_pooled(graph.graph)
    graph.recompile()
    assert graph.code == before and graph(x).is_contiguous(memory_format=torch.channels_last)

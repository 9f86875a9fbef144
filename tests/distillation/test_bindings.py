"""Graphs called through torch's Python functions."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ddray.distillation import bindings
from ddray.distillation.bindings import bind
from ddray.distillation.graphs import trace


def everything(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """Every operator that has a function or a method, on x [4, 6] and y [6, 4]."""
    parts = torch.split(x, [1, 5], 1)
    stacked = torch.cat([x, y.t()], 0).unsqueeze(0)
    return (
        torch.addmm(y[0], x, y), torch.add(x, x, alpha=2), x - y.t(), torch.sub(x, 1, alpha=3), x * y.t(), 2 * x,
        torch.bmm(stacked, stacked.transpose(1, 2)), stacked.permute(2, 0, 1), parts[0].exp(), parts[1].neg(), x.relu(),
        x.sigmoid(), x.tanh(), (1 + x * x).sqrt(), x / (1 + y.t() ** 2), x.sum(), x.sum(0), x.sum([0, 1], keepdim=True),
        x.gather(1, torch.tensor([[0], [1], [2], [3]])),
        torch.where(x > 0, x, y.t()), x.view(3, -1), x[:1].expand(5, 6), (x @ y).view(-1), (x.t() @ y.t()).reshape(2, 18),
    )  # fmt: skip


def test_every_function_computes_the_same_bits() -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(4, 6, generator=g), torch.randn(6, 4, generator=g)
    graph = trace(everything, x, y)
    expected = graph(x, y)
    called = {node.target for node in graph.graph.nodes}
    assert set(bindings._FUNCTIONS) <= called and torch.ops.aten.view.default in called
    bind(graph)
    graph.graph.lint()
    assert not called & set(bindings._FUNCTIONS) & {node.target for node in graph.graph.nodes}
    for found, wanted in zip(graph(x, y), expected, strict=True):
        assert torch.equal(found, wanted) and found.stride() == wanted.stride()


@pytest.mark.parametrize(
    ("cut", "narrowed"),
    [
        (lambda x: x[2:5], True),
        (lambda x: x[:, 1:], True),
        (lambda x: x[3:100], True),
        (lambda x: x[5:2], True),
        (lambda x: x[50:60], True),
        (lambda x: x[::2], False),
        (lambda x: torch.ops.aten.slice.Tensor(x), True),
        (lambda x: torch.ops.aten.slice.Tensor(x, -1, 2), True),
        (lambda x: torch.ops.aten.slice.Tensor(x, 1, -3, -1), False),
        (lambda x: torch.ops.aten.slice.Tensor(x, 0, None, 2), False),
    ],
)
def test_a_slice_is_narrowed_where_it_can_be(cut: Callable[[Tensor], Tensor], narrowed: bool) -> None:
    x = torch.randn(6, 7, generator=torch.Generator().manual_seed(0))
    graph = trace(lambda x: (cut(x).neg(),), x)
    bind(graph)
    assert torch.equal(graph(x)[0], -cut(x))
    assert ("aten.slice" in graph.code) == (not narrowed)

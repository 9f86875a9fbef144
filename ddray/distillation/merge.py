"""Sums of two convolutions as one convolution of the channels of both.

The reverse of a step is full of them: of a layer's weights w and what its gradient is multiplied with, v, each slope has a term,

    w ∗ a + v ∗ b  =  [w v] ∗ [a; b].

On a CPU convolutions are computed in blocks of sixteen channels: of a small layer, one with twice the channels takes little longer.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ddray.distillation.layout import is_usual

_aten = torch.ops.aten
_FORWARD, _BACKWARD = _aten.convolution.default, _aten.convolution_backward.default
_MOST_CHANNELS = 32  # of the inputs of a merged convolution: with more there is nothing to gain


@dataclass(frozen=True)
class _Term:
    """A convolution without bias: its input, its weight, and the arguments of `aten.convolution` behind the bias."""

    x: fx.Node
    weight: fx.Node
    how: tuple[Any, ...]

    @property
    def transposed(self) -> bool:
        """Whether it is one; a convolution's derivative by its input is."""
        return bool(self.how[3])


def merge_sums(graph: fx.Graph) -> None:
    """Compute sums of two convolutions of few channels, or of their derivatives by the input, as one."""
    for node in list(graph.nodes):
        if node.target is _aten.add.Tensor and not node.kwargs:
            first, second = map(_as_convolution, node.args)
            if first is not None and second is not None and _go_together(first, second):
                _merge(graph, node, first, second)


def _as_convolution(term: Any) -> _Term | None:
    """The convolution that a term is, if nothing else uses it."""
    if not isinstance(term, fx.Node) or len(term.users) > 1:
        return None
    if term.target is _FORWARD:
        arguments = list[Any](term.args)
        x, weight, bias, *how = arguments
        return _Term(x, weight, _plain(how)) if bias is None and is_usual(arguments, backward=False) else None
    derivative = _derivative_by_input(term)
    arguments = list[Any](derivative.args if derivative is not None else ())
    if not arguments or not is_usual(arguments, backward=True):
        return None
    slope, x, weight, _, stride, padding, dilation, _, _, groups, _ = arguments
    given, kernel, length = _shape(slope)[2:], _shape(weight)[2:], _shape(x)[2:]
    beyond = [length[i] - (given[i] - 1) * stride[i] + 2 * padding[i] - kernel[i] for i in (0, 1)]
    return _Term(slope, weight, _plain([stride, padding, dilation, True, beyond, groups]))


def _derivative_by_input(node: fx.Node) -> fx.Node | None:
    """The derivative of a convolution whose first part, that by the input, a node is."""
    source = node.args[0] if node.target is operator.getitem and node.args[1] == 0 else None
    return source if isinstance(source, fx.Node) and source.target is _BACKWARD else None


def _go_together(a: _Term, b: _Term) -> bool:
    shapes = [_shape(node) for node in (a.x, b.x, a.weight, b.weight)]
    alike = shapes[0][:1] + shapes[0][2:] == shapes[1][:1] + shapes[1][2:] and shapes[2][2:] == shapes[3][2:]
    return a.how == b.how and alike and shapes[0][1] + shapes[1][1] <= _MOST_CHANNELS


def _merge(graph: fx.Graph, node: fx.Node, a: _Term, b: _Term) -> None:
    in_channels = 0 if a.transposed else 1  # the dimension of a weight
    with graph.inserting_before(node):
        x, weight = _joined(graph, a.x, b.x, 1), _joined(graph, a.weight, b.weight, in_channels)
        whole = graph.call_function(_FORWARD, (x, weight, None, *map(_unplain, a.how)))
    whole.meta["val"] = node.meta["val"]
    derivatives = [_derivative_by_input(term) for term in node.args if isinstance(term, fx.Node)]
    node.replace_all_uses_with(whole)
    for derivative in derivatives:
        if derivative is not None:  # no longer asked for what it gave here
            *same, mask = list[Any](derivative.args)
            derivative.args = (*same, [False, *mask[1:]])
    graph.eliminate_dead_code()


def _joined(graph: fx.Graph, a: fx.Node, b: fx.Node, dim: int) -> fx.Node:
    both = graph.call_function(_aten.cat.default, ([a, b], dim))
    both.meta["val"] = torch.cat([a.meta["val"], b.meta["val"]], dim)
    return both


def _shape(node: Any) -> tuple[int, ...]:
    value: Tensor = node.meta["val"]
    return tuple(value.shape)


def _plain(arguments: list[Any]) -> tuple[Any, ...]:
    """Arguments that can be compared, whatever sequences they come in."""
    return tuple(a if isinstance(a, int) else tuple(a) for a in arguments)


def _unplain(argument: Any) -> Any:
    return list(argument) if isinstance(argument, tuple) else argument

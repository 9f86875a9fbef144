"""Graphs as they run: operators called through torch's Python functions, which are found in half the time.

A traced graph names operators as the dispatcher does, and each such call matches its arguments against a schema first. Of a small
network's step, whose operations take a microsecond or two, that is a third of the time of most of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

_aten = torch.ops.aten
_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    _aten.add.Tensor: torch.add,
    _aten.addmm.default: torch.addmm,
    _aten.bmm.default: torch.bmm,
    _aten.cat.default: torch.cat,
    _aten.div.Tensor: torch.div,
    _aten.exp.default: torch.exp,
    _aten.gather.default: torch.gather,
    _aten.mm.default: torch.mm,
    _aten.mul.Tensor: torch.mul,
    _aten.neg.default: torch.neg,
    _aten.permute.default: torch.permute,
    _aten.relu.default: torch.relu,
    _aten.sigmoid.default: torch.sigmoid,
    _aten.split_with_sizes.default: torch.split_with_sizes,
    _aten.sqrt.default: torch.sqrt,
    _aten.sub.Tensor: torch.sub,
    _aten.sum.default: torch.sum,
    _aten.sum.dim_IntList: torch.sum,
    _aten.t.default: torch.t,
    _aten.tanh.default: torch.tanh,
    _aten.transpose.int: torch.transpose,
    _aten.unsqueeze.default: torch.unsqueeze,
    _aten.where.self: torch.where,
}
_METHODS = {_aten.view.default: "view", _aten._unsafe_view.default: "view", _aten.expand.default: "expand"}


def bind(graph: fx.GraphModule) -> fx.GraphModule:
    """The same operators in the same order, called through Python's functions and methods where these have the same arguments."""
    for node in graph.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target in _FUNCTIONS:
            node.target = _FUNCTIONS[node.target]
        elif node.target in _METHODS:
            node.op, node.target = "call_method", _METHODS[node.target]
        elif node.target is _aten.slice.Tensor and (part := _as_narrow(node)) is not None:
            node.target, node.args = torch.narrow, part
    graph.recompile()
    return graph


def _as_narrow(node: fx.Node) -> tuple[Any, ...] | None:
    """The arguments of `torch.narrow` for a slice without steps whose ends are numbers."""
    arguments: list[Any] = [*node.args, *(None, 0, 0, 2**63 - 1, 1)[len(node.args) :]]
    source, dim, start, end, step = arguments
    usual = not node.kwargs and step == 1 and isinstance(start, int) and isinstance(end, int) and min(start, end) >= 0
    value = source.meta.get("val") if isinstance(source, fx.Node) else None
    if not usual or not isinstance(value, Tensor):
        return None
    length = value.shape[dim]
    return source, dim, min(start, length), max(min(end, length) - start, 0)

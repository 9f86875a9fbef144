"""Graphs of a step and of its reverse: traced, simplified, cut in two, compiled."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from ddray.distillation.pools import compare_in_pools, forget_pooled

Graph = Callable[..., Sequence[Tensor]]


class Untraceable(Exception):
    """A step that cannot be written down as a graph, and why."""


@dataclass(frozen=True)
class Graphs:
    """A step and its reverse.

    Attributes:
        forward: (carry…, x, y, rate) → carry after.
        record: the same → carry after, then the values that the reverse needs.
        reverse: (those values…, gradient of the carry after…) → gradients of carry…, x, y, rate.
        saved_bytes: what `record` keeps, apart from what it was given.

    """

    forward: Graph
    record: Graph
    reverse: Graph
    saved_bytes: int


def trace(function: Callable[..., Any], *given: Tensor) -> fx.GraphModule:
    """The operations of a function of tensors, without what has no use; nothing is computed for it.

    Raises:
        Untraceable: an operation writes into its arguments.

    """

    def of_tensors(*flat: Tensor) -> Any:  # make_fx counts the parameters of a function, and those of a method wrongly
        return function(*flat)

    graph = make_fx(torch.func.functionalize(of_tensors), tracing_mode="fake", _allow_non_fake_inputs=True)(*given)
    simplify(graph.graph)
    compare_in_pools(graph.graph)
    forget_pooled(graph.graph)
    graph.recompile()
    return graph


def simplify(graph: fx.Graph) -> None:
    """Drop what has no use: dead nodes, views that change nothing, and what was computed before.

    Raises:
        Untraceable: an operation writes into its arguments.

    """
    seen: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        schema = getattr(node.target, "_schema", None)
        if schema is not None and schema.is_mutable:
            raise Untraceable(f"{node.target} writes into its arguments")
        same = _unchanged(node)
        if same is None and torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
            key = (node.target, _frozen(node.args), _frozen(node.kwargs))
            same = seen.setdefault(key, node)
        if same is not None and same is not node:
            node.replace_all_uses_with(same)
            graph.erase_node(node)
    graph.eliminate_dead_code()


_VIEWS = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default, torch.ops.aten.expand.default)
_ZEROS = (torch.ops.aten.zeros_like.default, torch.ops.aten.zeros.default)
_SAME = (torch.ops.aten.detach.default, torch.ops.aten.alias.default)


def _unchanged(node: fx.Node) -> fx.Node | None:
    """The node whose value this one repeats: it is a view that changes nothing, or adds nothing."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        return None
    if node.target in _SAME:
        return source
    if node.target in _VIEWS and _shape(node) == _shape(source):
        return source
    if node.target is torch.ops.aten.add.Tensor and not node.kwargs:
        return _added_to_zeros(*node.args)
    if node.target is torch.ops.aten.t.default and source.target is torch.ops.aten.t.default:
        inner = source.args[0]
        return inner if isinstance(inner, fx.Node) else None
    return None


def _added_to_zeros(*terms: Any) -> fx.Node | None:
    for zeros, other in (terms, terms[::-1]):
        if isinstance(zeros, fx.Node) and isinstance(other, fx.Node) and zeros.target in _ZEROS:
            return other if _shape(zeros) == _shape(other) and _dtype(zeros) == _dtype(other) else None
    return None


def _shape(node: fx.Node) -> tuple[int, ...] | None:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _dtype(node: fx.Node) -> torch.dtype | None:
    value = node.meta.get("val")
    return value.dtype if isinstance(value, Tensor) else None


def _frozen(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(map(_frozen, value))
    if isinstance(value, dict):
        return tuple(sorted((key, _frozen(item)) for key, item in value.items()))
    return (type(value), value)


def split(joint: fx.GraphModule, inputs: int, width: int) -> Graphs:
    """Cut a graph of a step and its reverse in two.

    Args:
        joint: inputs are what the step is given, then the gradient of the carry after; outputs are the carry after, then
            gradients.
        inputs: number of tensors that the step is given.
        width: number of tensors in a carry.

    """
    nodes = list(joint.graph.nodes)
    placeholders = [node for node in nodes if node.op == "placeholder"]
    outputs = list(nodes[-1].args[0])
    late = set(placeholders[inputs:])  # what depends on the gradient that comes in
    for node in nodes:
        if node.op == "call_function" and not late.isdisjoint(node.all_input_nodes):
            late.add(node)
    needed = [source for node in nodes if node in late for source in node.all_input_nodes] + outputs[width:]
    crossing = list(dict.fromkeys(node for node in needed if node not in late))
    early = [node for node in nodes if node not in late and node.op != "output"]
    after, slopes = outputs[:width], outputs[width:]
    forward = _subgraph(joint, early, placeholders[:inputs], after)
    record = _subgraph(joint, early, placeholders[:inputs], after + crossing)
    body = [node for node in nodes if node in late and node.op != "placeholder"]
    reverse = _subgraph(joint, body, crossing + placeholders[inputs:], slopes)
    given = set(placeholders) | {node for node in nodes if node.op == "get_attr"}
    return Graphs(forward, record, reverse, _bytes(crossing, given))


def _subgraph(
    joint: fx.GraphModule, nodes: Sequence[fx.Node], inputs: Sequence[fx.Node], outputs: Sequence[fx.Node]
) -> fx.GraphModule:
    graph, made = fx.Graph(), {}
    for node in inputs:
        made[node] = graph.placeholder(node.name)
    for node in nodes:
        if node not in made:
            made[node] = graph.node_copy(node, made.__getitem__)
    graph.output(tuple(made[node] for node in outputs))
    graph.eliminate_dead_code()
    return fx.GraphModule(joint, graph)


def _bytes(crossing: Sequence[fx.Node], given: set[fx.Node]) -> int:
    """Bytes of the storages that `crossing` hold on to, each counted once, without those of `given`."""
    owners = {owner(node) for node in crossing} - given
    return sum(_size(node) for node in owners)


def owner(node: fx.Node) -> fx.Node:
    """The node that made the storage which a node's value looks at."""
    while node.target is operator.getitem or getattr(node.target, "is_view", False):
        source = node.args[0]
        if not isinstance(source, fx.Node) or not isinstance(source.meta.get("val"), Tensor):
            break
        node = source
    return node


def _size(node: fx.Node) -> int:
    values = node.meta.get("val")
    tensors = values if isinstance(values, tuple | list) else [values]
    return sum(value.numel() * value.element_size() for value in tensors if isinstance(value, Tensor))


def alive_at_once(graph: fx.GraphModule, kept: Sequence[fx.Node] = ()) -> int:
    """The most bytes alive at any moment of running a graph: what it makes, without what it is given and what is `kept`."""
    nodes = list(graph.graph.nodes)
    last: dict[fx.Node, int] = {}
    for position, node in enumerate(nodes):
        for source in (node, *node.all_input_nodes):
            last[owner(source)] = position
    skipped = {owner(node) for node in kept}
    alive = most = 0
    leaving: dict[int, int] = {}
    for position, node in enumerate(nodes):
        if node.op == "call_function" and owner(node) is node and node not in skipped:
            size = _size(node)
            alive += size
            leaving[last[node]] = leaving.get(last[node], 0) + size
        most = max(most, alive)
        alive -= leaving.get(position, 0)
    return most


def compiled(graphs: Graphs, given: Sequence[Tensor], width: int) -> Graphs:
    """The same through inductor, run once on what the step is given, so that what fails does so here."""
    forward = compiled_alone(graphs.forward, *given)
    record = _through_inductor(graphs.record, given[0])
    found = record(*given)
    reverse = compiled_alone(graphs.reverse, *found[width:], *map(torch.zeros_like, given[:width]))
    return Graphs(forward, record, reverse, graphs.saved_bytes)


def compiled_alone(graph: Graph, *given: Tensor) -> Graph:
    """A graph through inductor, run once."""
    made = _through_inductor(graph, given[0])
    made(*given)
    return made


def _through_inductor(graph: Graph, like: Tensor) -> Graph:
    # Layouts are ours to choose; calls from C++ rather than Python are most of what there is to gain on a CPU.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # of a CUDA that nobody asked for
    logging.getLogger("torch._inductor.ir").setLevel(logging.ERROR)  # of kernels that are called in a slower way
    options: dict[str, Any] = {"cpp_wrapper": True, "layout_optimization": False} if not like.is_cuda else {}
    made: Graph = torch.compile(graph, fullgraph=True, dynamic=False, options=options)
    return made

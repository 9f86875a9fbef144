"""The inner step and its reverse as graphs: traced once per shape, run as they are or compiled.

One step of a small network is hundreds of small operations, and most of its time goes into deciding what to do next.
`make_fx` writes the operations of a step and of its reverse down, both at once; what does not depend on the gradient that
comes in is the step, the rest is the reverse, and the values that cross are what a graph in memory holds.
"""

from __future__ import annotations

import operator
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from ddray.distillation.config import InnerConfig
from ddray.distillation.inner import Carry, InnerStep, Pullback, vjp
from ddray.distillation.layout import Layout, convolutions
from ddray.networks import Network

Graph = Callable[..., Sequence[Tensor]]
_KEPT = 64  # graphs remembered by a process: shapes of the trials that it has run


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


class TracedStep(InnerStep):
    """`InnerStep` by graphs. Where tracing fails, it says so once and runs plainly.

    Args:
        network: what is trained.
        config: the optimiser and its constants.
        several: weights are those of several networks side by side.
        layout: how convolutions are computed.
        compiled: graphs go through inductor, which takes from seconds to minutes per shape.

    """

    def __init__(
        self, network: Network, config: InnerConfig | None = None, *, several: bool = False,
        layout: Layout = "blocked", compiled: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(network, config, several=several, layout=layout)
        self.compiled = compiled and not network.stochastic  # inductor draws masks in its own way
        self._last: tuple[tuple[Any, ...], Graphs | None] = ((), None)

    @torch.no_grad()
    def forward(self, carry: Carry, x: Tensor, y: Tensor, rate: Tensor, seed: int) -> Carry:
        """The carry after a step."""
        graphs = self.graphs(carry, x, y, rate)
        if graphs is None:
            return super().forward(carry, x, y, rate, seed)
        with self.network.masks(seed), convolutions(self.layout):
            return tuple(graphs.forward(*carry, x, y, rate))

    @torch.no_grad()
    def record(self, carry: Carry, x: Tensor, y: Tensor, rate: Tensor, seed: int) -> tuple[Carry, Pullback]:
        """The same step with what the reverse needs kept, and the way back."""
        graphs = self.graphs(carry, x, y, rate)
        if graphs is None:
            return super().record(carry, x, y, rate, seed)
        with self.network.masks(seed), convolutions(self.layout):
            found = graphs.record(*carry, x, y, rate)
        width = len(carry)

        @torch.no_grad()
        def pullback(slope: Carry) -> tuple[Carry, Tensor, Tensor, Tensor]:
            with convolutions(self.layout):
                *d_carry, d_x, d_y, d_rate = graphs.reverse(*found[width:], *slope)
            return tuple(d_carry), d_x, d_y, d_rate

        return tuple(found[:width]), pullback

    def graphs(self, carry: Carry, x: Tensor, y: Tensor, rate: Tensor) -> Graphs | None:
        """The graphs for tensors of these shapes, traced if they are new; None where that fails."""
        shapes = tuple((tuple(t.shape), t.dtype, t.device) for t in (*carry, x, y))
        if self._last[0] != shapes:
            self._last = shapes, self._remembered(shapes, (*carry, x, y, rate), len(carry))
        return self._last[1]

    def sketch(self, carry: Carry, x: Tensor, y: Tensor, rate: Tensor) -> Graphs | None:
        """Graphs to look at and not to run: nothing is computed or allocated for them. None where tracing fails."""
        try:
            return self._trace((*carry, x, y, rate), len(carry))
        except Exception:  # the same that `graphs` says aloud, where it matters
            return None

    def _remembered(self, shapes: tuple[Any, ...], given: Sequence[Tensor], width: int) -> Graphs | None:
        key = (self.network.identity, self.config, self.several, self.layout, self.compiled, shapes)
        if key in _graphs:
            _graphs.move_to_end(key)
        else:
            try:
                _graphs[key] = self._trace(given, width)
            except Exception as error:  # whatever a user's network does that a graph cannot hold
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                name = type(self.network.module).__name__
                warnings.warn(f"{name} cannot be traced ({reason}): it runs as written", stacklevel=2)
                _graphs[key] = None
            if len(_graphs) > _KEPT:
                _graphs.popitem(last=False)
        return _graphs[key]

    def _trace(self, given: Sequence[Tensor], width: int) -> Graphs:
        def step_and_reverse(*flat: Tensor) -> tuple[Tensor, ...]:
            carry, (x, y, rate), slope = flat[:width], flat[width : width + 3], flat[width + 3 :]
            after, pullback = vjp(self._function, carry, x, y, rate)
            d_carry, d_x, d_y, d_rate = pullback(slope)
            return (*after, *d_carry, d_x, d_y, d_rate)

        slope = [torch.empty_like(t) for t in given[:width]]
        with convolutions(self.layout):
            trace = make_fx(torch.func.functionalize(step_and_reverse), tracing_mode="fake", _allow_non_fake_inputs=True)
            joint = trace(*given, *slope)
        simplify(joint.graph)
        return split(joint, len(given), width, self._compile if self.compiled else lambda graph: graph)

    def _compile(self, graph: fx.GraphModule) -> Graph:
        compiled: Graph = torch.compile(graph, fullgraph=True, dynamic=False)
        return compiled


_graphs: OrderedDict[tuple[Any, ...], Graphs | None] = OrderedDict()


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
_SAME = (torch.ops.aten.detach.default, torch.ops.aten.alias.default)


def _unchanged(node: fx.Node) -> fx.Node | None:
    """The node whose value this one repeats, if it is a view that changes nothing."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        return None
    if node.target in _SAME:
        return source
    if node.target in _VIEWS and _shape(node) == _shape(source):
        return source
    if node.target is torch.ops.aten.t.default and source.target is torch.ops.aten.t.default:
        inner = source.args[0]
        return inner if isinstance(inner, fx.Node) else None
    return None


def _shape(node: fx.Node) -> tuple[int, ...] | None:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _frozen(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(map(_frozen, value))
    if isinstance(value, dict):
        return tuple(sorted((key, _frozen(item)) for key, item in value.items()))
    return (type(value), value)


def split(joint: fx.GraphModule, inputs: int, width: int, finish: Callable[[fx.GraphModule], Graph]) -> Graphs:
    """Cut a graph of a step and its reverse in two.

    Args:
        joint: inputs are what the step is given, then the gradient of the carry after; outputs are the carry after, then
            gradients.
        inputs: number of tensors that the step is given.
        width: number of tensors in a carry.
        finish: makes a graph callable.

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
    return Graphs(finish(forward), finish(record), finish(reverse), _bytes(crossing, given))


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
    value = node.meta.get("val")
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0

"""The inner step and its reverse as graphs: traced once per shape, run as they are or compiled.

One step of a small network is hundreds of small operations, and most of its time goes into deciding what to do next.
`make_fx` writes the operations of a step and of its reverse down, both at once; what does not depend on the gradient that
comes in is the step, the rest is the reverse, and the values that cross are what a graph in memory holds.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, fx

from ddray.distillation.bindings import bind
from ddray.distillation.config import InnerConfig
from ddray.distillation.graphs import Graph, Graphs, compiled, compiled_alone, simplify, split, trace
from ddray.distillation.inner import Carry, InnerStep, Pullback, StepGradient, vjp
from ddray.distillation.kernels import assign, is_of_card, measure
from ddray.distillation.layout import LAYOUTS, convolutions
from ddray.distillation.merge import merge_sums
from ddray.distillation.outer import OuterLoss
from ddray.networks import Network

M = TypeVar("M")
_KEPT = 64  # graphs remembered by a process: shapes of the trials that it has run


class TracedStep(InnerStep):
    """`InnerStep` by graphs. Where tracing fails, it says so once and runs plainly.

    Args:
        network: what is trained.
        config: the optimiser and its constants.
        batched: weights are [k, P], those of k networks side by side.
        layout: how convolutions are computed.
        compiled: graphs go through inductor, which takes from seconds to minutes per shape.

    """

    def __init__(
        self, network: Network, config: InnerConfig | None = None, *, batched: bool = False,
        layout: str = "blocked", compiled: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(network, config, batched=batched, layout=layout)
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
        def pullback(d_after: Carry) -> StepGradient:
            with convolutions(self.layout):
                *d_carry, d_x, d_y, d_rate = graphs.reverse(*found[width:], *d_after)
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
        return _tried(lambda: self._trace((*carry, x, y, rate), len(carry)))

    def _remembered(self, shapes: tuple[Any, ...], given: Sequence[Tensor], width: int) -> Graphs | None:
        key = (self.network.identity, self.config, self.batched, self.layout, self.compiled, shapes)
        found: Graphs | None = _kept(key, self.network, lambda: _bound(self._trace(given, width)))
        return found

    def measured_layout(self, weights: Tensor, x: Tensor, y: Tensor) -> str:
        """The word of the fastest kernels for a step on x [n, ...] and y [n, width] and its reverse; empty without a trace."""
        carry = self.begin(weights)
        given = [*carry, x, y, torch.full((), 0.01, device=x.device)]
        joint = _tried(lambda: self._joint(given, len(carry)))
        return measure(joint, [*given, *map(torch.ones_like, carry)]) if joint is not None else ""

    def _trace(self, given: Sequence[Tensor], width: int) -> Graphs:
        joint = self._joint(given, width)
        if self.layout not in LAYOUTS:
            # A compiler takes oneDNN's linear layers for constants only, and other products are its own to choose.
            _by_word(joint, self.layout.partition("/")[0] if self.compiled else self.layout)
        graphs = split(joint, len(given), width)
        if not self.compiled:
            return graphs
        return _compiled_or_traced(self.network, lambda: compiled(graphs, given, width), graphs)

    def _joint(self, given: Sequence[Tensor], width: int) -> fx.GraphModule:
        """The graph of a step and its reverse."""

        def step_and_reverse(*flat: Tensor) -> tuple[Tensor, ...]:
            carry, (x, y, rate), d_after = flat[:width], flat[width : width + 3], flat[width + 3 :]
            after, pullback = vjp(self._function, carry, x, y, rate)
            d_carry, d_x, d_y, d_rate = pullback(d_after)
            return (*after, *d_carry, d_x, d_y, d_rate)

        with convolutions(self.layout):
            joint = trace(step_and_reverse, *given, *map(torch.empty_like, given[:width]))
        if not given[0].is_cuda and not is_of_card(self.layout):
            merge_sums(joint.graph)
            joint.recompile()
        return joint


@dataclass(frozen=True)
class TracedOuterLoss(OuterLoss):
    """`OuterLoss` by graphs.

    Attributes:
        compiled: on a GPU, graphs go through inductor; on a CPU that gains nothing here.
        layout: a word of the kernels of its convolutions and products, or `blocked`.

    """

    compiled: bool = False
    layout: str = "blocked"

    def piece(self, weights: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and gradient on examples that pass together."""
        shapes = tuple((tuple(t.shape), t.dtype, t.device) for t in (weights, x, y))
        key = (self.network.identity, self.bfloat16, self.compiled, self.layout, shapes)
        graph = _kept(key, self.network, lambda: self._trace(weights, x, y))
        if graph is None:
            return super().piece(weights, x, y)
        loss, gradient = graph(weights, x, y)
        return loss, gradient

    def _trace(self, weights: Tensor, x: Tensor, y: Tensor) -> Graph:
        graph = self.sketch(weights, x, y)
        if not self.compiled or not weights.is_cuda:
            return bind(graph)
        as_traced: Graph = graph
        return _compiled_or_traced(self.network, lambda: compiled_alone(graph, weights, x, y), as_traced)

    def sketch(self, weights: Tensor, x: Tensor, y: Tensor) -> fx.GraphModule:
        """The graph, by the kernels of its word; nothing is computed for it."""
        graph = trace(self.function, weights, x, y)
        if self.layout not in LAYOUTS:
            _by_word(graph, self.layout)
        return graph

    def measured_layout(self, weights: Tensor, x: Tensor, y: Tensor) -> str:
        """The word of the fastest kernels for the loss on examples that pass together; empty without a trace."""
        graph = _tried(lambda: trace(self.function, weights, x, y))
        return measure(graph, [weights, x, y]) if graph is not None else ""

    def function(self, weights: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """What is traced: `OuterLoss.piece` in a form that can be."""

        def summed(weights: Tensor) -> tuple[Tensor, Tensor]:
            losses = self.losses(weights, x, y)
            return losses.sum(), losses

        gradient, (_, losses) = torch.func.grad_and_value(summed, has_aux=True)(weights)
        return losses, gradient


def _by_word(graph: fx.GraphModule, letters: str) -> None:
    assign(graph.graph, letters)
    simplify(graph.graph)
    graph.recompile()


def _bound(graphs: Graphs) -> Graphs:
    """Graphs as they run, but for compiled ones, which are."""
    forward, record, reverse = (
        bind(graph) if isinstance(graph, fx.GraphModule) else graph for graph in (graphs.forward, graphs.record, graphs.reverse)
    )
    return Graphs(forward, record, reverse, graphs.saved_bytes)


def _tried(make: Callable[[], M]) -> M | None:
    """What is made, or None where tracing fails: `TracedStep.graphs` says why, as soon as a step runs."""
    try:
        return make()
    except Exception:  # whatever a user's network does that a graph cannot hold
        return None


def _compiled_or_traced(network: Network, compile_graphs: Callable[[], M], as_traced: M) -> M:
    """Graphs by a compiler; as they were traced, with a warning, where that fails."""
    try:
        return compile_graphs()
    except Exception as error:  # whatever goes wrong in a compiler
        warnings.warn(f"{called(network)} cannot be compiled ({reason(error)}): its graphs run as traced", stacklevel=3)
        return as_traced


def called(network: Network) -> str:
    """What a network is to its user."""
    return type(network.module).__name__


def reason(error: Exception) -> str:
    """Why something failed, on one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


_graphs: OrderedDict[tuple[Any, ...], Any] = OrderedDict()


def _kept(key: tuple[Any, ...], network: Network, make: Callable[[], Any]) -> Any:
    """What is remembered under a key, made if it is new; None, once with a warning, where that fails."""
    if key in _graphs:
        _graphs.move_to_end(key)
        return _graphs[key]
    try:
        _graphs[key] = make()
    except Exception as error:  # whatever a user's network does that a graph cannot hold
        warnings.warn(f"{called(network)} cannot be traced ({reason(error)}): it runs as written", stacklevel=2)
        _graphs[key] = None
    if len(_graphs) > _KEPT:
        _graphs.popitem(last=False)
    return _graphs[key]

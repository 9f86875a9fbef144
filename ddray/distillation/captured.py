"""The unroll and its reverse on a GPU, as one recording (`ddray.distillation.cuda_graph`)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ddray.distillation.cuda_graph import Captured
from ddray.distillation.inner import Carry
from ddray.distillation.outer import OuterLoss, RealBatch
from ddray.distillation.traced import TracedStep, called, reason
from ddray.distillation.unroll import Adjoint, Synthetic, advance, forward_and_back


class CapturedStep(TracedStep):
    """`TracedStep` of a network on a GPU that draws no random numbers. Where a recording fails, it says so and launches."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.launched = TracedStep(*args, **settings)
        self._captured: dict[Any, Captured | None] = {}

    @torch.no_grad()
    def forward(self, carry: Carry, x: Tensor, y: Tensor, rate: Tensor, seed: int) -> Carry:
        """The carry after a step."""

        def function(*flat: Tensor) -> Carry:
            *before, x, y, rate = flat
            return self.launched.forward(tuple(before), x, y, rate, seed)

        found = self._replayed("step", function, [*carry, x, y, rate])
        return function(*carry, x, y, rate) if found is None else tuple(t.clone() for t in found)

    @torch.no_grad()
    def outer_gradient(
        self, start: Tensor, synthetic: Synthetic, order: Sequence[int], batch: RealBatch, *,
        adjoint: Adjoint, window: range, outer: OuterLoss,
    ) -> tuple[Tensor, Tensor, Synthetic]:  # fmt: skip
        """As `ddray.distillation.unroll.outer_gradient`, the window and its way back as one piece."""
        carry = advance(self, self.begin(start), synthetic, order, 0, range(window.start))
        # One recording is for windows wherever they begin, so their minibatches are handed over in their order.
        whole = len(window) == len(order)
        seen = synthetic if whole else _gathered(synthetic, order, window)
        seen_order = tuple(order) if whole else tuple(range(len(window)))

        def function(*flat: Tensor) -> tuple[Tensor, ...]:
            *before, inputs, labels, rates, x, y = flat
            weights, loss, slope = forward_and_back(
                self.launched, tuple(before), Synthetic(inputs, labels, rates), seen_order, RealBatch(x, y), 0,
                adjoint=adjoint, window=range(len(seen_order)), outer=outer,
            )  # fmt: skip
            return weights, loss, slope.inputs, slope.labels, slope.rates

        given = [*carry, seen.inputs, seen.labels, seen.rates, batch.x, batch.y]
        found = self._replayed((seen_order, adjoint, outer), function, given) or function(*given)
        weights, loss, *slopes = (t.clone() for t in found)
        return weights, loss, Synthetic(*slopes) if whole else _scattered(Synthetic(*slopes), synthetic, order, window)

    def _replayed(self, what: Any, function: Callable[..., Sequence[Tensor]], given: list[Tensor]) -> tuple[Tensor, ...] | None:
        """What a function gives by its recording, made if it is new; None where it cannot be recorded."""
        key = (what, tuple((tuple(t.shape), t.dtype) for t in given))
        if key not in self._captured:
            try:
                self._captured[key] = Captured(function, given, device=given[0].device)
            except Exception as error:  # whatever a user's network does that a recording cannot hold
                text = f"{called(self.network)} cannot be captured ({reason(error)}): it is launched bit by bit"
                warnings.warn(text, stacklevel=2)
                self._captured[key] = None
        captured = self._captured[key]
        return None if captured is None else captured(*given)


def _gathered(synthetic: Synthetic, order: Sequence[int], window: range) -> Synthetic:
    """The minibatches of a window's steps in their order."""
    chosen = torch.tensor([order[t] for t in window], device=synthetic.inputs.device)
    rates = synthetic.rates[window.start : window.stop]
    return Synthetic(synthetic.inputs[chosen], synthetic.labels[chosen], rates)


def _scattered(slopes: Synthetic, synthetic: Synthetic, order: Sequence[int], window: range) -> Synthetic:
    """Gradients of a window's minibatches as those of the set; step by step, for sums in no order differ in their last bits."""
    found = Synthetic(*(torch.zeros_like(t) for t in (synthetic.inputs, synthetic.labels, synthetic.rates)))
    for i, t in enumerate(window):
        found.inputs[order[t]] += slopes.inputs[i]
        found.labels[order[t]] += slopes.labels[i]
    found.rates[window.start : window.stop] = slopes.rates
    return found

"""The inner loop, and the gradient through it.

A network starts at weights w₀ and takes T steps of training on the synthetic set, in the simplest case

    wₜ₊₁ = wₜ − rateₜ · ∇ℓ(wₜ; inputsₛ, labelsₛ),      s = order[t],

and is then judged by the loss L(w_T) on a batch of real examples. `outer_gradient` returns L and its gradient with respect to
inputs, labels and rates. It walks back segment by segment: of each it keeps the carry at the beginning, takes its steps once
more with their graphs, and pulls the gradient back through them. How long a segment is decides what memory is spent on; the
gradient is the same.

    full        one segment of T steps: no step is taken twice, T graphs in memory
    recompute   T segments of one: T carries (4·T·P bytes for float32 and SGD), one graph
    checkpoint  √T segments of √T steps: √T carries, √T graphs
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ddray.distillation.inner import Carry, InnerStep, Pullback
from ddray.distillation.outer import OuterLoss, RealBatch

Adjoint = Literal["full", "recompute", "checkpoint"]
ADJOINTS: tuple[Adjoint, ...] = ("full", "recompute", "checkpoint")


@dataclass(frozen=True)
class Synthetic:
    """What a network is trained on: inputs [S, n, ...], labels [S, n, width], rates [T] of the inner steps.

    `labels` are the targets as the loss sees them and `rates` are positive: softmax and softplus lie behind.
    A gradient with respect to a set has the same three parts.
    """

    inputs: Tensor
    labels: Tensor
    rates: Tensor

    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs, labels, rates."""
        return self.inputs, self.labels, self.rates

    def detach(self) -> Synthetic:
        """The same tensors, cut from what they were computed from."""
        return Synthetic(*(part.detach() for part in self.parts()))

    def zeros_like(self) -> Synthetic:
        """Zeros in the same shapes, to add gradients to."""
        return Synthetic(*map(torch.zeros_like, self.parts()))


def outer_gradient(
    step: InnerStep, start: Tensor, synthetic: Synthetic, order: Sequence[int], batch: RealBatch, seed: int, *,
    adjoint: Adjoint, window: range, outer: OuterLoss,
) -> tuple[Tensor, Tensor, Synthetic]:  # fmt: skip
    """Train a network from `start`, judge it, and differentiate through its training.

    Divergence is not checked for: that would make the CPU wait for the GPU. A weight that is no longer finite stays so, and
    whoever calls this sees it in the weights returned.

    Args:
        step: the inner step, in whatever form it is computed.
        start: initial weights [P], or [k, P] of k networks: then losses are [k], and the gradient is that of their sum.
        synthetic: what is trained on.
        order: the minibatch of each step.
        batch: real examples to judge on.
        seed: decides dropout masks.
        adjoint: what memory is spent on.
        window: train up to its last step only, and see the steps in it alone: a window drawn at random for every outer step
            is cheaper than the whole unroll and spares the gradient the chaos of long training, but it is another
            estimator (RaT-BPTT: Feng et al., "Embarrassingly Simple Dataset Distillation", 2024).
        outer: the loss to judge by.

    Returns:
        The weights after the window's last step, the outer loss, and its gradient with respect to the set.

    """
    before_window = range(window.start)
    carry = advance(step, step.begin(start), synthetic, order, seed, before_window)
    return forward_and_back(step, carry, synthetic, order, batch, seed, adjoint=adjoint, window=window, outer=outer)


def forward_and_back(
    step: InnerStep, carry: Carry, synthetic: Synthetic, order: Sequence[int], batch: RealBatch, seed: int, *,
    adjoint: Adjoint, window: range, outer: OuterLoss,
) -> tuple[Tensor, Tensor, Synthetic]:  # fmt: skip
    """`outer_gradient` from the carry before the window."""
    *earlier, last = segments(window, adjoint)
    carries = [carry]  # before each segment
    for segment in earlier:
        carries.append(advance(step, carries[-1], synthetic, order, seed, segment))
    (weights, *state), pullbacks = record(step, carries.pop(), synthetic, order, seed, last)
    loss, d_weights = outer(weights, batch)
    d_carry: Carry = (d_weights, *map(torch.zeros_like, state))
    gradient = synthetic.zeros_like()
    d_carry = pull_back(pullbacks, d_carry, gradient, order, last)
    for segment in reversed(earlier):
        _, pullbacks = record(step, carries.pop(), synthetic, order, seed, segment)
        d_carry = pull_back(pullbacks, d_carry, gradient, order, segment)
    return weights, loss, gradient


def advance(
    step: InnerStep, carry: Carry, synthetic: Synthetic, order: Sequence[int], seed: int, steps: range
) -> Carry:
    """The carry after the inner steps `steps`, from the one before the first of them.

    `seed` decides the dropout masks, where the network has any: step t uses seed + t.
    """
    for t in steps:
        s = order[t]
        carry = step.forward(carry, synthetic.inputs[s], synthetic.labels[s], synthetic.rates[t], seed + t)
    return carry


def record(
    step: InnerStep, carry: Carry, synthetic: Synthetic, order: Sequence[int], seed: int, steps: range
) -> tuple[Carry, list[Pullback]]:
    """As `advance`, keeping the way back through every step."""
    pullbacks = []
    for t in steps:
        s = order[t]
        carry, pullback = step.record(carry, synthetic.inputs[s], synthetic.labels[s], synthetic.rates[t], seed + t)
        pullbacks.append(pullback)
    return carry, pullbacks


def pull_back(
    pullbacks: list[Pullback], d_carry: Carry, gradient: Synthetic, order: Sequence[int], steps: range
) -> Carry:
    """Pull the gradient with respect to the carry back through recorded steps, last first, to that before them.

    Each step's share is added to `gradient`, and its graph freed.
    """
    for t in reversed(steps):
        d_carry, d_x, d_y, d_rate = pullbacks.pop()(d_carry)
        gradient.inputs[order[t]] += d_x
        gradient.labels[order[t]] += d_y
        gradient.rates[t] = d_rate
    return d_carry


def segments(window: range, adjoint: Adjoint) -> list[range]:
    """The steps of a window, in segments whose graphs are in memory together."""
    length = segment_length(len(window), adjoint)
    return [range(t, min(t + length, window.stop)) for t in range(window.start, window.stop, length)]


def segment_length(steps: int, adjoint: Adjoint) -> int:
    """How many steps' graphs are in memory together."""
    return {"full": steps, "recompute": 1, "checkpoint": math.ceil(math.sqrt(steps))}[adjoint]


def segment_count(steps: int, adjoint: Adjoint) -> int:
    """How many segments steps fall into: how many carries are kept."""
    return math.ceil(steps / segment_length(steps, adjoint))


def train_as_distilled(
    step: InnerStep, start: Tensor, synthetic: Synthetic, order: Sequence[int], seed: int = 0
) -> Tensor:
    """The weights after the recorded steps at the recorded rates: [P], or [k, P] of several networks."""
    return advance(step, step.begin(start), synthetic, order, seed, range(len(order)))[0]


def diverges_at(step: InnerStep, start: Tensor, synthetic: Synthetic, order: Sequence[int], seed: int) -> int:
    """The inner step, counted from 1, after which the weights of a training from `start` [P] are not all finite."""
    carry, done = step.begin(start), 0
    while done < len(order) and torch.isfinite(carry[0]).all():
        carry, done = advance(step, carry, synthetic, order, seed, range(done, done + 1)), done + 1
    return done

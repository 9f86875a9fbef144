"""The inner loop, and the gradient through it.

A network starts at weights w₀ and takes T steps of training on the synthetic set, in the simplest case

    wₜ₊₁ = wₜ − rateₜ · ∇ℓ(wₜ; inputsₛ, labelsₛ),      s = order[t],

and is then judged by the loss L(w_T) on a batch of real examples. `differentiate` returns L and its gradient with respect to
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

from ddray.distillation.inner import Carry, InnerStep, soft_loss
from ddray.distillation.outer import OuterLoss, RealBatch, hard_loss
from ddray.errors import Diverged

Adjoint = Literal["full", "recompute", "checkpoint"]
ADJOINTS: tuple[Adjoint, ...] = ("full", "recompute", "checkpoint")


@dataclass(frozen=True)
class Synthetic:
    """What a network is trained on: inputs [S, n, ...], labels [S, n, width], rates [T] of the inner steps.

    `labels` are the targets as the loss sees them and `rates` are positive: softmax and softplus lie behind.
    """

    inputs: Tensor
    labels: Tensor
    rates: Tensor


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


def train_as_distilled(
    step: InnerStep, start: Tensor, synthetic: Synthetic, order: Sequence[int], seed: int = 0
) -> Tensor:
    """The weights after the recorded steps at the recorded rates: [P], or [k, P] of several networks."""
    return advance(step, step.begin(start), synthetic, order, seed, range(len(order)))[0]


def differentiate(
    step: InnerStep, start: Tensor, synthetic: Synthetic, order: Sequence[int], batch: RealBatch, seed: int = 0, *,
    adjoint: Adjoint = "recompute", window: range | None = None, outer: OuterLoss | None = None,
) -> tuple[Tensor, Synthetic]:  # fmt: skip
    """The loss of a network trained from `start` [P], and its gradient with respect to the set.

    Raises:
        Diverged: an inner weight is no longer finite.

    """
    window, outer = window or range(len(order)), outer or OuterLoss(step.network)
    weights, loss, slope = unrolled(
        step, start, synthetic, order, batch, seed, adjoint=adjoint, window=window, outer=outer
    )
    # What is not finite stays so, hence one look at the end; only then is it worth asking where it began.
    if not torch.isfinite(weights).all():
        raise Diverged("an inner weight", outer_step=-1, inner_step=diverges_at(step, start, synthetic, order, seed))
    return loss, slope


def unrolled(
    step: InnerStep, start: Tensor, synthetic: Synthetic, order: Sequence[int], batch: RealBatch, seed: int, *,
    adjoint: Adjoint, window: range, outer: OuterLoss,
) -> tuple[Tensor, Tensor, Synthetic]:  # fmt: skip
    """The same without looking whether weights are finite: no number is asked of the device, so that a GPU is kept busy.

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
        The weights after the window's last step, the outer loss, and its gradient.

    """
    carry = advance(step, step.begin(start), synthetic, order, seed, range(window.start))
    return there_and_back(step, carry, synthetic, order, batch, seed, adjoint=adjoint, window=window, outer=outer)


def there_and_back(
    step: InnerStep, carry: Carry, synthetic: Synthetic, order: Sequence[int], batch: RealBatch, seed: int, *,
    adjoint: Adjoint, window: range, outer: OuterLoss,
) -> tuple[Tensor, Tensor, Synthetic]:  # fmt: skip
    """Through a window and back, from the carry before it."""
    parts = segments(window, adjoint)
    begun = [carry]
    for part in parts[:-1]:
        begun.append(advance(step, begun[-1], synthetic, order, seed, part))
    d_inputs, d_labels = torch.zeros_like(synthetic.inputs), torch.zeros_like(synthetic.labels)
    d_rates = torch.zeros_like(synthetic.rates)
    weights, loss, slope = carry[0], carry[0], carry
    for part in reversed(parts):
        carry, pullbacks = begun.pop(), []
        for t in part:
            s = order[t]
            given = (carry, synthetic.inputs[s], synthetic.labels[s], synthetic.rates[t])
            carry, pullback = step.record(*given, seed + t)
            pullbacks.append(pullback)
        if part is parts[-1]:
            weights = carry[0]
            loss, d_weights = outer(weights, batch)
            slope = (d_weights, *map(torch.zeros_like, carry[1:]))
        for t in reversed(part):
            slope, d_x, d_y, d_rate = pullbacks.pop()(slope)
            d_inputs[order[t]] += d_x
            d_labels[order[t]] += d_y
            d_rates[t] = d_rate
    return weights, loss, Synthetic(d_inputs, d_labels, d_rates)


def segments(window: range, adjoint: Adjoint) -> list[range]:
    """The steps of a window, in segments whose graphs are in memory together."""
    length = segment_length(len(window), adjoint)
    return [range(t, min(t + length, window.stop)) for t in range(window.start, window.stop, length)]


def segment_length(steps: int, adjoint: Adjoint) -> int:
    """How many steps' graphs are in memory together."""
    return {"full": steps, "recompute": 1, "checkpoint": math.ceil(math.sqrt(steps))}[adjoint]


def diverges_at(step: InnerStep, start: Tensor, synthetic: Synthetic, order: Sequence[int], seed: int) -> int:
    """The inner step, counted from 1, after which the weights of a training from `start` [P] are not all finite."""
    carry, done = step.begin(start), 0
    while done < len(order) and torch.isfinite(carry[0]).all():
        carry, done = advance(step, carry, synthetic, order, seed, range(done, done + 1)), done + 1
    return done


def by_autograd(
    step: InnerStep, start: Tensor, synthetic: Synthetic, order: Sequence[int], batch: RealBatch, seed: int = 0
) -> tuple[Tensor, Synthetic]:
    """Loss and gradients by plain autograd through all T steps: nothing of ours, and so what all else is compared with."""
    inputs, labels = synthetic.inputs.detach().requires_grad_(), synthetic.labels.detach().requires_grad_()
    rates = synthetic.rates.detach().requires_grad_()
    network, (weights, *rest) = step.network, step.begin(start.detach().requires_grad_())
    state = tuple(rest)
    for t, s in enumerate(order):
        with network.masks(seed + t):
            loss = soft_loss(network.training(weights, inputs[s]), labels[s])
        (gradient,) = torch.autograd.grad(loss, weights, create_graph=True)
        weights, state = step.optimiser.update(weights, state, gradient, rates[t])
    loss = hard_loss(network(weights, batch.x), batch.y)
    return loss.detach(), Synthetic(*torch.autograd.grad(loss, (inputs, labels, rates)))

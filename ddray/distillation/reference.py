"""The same gradient by plain autograd: the reference that tests and benchmarks compare with. No distillation uses it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ddray.distillation.inner import InnerStep, soft_loss
from ddray.distillation.outer import OuterLoss, RealBatch, hard_loss
from ddray.distillation.unroll import Adjoint, Synthetic, diverges_at, outer_gradient
from ddray.errors import Diverged


def by_autograd(
    step: InnerStep, start: Tensor, synthetic: Synthetic, order: Sequence[int], batch: RealBatch, seed: int = 0
) -> tuple[Tensor, Synthetic]:
    """Loss and gradient by autograd through all T steps, which shares no line of the walk back with `outer_gradient`."""
    leaves = Synthetic(*(part.detach().requires_grad_() for part in synthetic.parts()))
    network, (weights, *rest) = step.network, step.begin(start.detach().requires_grad_())
    state = tuple(rest)
    for t, s in enumerate(order):
        with network.masks(seed + t):
            loss = soft_loss(network.training(weights, leaves.inputs[s]), leaves.labels[s])
        (gradient,) = torch.autograd.grad(loss, weights, create_graph=True)
        weights, state = step.optimiser.update(weights, state, gradient, leaves.rates[t])
    loss = hard_loss(network(weights, batch.x), batch.y)
    return loss.detach(), Synthetic(*torch.autograd.grad(loss, leaves.parts()))


def differentiate(
    step: InnerStep, start: Tensor, synthetic: Synthetic, order: Sequence[int], batch: RealBatch, seed: int = 0, *,
    adjoint: Adjoint = "recompute", window: range | None = None, outer: OuterLoss | None = None,
) -> tuple[Tensor, Synthetic]:  # fmt: skip
    """Loss and gradient by `outer_gradient`, in the form of `by_autograd`; all steps of the order unless a window is given.

    Raises:
        Diverged: an inner weight is no longer finite.

    """
    window, outer = window or range(len(order)), outer or OuterLoss(step.network)
    weights, loss, gradient = outer_gradient(
        step, start, synthetic, order, batch, seed, adjoint=adjoint, window=window, outer=outer
    )
    if not torch.isfinite(weights).all():
        raise Diverged("an inner weight", outer_step=-1, inner_step=diverges_at(step, start, synthetic, order, seed))
    return loss, gradient

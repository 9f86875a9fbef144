"""The inner loop, and the gradient through it.

A network starts at weights w₀ and takes T steps of gradient descent on the synthetic set,

    wₜ₊₁ = wₜ − rateₜ · ∇ℓ(wₜ; inputsₛ, labelsₛ),      s = order[t],

and is then judged by the loss L(w_T) on a batch of real examples. `unroll` returns L and its gradient with respect to
inputs, labels and rates. Two ways to spend memory give the same gradient:

    recompute   keeps the weights wₜ alone (4·T·P bytes in float32) and, walking backwards, differentiates one step at a time
    full        lets autograd keep every step's graph: simple, slow, hungry; the reference for the other
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ddray.errors import Diverged
from ddray.networks import Network


@dataclass(frozen=True)
class Synthetic:
    """What a network is trained on: inputs [S, n, ...], labels [S, n, width], rates [T] of the inner steps.

    `labels` are the targets as the loss sees them and `rates` are positive: softmax and softplus lie behind.
    """

    inputs: Tensor
    labels: Tensor
    rates: Tensor


@dataclass(frozen=True)
class RealBatch:
    """Normalised real examples x [N, ...] with classes y, int64 [N]."""

    x: Tensor
    y: Tensor


def soft_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of logits [n, width] against soft targets [n, width], which may be any numbers.

    One logit is a binary problem with the logistic loss; more are softmax cross-entropy.
    """
    if logits.shape[-1] == 1:
        return F.binary_cross_entropy_with_logits(logits, labels)
    return -(labels * F.log_softmax(logits, dim=-1)).sum(-1).mean()


def hard_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """Mean cross-entropy of logits [N, width] against classes int64 [N]."""
    if logits.shape[-1] == 1:
        return F.binary_cross_entropy_with_logits(logits[:, 0], classes.to(logits.dtype))
    return F.cross_entropy(logits, classes)


def predictions(logits: Tensor) -> Tensor:
    """The class, int64 [N], that logits [N, width] speak for; a single logit does so by its sign."""
    return (logits[:, 0] > 0).long() if logits.shape[-1] == 1 else logits.argmax(-1)


def sgd_step(network: Network, weights: Tensor, x: Tensor, y: Tensor, rate: Tensor, seed: int) -> Tensor:
    """One inner step: weights [P] after a step of gradient descent on inputs x [n, ...] with targets y [n, width]."""

    def loss(weights: Tensor) -> Tensor:
        return soft_loss(network(weights, x, seed=seed), y)

    gradient: Tensor = torch.func.grad(loss)(weights)
    return weights - rate * gradient


@torch.no_grad()
def trajectory(network: Network, start: Tensor, synthetic: Synthetic, order: Sequence[int], seed: int) -> list[Tensor]:
    """The weights before each of the T inner steps and after the last: T + 1 vectors [P].

    `seed` decides the dropout masks, where the network has any: step t uses seed + t.
    """
    states = [start]
    for t, s in enumerate(order):
        x, y, rate = synthetic.inputs[s], synthetic.labels[s], synthetic.rates[t]
        states.append(sgd_step(network, states[-1], x, y, rate, seed + t))
    return states


@torch.no_grad()
def train_as_distilled(
    network: Network, start: Tensor, synthetic: Synthetic, order: Sequence[int], seed: int = 0
) -> Tensor:
    """The weights [P] after the recorded steps at the recorded rates; `seed` as in `trajectory`."""
    weights = start
    for t, s in enumerate(order):
        weights = sgd_step(network, weights, synthetic.inputs[s], synthetic.labels[s], synthetic.rates[t], seed + t)
    return weights


# A cache holds the activations of so many examples, not of a whole batch: on a CPU this is nearly twice as fast.
_CHUNK = 128


def outer_loss(network: Network, weights: Tensor, batch: RealBatch) -> tuple[Tensor, Tensor]:
    """The mean loss on real examples, and its gradient [P] with respect to the weights."""
    size = len(batch.y) if batch.x.is_cuda else _CHUNK
    leaf = weights.detach().requires_grad_()
    total, gradient = torch.zeros_like(leaf[0]), torch.zeros_like(weights)
    for x, y in zip(batch.x.split(size), batch.y.split(size), strict=True):
        loss = hard_loss(network(leaf, x), y) * (len(y) / len(batch.y))
        gradient += torch.autograd.grad(loss, leaf)[0]
        total += loss.detach()
    return total, gradient


def recompute(
    network: Network, start: Tensor, synthetic: Synthetic, order: Sequence[int], batch: RealBatch, seed: int
) -> tuple[Tensor, Synthetic]:
    """Loss and gradients with one step's graph in memory at a time (as in Deng & Russakovsky, 2022, without momentum)."""
    states = trajectory(network, start, synthetic, order, seed)
    _require_finite(states)
    loss, adjoint = outer_loss(network, states.pop(), batch)
    d_inputs, d_labels = torch.zeros_like(synthetic.inputs), torch.zeros_like(synthetic.labels)
    d_rates = torch.zeros_like(synthetic.rates)
    for t in reversed(range(len(order))):
        s, step_seed = order[t], seed + t

        def step(w: Tensor, x: Tensor, y: Tensor, rate: Tensor, step_seed: int = step_seed) -> Tensor:
            return sgd_step(network, w, x, y, rate, step_seed)

        given = (states.pop(), synthetic.inputs[s], synthetic.labels[s], synthetic.rates[t])
        pullback: Callable[[Tensor], tuple[Tensor, ...]] = torch.func.vjp(step, *given)[1]
        adjoint, d_x, d_y, d_rate = pullback(adjoint)
        d_inputs[s] += d_x
        d_labels[s] += d_y
        d_rates[t] = d_rate
    return loss, Synthetic(d_inputs, d_labels, d_rates)


def full(
    network: Network, start: Tensor, synthetic: Synthetic, order: Sequence[int], batch: RealBatch, seed: int
) -> tuple[Tensor, Synthetic]:
    """Loss and gradients by plain autograd through all T steps."""
    inputs, labels = synthetic.inputs.detach().requires_grad_(), synthetic.labels.detach().requires_grad_()
    rates = synthetic.rates.detach().requires_grad_()
    states = [start.detach().requires_grad_()]
    for t, s in enumerate(order):
        states.append(sgd_step(network, states[-1], inputs[s], labels[s], rates[t], seed + t))
    _require_finite(states)
    loss = hard_loss(network(states[-1], batch.x), batch.y)
    return loss.detach(), Synthetic(*torch.autograd.grad(loss, (inputs, labels, rates)))


Adjoint = Callable[[Network, Tensor, Synthetic, Sequence[int], RealBatch, int], tuple[Tensor, Synthetic]]
ADJOINTS: dict[str, Adjoint] = {"recompute": recompute, "full": full}


def through_window(
    differentiate: Adjoint, network: Network, start: Tensor, synthetic: Synthetic, order: Sequence[int],
    batch: RealBatch, seed: int, window: range,
) -> tuple[Tensor, Synthetic]:  # fmt: skip
    """Loss after the inner steps before `window.stop`, and the gradient through those of `window` alone.

    A truncated window drawn at random for every outer step (RaT-BPTT: Feng et al., "Embarrassingly Simple Dataset
    Distillation", 2024) is cheaper than the whole unroll and spares the gradient the chaos of long training; it is another
    estimator. A window over all steps is the whole unroll.
    """
    begun = train_as_distilled(network, start, synthetic, order[: window.start], seed)
    seen = Synthetic(synthetic.inputs, synthetic.labels, synthetic.rates[window.start : window.stop])
    part = order[window.start : window.stop]
    try:
        loss, slope = differentiate(network, begun, seen, part, batch, seed + window.start)
    except Diverged:
        _require_finite(trajectory(network, start, synthetic, order[: window.stop], seed))
        raise
    d_rates = torch.zeros_like(synthetic.rates)
    d_rates[window.start : window.stop] = slope.rates
    return loss, Synthetic(slope.inputs, slope.labels, d_rates)


def _require_finite(states: Sequence[Tensor]) -> None:
    # What is not finite stays so, hence one look at the end; only then is it worth asking where it began.
    if not torch.isfinite(states[-1]).all():
        first = next(t for t, state in enumerate(states) if not torch.isfinite(state).all())
        raise Diverged("an inner weight", outer_step=-1, inner_step=first)

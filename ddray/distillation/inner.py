"""One step of training a network on the set, and the gradient back through it.

An inner optimiser is a pure function (weights, state, gradient, rate) → (weights, state). `InnerStep` makes of it a step

    (weights, state), inputs, labels, rate  →  (weights, state)

and its reverse, one `torch.func.vjp` of that step, whatever the optimiser.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddray.distillation.config import InnerConfig
from ddray.distillation.layout import convolutions
from ddray.networks import Network

Carry = tuple[Tensor, ...]
"""What travels from one inner step to the next: the weights [P], then what the optimiser remembers."""
StepGradient = tuple[Carry, Tensor, Tensor, Tensor]
"""The gradient of the loss with respect to a step's inputs: the carry, inputs [n, ...], labels [n, width], the rate."""
Pullback = Callable[[Carry], StepGradient]
"""Maps the gradient of the loss with respect to a step's outputs to that with respect to its inputs.

It is called once; the step's graph is freed with it.
"""


@dataclass(frozen=True)
class InnerOptimiser:
    """How a network is trained on the set.

    Attributes:
        begin: what is remembered before the first step, for weights of a shape.
        update: weights [P], state, gradient [P] and a rate (a scalar tensor) to the next weights and state; pure, so that
            it can be differentiated.

    """

    begin: Callable[[Tensor], Carry]
    update: Callable[[Tensor, Carry, Tensor, Tensor], tuple[Tensor, Carry]]


CARRIES = {"sgd": 1, "momentum": 2, "adam": 3}
"""Vectors as long as the weights in an optimiser's carry."""


def carry_bytes(weights: int, optimiser: str) -> int:
    """Bytes of the carry of a network with so many weights, in float32."""
    return 4 * weights * CARRIES[optimiser]


def sgd(weights: Tensor, state: Carry, gradient: Tensor, rate: Tensor) -> tuple[Tensor, Carry]:
    """Gradient descent; remembers nothing."""
    return weights - rate * gradient, state


def make_optimiser(config: InnerConfig) -> InnerOptimiser:
    """The optimiser that the settings name: `sgd`; `momentum` (as in torch.optim.SGD); or `adam` (Kingma & Ba, 2015)."""

    def momentum(weights: Tensor, state: Carry, gradient: Tensor, rate: Tensor) -> tuple[Tensor, Carry]:
        velocity = config.momentum * state[0] + gradient
        return weights - rate * velocity, (velocity,)

    def adam(weights: Tensor, state: Carry, gradient: Tensor, rate: Tensor) -> tuple[Tensor, Carry]:
        mean, square, unseen1, unseen2 = state
        mean = config.beta1 * mean + (1 - config.beta1) * gradient
        square = config.beta2 * square + (1 - config.beta2) * gradient**2
        unseen1, unseen2 = config.beta1 * unseen1, config.beta2 * unseen2
        # Epsilon under the root: the root of 0, where a weight has no gradient, has no finite derivative.
        direction = mean / (1 - unseen1) / torch.sqrt(square / (1 - unseen2) + config.epsilon)
        return weights - rate * direction, (mean, square, unseen1, unseen2)

    def one(weights: Tensor) -> Tensor:
        return torch.ones((), dtype=weights.dtype, device=weights.device)

    match config.optimiser:
        case "sgd":
            return InnerOptimiser(lambda _: (), sgd)
        case "momentum":
            return InnerOptimiser(lambda weights: (torch.zeros_like(weights),), momentum)
        case "adam":
            return InnerOptimiser(
                lambda weights: (torch.zeros_like(weights), torch.zeros_like(weights), one(weights), one(weights)), adam
            )


def soft_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of logits [n, width] against soft targets [n, width], which may be any numbers.

    One logit is a binary problem with the logistic loss; more are softmax cross-entropy.
    """
    if logits.shape[-1] == 1:
        return F.binary_cross_entropy_with_logits(logits, labels)
    return -(labels * F.log_softmax(logits, dim=-1)).sum(-1).mean()


def vjp(function: Callable[..., Carry], *given: Any) -> tuple[Carry, Pullback]:
    """`torch.func.vjp` of a step: its outputs, and the way back."""
    after, pullback = torch.func.vjp(function, *given)[:2]
    return after, pullback


class InnerStep:
    """A step of training on one minibatch of the set, run as it is written: the reference for every faster form.

    Args:
        network: what is trained.
        config: the optimiser and its constants.
        batched: weights are [k, P], those of k networks that take the step side by side (`torch.func.vmap`); gradients
            with respect to inputs, labels and rate are then summed over them.
        layout: how convolutions are computed.

    """

    def __init__(
        self, network: Network, config: InnerConfig | None = None, *, batched: bool = False, layout: str = "blocked"
    ) -> None:
        self.network, self.config, self.batched, self.layout = network, config or InnerConfig(), batched, layout
        self.optimiser = make_optimiser(self.config)

    def begin(self, weights: Tensor) -> Carry:
        """The carry before the first step from `weights` [P]."""
        if self.batched:
            return (weights, *torch.func.vmap(self.optimiser.begin)(weights))
        return (weights, *self.optimiser.begin(weights))

    @torch.no_grad()
    def forward(self, carry: Carry, x: Tensor, y: Tensor, rate: Tensor, seed: int) -> Carry:
        """The carry after a step on inputs x [n, ...] with targets y [n, width]; `seed` decides dropout masks."""
        with self.network.masks(seed), convolutions(self.layout):
            return self._function(carry, x, y, rate)

    @torch.no_grad()  # the reverse needs no graph of itself
    def record(self, carry: Carry, x: Tensor, y: Tensor, rate: Tensor, seed: int) -> tuple[Carry, Pullback]:
        """The same step with its graph kept, and the way back through it."""
        with self.network.masks(seed), convolutions(self.layout):
            after, reverse = vjp(self._function, carry, x, y, rate)

        @torch.no_grad()
        def pullback(d_after: Carry) -> StepGradient:
            with convolutions(self.layout):
                return reverse(d_after)

        return after, pullback

    def _function(self, carry: Carry, x: Tensor, y: Tensor, rate: Tensor) -> Carry:
        if self.batched:
            return torch.func.vmap(self._one, (0, None, None, None))(carry, x, y, rate)
        return self._one(carry, x, y, rate)

    def _one(self, carry: Carry, x: Tensor, y: Tensor, rate: Tensor) -> Carry:
        def loss(weights: Tensor) -> Tensor:
            return soft_loss(self.network.training(weights, x), y)

        weights, state = carry[0], carry[1:]
        gradient: Tensor = torch.func.grad(loss)(weights)
        after, remembered = self.optimiser.update(weights, state, gradient, rate)
        return after, *remembered

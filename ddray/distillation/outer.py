"""What the outer loop asks of a trained network: a small loss on real examples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ddray.networks import Network


@dataclass(frozen=True)
class RealBatch:
    """Normalised real examples x [N, ...] with classes y, int64 [N]."""

    x: Tensor
    y: Tensor


def hard_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """Mean cross-entropy of logits [N, width] against classes int64 [N]."""
    if logits.shape[-1] == 1:
        return F.binary_cross_entropy_with_logits(logits[:, 0], classes.to(logits.dtype))
    return F.cross_entropy(logits, classes)


def predictions(logits: Tensor) -> Tensor:
    """The class, int64 [N], that logits [N, width] speak for; a single logit does so by its sign."""
    return (logits[:, 0] > 0).long() if logits.shape[-1] == 1 else logits.argmax(-1)


# A cache holds the activations of so many examples, not of a whole batch: on a CPU this is nearly twice as fast.
CPU_CHUNK = 128


@dataclass(frozen=True)
class OuterLoss:
    """The mean loss of a network on real examples.

    Attributes:
        network: what was trained.
        chunk: examples at a time; 0: 128 on a CPU, all on a GPU. A network with batch statistics is always given all.
        bfloat16: the forward pass in mixed precision (`torch.autocast`).

    """

    network: Network
    chunk: int = 0
    bfloat16: bool = False

    @torch.no_grad()
    def __call__(self, weights: Tensor, batch: RealBatch) -> tuple[Tensor, Tensor]:
        """Loss and its gradient: scalar and [P] for weights [P]; [k] and [k, P] for those of k networks, [k, P]."""
        total, gradient = torch.zeros_like(weights[..., 0]), torch.zeros_like(weights)
        size = self.chunk_size(len(batch.y), on_card=batch.x.is_cuda)
        for x, y in zip(batch.x.split(size), batch.y.split(size), strict=True):
            loss, d_weights = self.piece(weights, x, y)
            total.add_(loss, alpha=len(y) / len(batch.y))
            gradient.add_(d_weights, alpha=len(y) / len(batch.y))
        return total, gradient

    def piece(self, weights: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and gradient on examples that pass together."""
        leaf = weights.detach().requires_grad_()
        with torch.enable_grad():
            losses = self.losses(leaf, x, y)
            gradient: Tensor = torch.autograd.grad(losses.sum(), leaf)[0]
        return losses.detach(), gradient

    def chunk_size(self, examples: int, *, on_card: bool) -> int:
        """How many of a batch's examples pass at a time, on a GPU or a CPU."""
        if self.network.mixes_examples or (not self.chunk and on_card):
            return examples
        return min(self.chunk or CPU_CHUNK, examples)

    def losses(self, weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The mean loss on examples: a scalar for weights [P], [k] for those of k networks."""
        if weights.dim() == 2:
            return torch.func.vmap(self.losses, (0, None, None))(weights, x, y)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bfloat16):
            logits = self.network(weights, x)
        return hard_loss(logits.to(weights.dtype), y)

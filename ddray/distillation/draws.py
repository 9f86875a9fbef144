"""What an outer step draws: real examples, the initial weights of its networks, their dropout masks and windows.

Each follows from (seed, purpose, step) alone, so that it can be drawn ahead of time, or once more.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ddray.distillation.config import DistillConfig
from ddray.distillation.outer import RealBatch
from ddray.distillation.real import RealBatches
from ddray.distillation.streams import generator, seed_of
from ddray.networks import Network

Drawn = tuple[RealBatch, Iterable[Tensor]]
"""The real batch of an outer step, and the initial weights [P] of its networks."""


class Draws:
    """The random parts of every outer step of one distillation.

    Args:
        network: what is trained.
        config: how many networks a step has, what they begin from, and how long their windows are.
        batches: the real minibatches.
        known: initial weights [starts, P] to take in turn; None: every network is a fresh one.
        seed: decides all of it.

    """

    def __init__(
        self, network: Network, config: DistillConfig, batches: RealBatches, known: Tensor | None, seed: int
    ) -> None:
        self._network, self._config, self._batches, self._known, self._seed = network, config, batches, known, seed
        self._ahead: tuple[int, Drawn] | None = None

    def at(self, step: int) -> Drawn:
        """The batch and the networks of an outer step; networks are drawn one by one, unless all were ahead."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == step:
            return ahead[1]
        return self._batches.at(step), (self.start(step, index) for index in range(self._config.outer.networks))

    def draw_ahead(self, step: int) -> None:
        """Draw now what `at` will be asked for next: it costs nothing while a GPU still computes."""
        batch, starts = self.at(step)
        self._ahead = step, (batch, list(starts))

    def start(self, step: int, index: int) -> Tensor:
        """Initial weights [P] of network `index` of an outer step."""
        if self._known is not None:
            return self._known[(step * self._config.outer.networks + index) % len(self._known)]
        law = self._config.network
        return self._network.draw(law.law, law.gain, generator(self._seed, "network", step, index))

    def dropout_seed(self, step: int, index: int) -> int:
        """What decides the dropout masks of network `index`, or of that group of networks, of an outer step."""
        return seed_of(self._seed, "dropout", step, index)

    def window(self, step: int, index: int) -> range:
        """The inner steps that the gradient of network `index` goes through: all, or a window that ends at random."""
        steps, length = self._config.outer.unroll_steps or self._config.inner_steps, self._config.seen_steps
        drawn = generator(self._seed, "window", step, index)
        end = int(torch.randint(length, steps + 1, (), generator=drawn))
        return range(end - length, end)

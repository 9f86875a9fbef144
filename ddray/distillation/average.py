"""The average of a set over outer steps, which is judged and kept in place of the set itself."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Average:
    """A running average of raw tensors by name; with decay 0, the tensors themselves.

    A set that one network is trained on in a few large steps is sharp: it is thrown from side to side of a valley by every
    outer step, and its average lies inside (Polyak & Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992).
    The average starts from where the tensors start; the decay grows to its full value as min(decay, (1 + k) / (10 + k)) over
    the steps k, so that the start is soon forgotten.

    Attributes:
        values: the averages so far.

    """

    def __init__(self, decay: float, raw: Mapping[str, Tensor]) -> None:
        self._decay, self._raw = decay, dict(raw)
        self.values = {name: value.detach().clone() if decay else value.detach() for name, value in raw.items()}

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Take in the tensors as they are after `step` outer steps."""
        if self._decay:
            weight = 1 - min(self._decay, (1 + step) / (10 + step))
            for name, value in self.values.items():
                value.lerp_(self._raw[name], weight)

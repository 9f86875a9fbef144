"""A user's own networks, named by dotted path."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

from torch import Tensor, nn


class TinyNet(nn.Sequential):
    """One linear layer: the smallest network there is."""

    def __init__(self, input_shape: tuple[int, ...], outputs: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(math.prod(input_shape), outputs))


class PausingNet(TinyNet):
    """Stands still as soon as the file exists that PAUSE_ONCE_THERE names, so that a signal finds it at work."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        awaited = os.environ.get("PAUSE_ONCE_THERE")
        if awaited and Path(awaited).exists():
            time.sleep(120)
        logits: Tensor = super().forward(x)
        return logits


class WideNet(nn.Sequential):
    """A hidden layer, so that its weights have other shapes."""

    def __init__(self, input_shape: tuple[int, ...], outputs: int, width: int = 8) -> None:
        super().__init__(nn.Flatten(), nn.Linear(math.prod(input_shape), width), nn.ReLU(), nn.Linear(width, outputs))


def two_outputs() -> nn.Module:
    """A network that takes 16 pixels and gives two logits, whatever the data is."""
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 2))

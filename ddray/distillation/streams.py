"""Randomness: every draw has a name, and follows from that name alone.

A draw that is found by (seed, purpose, step) needs no generator state to be saved: a distillation that is killed and taken up
again at step k draws what it would have drawn.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import torch

NetworkSet = Literal["A", "B", "C"]
NETWORKS: dict[NetworkSet, int] = {"A": 5, "B": 20, "C": 100}
"""Networks to score on: A for rungs and the choice of the best step, B for the trial's value, C to confirm winners."""


def seed_of(*name: int | str) -> int:
    """A seed in [0, 2**62) for the draw so named."""
    digest = hashlib.sha256("/".join(str(part) for part in name).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 2


def generator(*name: int | str) -> torch.Generator:
    """A CPU generator for the draw so named."""
    return torch.Generator().manual_seed(seed_of(*name))


def network_generator(networks: NetworkSet, index: int) -> torch.Generator:
    """The generator of network `index` of an evaluation set: the same for every distillation, disjoint between sets."""
    return generator("evaluation network", networks, index)

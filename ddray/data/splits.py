"""Which examples are held out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def validation_size(members: int) -> int:
    """How many of a class's training examples become validation.

    10 %, at least 10 where that is no more than a quarter of the class, otherwise a quarter, at least 1; none of a class of one.
    """
    if members < 2:
        return 0
    wanted = max(members // 10, 10)
    return wanted if wanted <= members / 4 else max(members // 4, 1)


def validation_members(y: Tensor, generator: torch.Generator) -> Tensor:
    """A mask, bool [N], of the examples of classes y, int64 [N], that are cut from training for validation."""
    return _draw(y, generator, validation_size)


def stratified_share(y: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A mask, bool [N], of a share of every class, rounded down and at least one; none of a class of one."""
    return _draw(y, generator, lambda members: max(int(members * share), 1) if members > 1 else 0)


def _draw(y: Tensor, generator: torch.Generator, size: Callable[[int], int]) -> Tensor:
    chosen = torch.zeros(len(y), dtype=torch.bool)
    for c in y.unique().tolist():
        members = torch.nonzero(y == c).flatten()
        shuffled = members[torch.randperm(len(members), generator=generator)]
        chosen[shuffled[: size(len(members))]] = True
    return chosen

"""Augmentation on the device, over whole batches of uint8."""

from __future__ import annotations

import torch
from torch import Tensor

PADDING = 4


def crop_flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Reflect-pad images [N, C, H, W] by 4, crop each at random back to H×W, and flip half of them left to right.

    `generator` lives on x's device; the type of x is kept.
    """
    n, _, height, width = x.shape
    corner = torch.randint(2 * PADDING + 1, (2, n, 1), generator=generator, device=x.device) - PADDING
    rows = _reflected(corner[0] + torch.arange(height, device=x.device), height)
    columns = _reflected(corner[1] + torch.arange(width, device=x.device), width)
    flip = torch.randint(2, (n, 1), generator=generator, device=x.device).bool()
    columns = torch.where(flip, columns.flip(1), columns)
    image = torch.arange(n, device=x.device)
    # Indices on both sides of a slice put the channels last.
    return x[image[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _reflected(index: Tensor, size: int) -> Tensor:
    """Indices beyond 0 … size - 1, turned back at the border, which is not repeated."""
    last = size - 1
    return last - (last - index.abs()).abs()

"""A small real problem for the tests: blobs that a small network tells apart in a few steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ddray.data import Dataset
from ddray.distillation import DistillConfig, Distiller
from ddray.errors import Diverged

if TYPE_CHECKING:  # workers of a sweep import this module for its network
    import pytest

ARCH = f"{__name__}:mlp"
QUICK = {
    "synthetic.steps": 2,
    "synthetic.epochs": 2,
    "synthetic.lr": 0.1,
    "outer.steps": 12,
    "outer.batch": 32,
    "outer.score_every": 4,
    "outer.lr": 0.05,
}


def mlp(input_shape: tuple[int, ...], outputs: int, width: int = 8) -> nn.Module:
    size = torch.Size(input_shape).numel()
    return nn.Sequential(nn.Flatten(), nn.Linear(size, width), nn.ReLU(), nn.Linear(width, outputs))


def blobs(classes: int = 3, members: int = 60, seed: int = 0, size: int = 4) -> Dataset:
    """`members` training examples of each class, `size`² pixels, some of them bright, each class its own; half as many to test."""
    g = torch.Generator().manual_seed(seed)
    patterns = torch.rand(classes, 1, size, size, generator=g).round() * 180

    def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.arange(classes).repeat(count)
        noise = torch.rand(len(y), 1, size, size, generator=g) * 75
        return (patterns[y] + noise).to(torch.uint8), y

    return Dataset(*draw(members), *draw(members // 2), name="blobs")


def diverge_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every distillation diverges at this outer step."""
    advance = Distiller._outer_step

    def diverging(self: Distiller) -> None:
        if self.step == step:
            raise Diverged("the outer loss", step)
        advance(self)

    monkeypatch.setattr(Distiller, "_outer_step", diverging)


def distiller(seed: int = 0, classes: int = 3, **settings: Any) -> Distiller:
    config = DistillConfig.from_flat(QUICK | {key.replace("__", "."): value for key, value in settings.items()})
    return Distiller(blobs(classes), ARCH, config, seed=seed)

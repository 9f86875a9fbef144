"""Where labels start, and the one order in which samples of all kinds are laid out."""

from __future__ import annotations

import torch
from torch import Tensor

from ddray.distillation.config import LabelsConfig


def sample_classes(class_ids: tuple[int, ...], samples_per_class: int) -> Tensor:
    """The class of each of a step's n samples, int64 [n]: all classes in turn, as many times as there are samples."""
    return torch.tensor(class_ids, dtype=torch.int64).repeat(samples_per_class)


def one_hot(targets: Tensor, width: int) -> Tensor:
    """Class numbers int64 [...] as float targets [..., width]; one logit (width 1) is asked for the number itself."""
    if width == 1:
        return targets.unsqueeze(-1).to(torch.get_default_dtype())
    return torch.nn.functional.one_hot(targets, width).to(torch.get_default_dtype())


def initial_labels(config: LabelsConfig, steps: int, classes: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """Raw labels [S, n, width] for samples of the given classes, int64 [n].

    `width` is the network's number of outputs: the number of classes, or 1 for two classes with one logit.
    """
    hard = one_hot(classes, width).expand(steps, -1, -1)
    shape = hard.shape
    match config.init:
        case "one_hot":
            labels = hard
        case "smoothed":
            labels = (1 - config.smoothing) * hard + config.smoothing / max(width, 2)
        case "normal":
            labels = torch.randn(shape, generator=generator)
        case "uniform":
            labels = torch.rand(shape, generator=generator)
        case "bernoulli":
            labels = torch.randint(2, shape, generator=generator).to(torch.get_default_dtype())
        case "zeros":
            labels = torch.zeros(shape)
        case "ones":
            labels = torch.ones(shape)
        case "orthogonal":
            labels = torch.stack([_haar(max(width, 2), generator)[classes, :width] for _ in range(steps)])
    if config.shift_first:
        return ((labels + config.shift) * config.scale).contiguous()
    return (labels * config.scale + config.shift).contiguous()


def _haar(size: int, generator: torch.Generator) -> Tensor:
    # The sign of R's diagonal makes Q uniform over all orthogonal matrices (Mezzadri, 2007).
    q, r = torch.linalg.qr(torch.randn(size, size, generator=generator))
    haar: Tensor = q * r.diagonal().sign()
    return haar

"""Clipping the outer gradient: to a fixed norm, to a multiple of its running average, or to the smaller of both."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ddray.distillation.config import OuterConfig


class Clip:
    """Shortens gradients that are longer than usual.

    The running average is that of norms after clipping, so that one explosion does not excuse the next (Feng et al.,
    "Embarrassingly Simple Dataset Distillation", 2024, clip at twice an average with decay 0.9).

    Attributes:
        averages: the running averages so far, by group: one of its own for inputs, labels and rates with `clip_each`.

    """

    def __init__(self, config: OuterConfig) -> None:
        self._config = config
        self.averages: dict[str, float] = {}

    @torch.no_grad()
    def __call__(self, gradients: Mapping[str, Tensor]) -> None:
        """Shorten the gradients, by name, in place."""
        groups = {name: [gradient] for name, gradient in gradients.items()}
        if not self._config.clip_each:
            groups = {"all": list(gradients.values())}
        for name, group in groups.items():
            self._shorten(name, group)

    def _shorten(self, name: str, gradients: list[Tensor]) -> None:
        config = self._config
        if config.clip is None and config.clip_average is None:
            return
        norm = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients])))
        limit = math.inf if config.clip is None else config.clip
        if config.clip_average is not None:
            average = self.averages.get(name) or norm  # an average of nothing but zeros would let nothing pass, ever
            limit = min(limit, config.clip_average * average)
            self.averages[name] = config.clip_decay * average + (1 - config.clip_decay) * min(norm, limit)
        if norm > limit:
            for gradient in gradients:
                gradient.mul_(limit / norm)

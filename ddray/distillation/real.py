"""Real training examples: the minibatches of the outer loss, and samples to start from or to compare with."""

from __future__ import annotations

import torch
from torch import Tensor

from ddray.data import Dataset
from ddray.distillation.outer import RealBatch
from ddray.distillation.streams import generator, seed_of

_PART = 512  # examples to look up at a time


class RealBatches:
    """The real minibatch of every outer step: shuffled epochs over the training split, the rest of each left out."""

    def __init__(self, dataset: Dataset, batch: int, augment: bool, seed: int) -> None:
        self._dataset, self._batch, self._augment, self._seed = dataset, batch, augment, seed
        self._epoch, self._permutation = -1, torch.empty(0, dtype=torch.int64)

    def at(self, step: int) -> RealBatch:
        """The minibatch of outer step `step`, normalised and augmented on the dataset's device."""
        epoch, position = divmod(step, len(self._dataset.train) // self._batch)
        if epoch != self._epoch:
            order = generator(self._seed, "epoch", epoch)
            self._epoch, self._permutation = epoch, torch.randperm(len(self._dataset.train), generator=order)
        chosen = self._permutation[position * self._batch : (position + 1) * self._batch]
        x, y = self._dataset.train.x, self._dataset.train.y
        if x.is_cuda:
            chosen = chosen.pin_memory()  # else the copy would wait for all that the GPU still has to do
        x, y = x[chosen.to(x.device, non_blocking=True)], y[chosen.to(y.device, non_blocking=True)]
        if self._augment:
            device = x.device
            augmentation = torch.Generator(device).manual_seed(seed_of(self._seed, "augmentation", step))
            x = self._dataset.augment(x, augmentation)
        return RealBatch(self._dataset.normalise(x), y)


def real_samples(dataset: Dataset, classes: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """Normalised training examples [S, n, ...] of the given classes, int64 [n], drawn without replacement.

    A class with fewer examples than are asked for begins again from its first.
    """
    labels = dataset.train.y.cpu()
    chosen = torch.empty(steps, len(classes), dtype=torch.int64)
    for c in classes.unique().tolist():
        slots = classes == c
        members = torch.nonzero(labels == c).flatten()
        shuffled = members[torch.randperm(len(members), generator=generator)]
        needed = steps * int(slots.sum())
        chosen[:, slots] = shuffled.repeat(-(-needed // len(shuffled)))[:needed].view(steps, -1)
    picked = dataset.train.x[chosen.flatten().to(dataset.train.x.device)]
    return dataset.normalise(picked).view(*chosen.shape, *dataset.input_shape)


def class_averages(dataset: Dataset, classes: Tensor, steps: int) -> Tensor:
    """The mean normalised training example of each given class, the same for every step: [S, n, ...]."""
    means = {c: _mean(dataset, dataset.train.x[dataset.train.y == c]) for c in classes.unique().tolist()}
    return torch.stack([means[c] for c in classes.tolist()]).expand(steps, *([-1] * (1 + len(dataset.input_shape))))


def _mean(dataset: Dataset, x: Tensor) -> Tensor:
    if not dataset.expands:
        return dataset.normalise(x).mean(0)
    return torch.stack([dataset.normalise(part).sum(0) for part in x.split(_PART)]).sum(0) / len(x)

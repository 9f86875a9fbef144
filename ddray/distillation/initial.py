"""Where a set starts: its raw tensors before the first outer step."""

from __future__ import annotations

import torch
from torch import Tensor

from ddray.data import Dataset
from ddray.distillation.config import DistillConfig
from ddray.distillation.labels import initial_labels
from ddray.distillation.real import class_averages, real_samples
from ddray.distillation.streams import generator


def initial_tensors(
    config: DistillConfig, dataset: Dataset, classes: Tensor, outputs: int, steps: int, seed: int
) -> dict[str, Tensor]:
    """Inputs [S, n, ...], labels [S, n, outputs] and raw rates [T] on the dataset's device; those that learn ask for gradients.

    Args:
        config: how they start.
        dataset: for inputs that start as training examples.
        classes: the class of each sample of a step, int64 [n].
        outputs: width of the labels.
        steps: inner steps, T.
        seed: decides what is drawn.

    """
    shape = (config.synthetic.steps, len(classes))
    if config.synthetic.init == "real":
        inputs = real_samples(dataset, classes, shape[0], generator(seed, "real inputs"))
    elif config.synthetic.init == "average":
        inputs = class_averages(dataset, classes, shape[0]).clone()
    else:
        inputs = torch.randn(*shape, *dataset.input_shape, generator=generator(seed, "inputs"))
    labels = initial_labels(config.labels, shape[0], classes, outputs, generator(seed, "labels"))
    # The inverse of softplus, in the form that neither overflows nor cancels.
    rate = torch.tensor(config.synthetic.lr, dtype=torch.float64)
    rates = (rate + torch.log(-torch.expm1(-rate))).float().expand(steps).clone()
    learned = {"inputs": config.synthetic.learn, "labels": config.labels.learn, "rates": True}
    raw = {"inputs": inputs, "labels": labels, "rates": rates}
    return {name: value.to(dataset.train.x.device).requires_grad_(learned[name]) for name, value in raw.items()}

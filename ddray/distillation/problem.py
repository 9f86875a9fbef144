"""A problem to distil: whether dataset, architecture and settings go together."""

from __future__ import annotations

import torch

from ddray.data import RealData
from ddray.distillation.config import DistillConfig
from ddray.errors import RequestError
from ddray.networks import Network, build


def check_problem(dataset: RealData, arch: str, config: DistillConfig) -> tuple[Network, int]:
    """The network, and its number of outputs, if dataset, architecture and settings go together.

    Raises:
        RequestError: the first setting that the dataset or the network cannot take.

    """
    dataset = dataset.presented(config.data.text)
    network = build(arch, dataset.input_shape, dataset.classes, config.network.args)
    with torch.no_grad():
        outputs = int(network(network.flatten(), torch.zeros((2, *dataset.input_shape))).shape[1])
    config.class_ids(dataset.classes)
    if config.outer.batch > len(dataset.train):
        raise RequestError("outer.batch", config.outer.batch, f"at most the {len(dataset.train)} training examples")
    steps, unroll, window = config.inner_steps, config.outer.unroll_steps, config.outer.window
    if unroll is not None and unroll > steps:
        raise RequestError("outer.unroll_steps", unroll, f"at most the {steps} inner steps")
    if window is not None and window > (unroll or steps):
        raise RequestError("outer.window", window, f"at most the {unroll or steps} inner steps that are taken")
    if config.data.word_dropout and not config.data.augment:
        raise RequestError("data.word_dropout", config.data.word_dropout, "0 where data.augment is false: it is augmentation")
    if config.labels.softmax and outputs == 1:
        raise RequestError("labels.softmax", True, "one logit has no softmax; it is for three classes or more")
    return network, outputs

"""What a trial takes of a machine, before it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ddray.distillation.distiller import check_problem

if TYPE_CHECKING:
    from ddray.sweep.run import Prepared

_PROCESS = 450 * 2**20  # a worker that has imported torch and Ray, measured
_CHUNK = 512  # the most real examples whose activations are held at a time


def memory(prepared: Prepared) -> tuple[float, float]:
    """The least and the most bytes that a trial of the space needs, estimated.

    Counted are the worker's process, the weights kept for the reverse pass, the set with its gradient, two moments and best
    copy, and the activations of a chunk of real examples with their gradients. The data is shared between trials.
    """
    spec, dataset = prepared.spec, prepared.dataset
    bounds = []
    for pick in (min, max):
        values = dict(spec.fixed)
        for parameter in spec.parameters:
            if parameter.kind != "choice":
                values[parameter.key] = pick(parameter.extremes())
        config = spec.config(values)
        network, _ = check_problem(dataset, spec.file.arch, config)
        sample = torch.Size(dataset.input_shape).numel() + dataset.classes
        learned = 4 * config.stored_samples(dataset.classes) * sample
        weights = 4 * network.size * (config.inner_steps + 4)
        activations = 4 * min(_CHUNK, config.outer.batch) * _activations(network.module, dataset.input_shape)
        bounds.append(_PROCESS + weights + 5 * learned + 2 * activations)
    return bounds[0], bounds[1]


@torch.no_grad()
def _activations(module: torch.nn.Module, input_shape: tuple[int, ...]) -> int:
    """Numbers that the layers put out for one example."""
    counts: list[int] = []
    hooks = [
        layer.register_forward_hook(lambda _layer, _given, out: counts.append(out.numel()))
        for layer in module.modules()
        if not list(layer.children())
    ]
    module(torch.zeros((1, *input_shape)))
    for hook in hooks:
        hook.remove()
    return sum(counts)

"""Initialisation laws: the distributions that fresh weights are drawn from."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

Law = Literal["xavier", "xavier_uniform", "kaiming", "kaiming_out", "orthogonal", "normal", "default"]
LAWS: tuple[str, ...] = get_args(Law)

_Fill = Callable[..., Tensor]


def _fill(law: Law, gain: float) -> _Fill:
    """The in-place initialiser of a weight of two or more dimensions; `gain` 1 is the law as published.

    For `normal`, `gain` is the standard deviation; for the Kaiming laws it is the negative slope a of a leaky ReLU, whose
    own gain √(2 / (1 + a²)) is 1 at a = 1.
    """
    fills: dict[str, _Fill] = {
        "xavier": partial(nn.init.xavier_normal_, gain=gain),
        "xavier_uniform": partial(nn.init.xavier_uniform_, gain=gain),
        "kaiming": partial(nn.init.kaiming_normal_, a=gain, mode="fan_in"),
        "kaiming_out": partial(nn.init.kaiming_normal_, a=gain, mode="fan_out"),
        "orthogonal": partial(nn.init.orthogonal_, gain=gain),
        "normal": partial(nn.init.normal_, std=gain),
    }
    return fills[law]


@torch.no_grad()
def drawn(module: nn.Module, law: Law, gain: float, generator: torch.Generator) -> Tensor:
    """Fresh weights for `module` as one vector on the CPU: those that `initialise` would give it; its own are scratch space."""
    if law == "default":
        return torch.cat([p.reshape(-1) for p in _reset(module, generator).parameters()])
    fill = _fill(law, gain)
    return torch.cat([_drawn(name, p, fill, generator).reshape(-1) for name, p in module.named_parameters()])


@torch.no_grad()
def initialise(module: nn.Module, law: Law, gain: float, generator: torch.Generator) -> None:
    """Draw fresh weights for `module` in place, from `generator` (on the CPU) alone.

    Matrices and kernels follow the law; biases become 0 and the scales of normalisation layers 1. `default` asks every
    layer's own `reset_parameters`, which draws its biases too. The weights stay on their device.
    """
    if law == "default":
        fresh = _reset(module, generator)
        for parameter, value in zip(module.parameters(), fresh.parameters(), strict=True):
            parameter.copy_(value)
        return
    fill = _fill(law, gain)
    for name, parameter in module.named_parameters():
        parameter.copy_(_drawn(name, parameter, fill, generator))


def _drawn(name: str, parameter: Tensor, fill: _Fill, generator: torch.Generator) -> Tensor:
    """Drawn on the CPU, so that one seed means the same weights on every device."""
    fresh = torch.empty(parameter.shape, dtype=parameter.dtype)
    if parameter.dim() >= 2:
        return fill(fresh, generator=generator)
    return fresh.fill_(0.0 if name.rsplit(".", 1)[-1].startswith("bias") else 1.0)


def _reset(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """The module reset, if it is on the CPU, else a copy there, where one seed means the same weights for every device."""
    on_cpu = all(parameter.device.type == "cpu" for parameter in module.parameters())
    fresh = module if on_cpu else copy.deepcopy(module).cpu()
    # reset_parameters knows only torch's global generator: lend it a seed of ours and give it back as it was.
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for layer in fresh.modules():
            reset = getattr(layer, "reset_parameters", None)
            if callable(reset):
                reset()
    return fresh

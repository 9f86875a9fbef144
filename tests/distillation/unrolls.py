"""Small unrolls in float64, for every network that tests differentiate through."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ddray.distillation.outer import RealBatch
from ddray.distillation.unroll import Synthetic
from ddray.networks import Network, build

ORDER = [0, 1, 0, 1]
PARTS = ("inputs", "labels", "rates")


def dropout_network() -> Network:
    return Network(nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Dropout(0.5), nn.Linear(12, 3)))


def batch_norm_network() -> Network:
    return Network(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3))
    )


NETWORKS: dict[str, tuple[Callable[[], Network], tuple[int, ...], int]] = {
    "LeNet": (lambda: build("LeNet", (1, 28, 28), 10), (1, 28, 28), 10),
    "AlexCifarNet": (lambda: build("AlexCifarNet", (3, 32, 32), 10), (3, 32, 32), 10),
    "ConvNet3": (lambda: build("ConvNet3", (1, 16, 16), 3, {"width": 8}), (1, 16, 16), 3),
    "binary LeNet": (lambda: build("LeNet", (1, 28, 28), 2), (1, 28, 28), 1),
    "dropout": (dropout_network, (1, 4, 4), 3),
    "batch norm": (batch_norm_network, (1, 8, 8), 3),
}


def problem(name: str, dtype: torch.dtype = torch.float64) -> tuple[Network, Tensor, Synthetic, RealBatch]:
    make, shape, width = NETWORKS[name]
    network, g = make().to(dtype=torch.float64), torch.Generator().manual_seed(0)
    normal = {"generator": g, "dtype": torch.float64}
    weights = network.draw("xavier", 1.0, g)
    samples, scale = (2, 0.001) if name == "AlexCifarNet" else (5, 1.0)
    synthetic = Synthetic(
        torch.randn(2, samples, *shape, **normal).to(dtype),
        torch.randn(2, samples, width, **normal).to(dtype),
        (scale * (0.02 + 0.05 * torch.rand(len(ORDER), generator=g, dtype=torch.float64))).to(dtype),
    )
    classes = torch.randint(max(width, 2), (4,), generator=g)
    batch = RealBatch(torch.randn(len(classes), *shape, **normal).to(dtype), classes)
    return network.to(dtype=dtype), weights.to(dtype), synthetic, batch


def moved(synthetic: Synthetic, batch: RealBatch, device: str) -> tuple[Synthetic, RealBatch]:
    """The same on a device."""
    parts = (part.to(device) for part in (synthetic.inputs, synthetic.labels, synthetic.rates))
    return Synthetic(*parts), RealBatch(batch.x.to(device), batch.y.to(device))


def check_equal(found: tuple[Tensor, Synthetic], expected: tuple[Tensor, Synthetic], rtol: float = 1e-10) -> None:
    """Loss and gradients agree, each within `rtol` of its largest entry."""
    torch.testing.assert_close(found[0], expected[0], rtol=rtol, atol=0)
    for part in PARTS:
        ours, theirs = getattr(found[1], part), getattr(expected[1], part)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=rtol * theirs.abs().max().item())

"""Image networks, layer by layer as the literature trains them."""

from __future__ import annotations

from torch import nn

from ddray.errors import RequestError


class LeNet(nn.Sequential):
    """LeNet-5 with ReLU and max-pooling: 61,706 weights for one channel and ten outputs.

    Args:
        input_shape: (channels, size, size) with size 28 (padded by 2) or 32.
        outputs: number of logits.

    """

    def __init__(self, input_shape: tuple[int, ...], outputs: int) -> None:
        channels, size = square_of("LeNet", input_shape, (28, 32))
        super().__init__(
            # ReLU after the pool is the same function as before it, on a quarter of the values.
            nn.Conv2d(channels, 6, 5, padding=2 if size == 28 else 0), nn.MaxPool2d(2), nn.ReLU(),
            nn.Conv2d(6, 16, 5), nn.MaxPool2d(2), nn.ReLU(),
            nn.Flatten(),
            nn.Linear(400, 120), nn.ReLU(),
            nn.Linear(120, 84), nn.ReLU(),
            nn.Linear(84, outputs),
        )  # fmt: skip


class AlexCifarNet(nn.Sequential):
    """cuda-convnet's network for CIFAR-10: 1,756,426 weights for ten outputs; 3×32×32 inputs only."""

    def __init__(self, input_shape: tuple[int, ...], outputs: int) -> None:
        channels, _ = square_of("AlexCifarNet", input_shape, (32,))
        if channels != 3:
            raise RequestError("arch", "AlexCifarNet", f"it takes 3 channels, the data has {channels}")
        super().__init__(
            nn.Conv2d(3, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1), _norm(),
            nn.Conv2d(64, 64, 5, padding=2), nn.ReLU(), _norm(), nn.MaxPool2d(3, 2, padding=1),
            nn.Flatten(),
            nn.Linear(4096, 384), nn.ReLU(),
            nn.Linear(384, 192), nn.ReLU(),
            nn.Linear(192, outputs),
        )  # fmt: skip


class ConvNet3(nn.Sequential):
    """The field's reference network: three blocks of 3×3 convolution, instance norm, ReLU, average pooling.

    Args:
        input_shape: (channels, height, width), each side at least 8.
        outputs: number of logits.
        width: channels of every block.

    """

    def __init__(self, input_shape: tuple[int, ...], outputs: int, width: int = 128) -> None:
        channels, height, width_in = image_of("ConvNet3", input_shape)
        if min(height, width_in) < 8:
            raise RequestError("arch", "ConvNet3", f"it takes images of at least 8×8, the data has {height}×{width_in}")
        blocks: list[nn.Module] = []
        for fan_in in (channels, width, width):
            blocks += [nn.Conv2d(fan_in, width, 3, padding=1), nn.GroupNorm(width, width), nn.ReLU(), nn.AvgPool2d(2)]
        features = width * (height // 8) * (width_in // 8)
        super().__init__(*blocks, nn.Flatten(), nn.Linear(features, outputs))


def _norm() -> nn.LocalResponseNorm:
    return nn.LocalResponseNorm(4, alpha=0.001 / 9, beta=0.75, k=1)


def image_of(arch: str, input_shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(input_shape) != 3:
        raise RequestError("arch", arch, f"it takes images (channels, height, width), the data has shape {input_shape}")
    return input_shape[0], input_shape[1], input_shape[2]


def square_of(arch: str, input_shape: tuple[int, ...], sizes: tuple[int, ...]) -> tuple[int, int]:
    channels, height, width = image_of(arch, input_shape)
    if height != width or height not in sizes:
        allowed = " or ".join(f"{size}×{size}" for size in sizes)
        raise RequestError("arch", arch, f"it takes images of {allowed}, the data has {height}×{width}")
    return channels, height

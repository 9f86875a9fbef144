"""Larger image networks, for a GPU: AlexNet at 224×224, and ResNet-18 for small images."""

from __future__ import annotations

from torch import Tensor, nn

from ddray.errors import RequestError
from ddray.networks.image import image_of, square_of


class AlexNet(nn.Sequential):
    """AlexNet with 64 first filters: 57,085,780 weights for 3 channels and 20 outputs; 224×224 inputs only.

    The weights have the order and the shapes of `torchvision.models.alexnet`, with `dropout` and without.

    Args:
        input_shape: (channels, 224, 224) with 1 or 3 channels.
        outputs: number of logits.
        dropout: in training, drop half of the values that enter each of the two hidden linear layers.

    Raises:
        RequestError: inputs of another shape.
        TypeError: `dropout` that is not a bool; the share is not to be chosen.

    """

    def __init__(self, input_shape: tuple[int, ...], outputs: int, dropout: bool = False) -> None:
        channels, _ = square_of("AlexNet", input_shape, (224,))
        _grey_or_colour("AlexNet", channels)
        if not isinstance(dropout, bool):
            raise TypeError(f"dropout is true or false, not {dropout!r}")
        drop = nn.Dropout if dropout else nn.Identity
        super().__init__(
            nn.Conv2d(channels, 64, 11, 4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Flatten(),
            drop(0.5), nn.Linear(9216, 4096), nn.ReLU(),
            drop(0.5), nn.Linear(4096, 4096), nn.ReLU(),
            nn.Linear(4096, outputs),
        )  # fmt: skip


class ResNet18(nn.Sequential):
    """ResNet-18 for small images: 11,173,962 weights for 3 channels and 10 outputs; squares of 28 to 64 pixels.

    The first convolution is 3×3 with stride 1 and no pool follows it; all else, and the order of the weights, is that of
    `torchvision.models.resnet18`. Blocks of stride 2 halve the side three times; the last pool is over what remains.

    Batch normalisation keeps no running statistics: in training and evaluation alike it uses those of the batch it is
    given. The logits of an example therefore depend on the others in its batch, and a loss or an accuracy over many
    examples on how they are cut into chunks: chunks of another size, or of examples sorted by class, give other numbers.

    Second derivatives may be taken backward or forward through a gradient, but not backward through `torch.func.jvp`:
    there torch's batch normalisation takes its statistics for constants and is silently wrong (pytorch issue 196699).

    Args:
        input_shape: (channels, size, size) with 1 or 3 channels and size from 28 to 64.
        outputs: number of logits.

    Raises:
        RequestError: inputs of another shape.

    """

    def __init__(self, input_shape: tuple[int, ...], outputs: int) -> None:
        channels, height, width = image_of("ResNet18", input_shape)
        if height != width or not 28 <= height <= 64:
            allowed = "it takes square images with sides of 28 to 64"
            raise RequestError("arch", "ResNet18", f"{allowed}, the data has {height}×{width}")
        _grey_or_colour("ResNet18", channels)
        super().__init__(
            _conv(channels, 64, 3), _batch_norm(64), nn.ReLU(),
            _Block(64, 64), _Block(64, 64),
            _Block(64, 128, stride=2), _Block(128, 128),
            _Block(128, 256, stride=2), _Block(256, 256),
            _Block(256, 512, stride=2), _Block(512, 512),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(512, outputs),
        )  # fmt: skip


class _Block(nn.Module):
    """Two 3×3 convolutions and a way around them: [N, fan_in, H, W] to [N, fan_out, H / stride, W / stride], rounded up."""

    def __init__(self, fan_in: int, fan_out: int, stride: int = 1) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            _conv(fan_in, fan_out, 3, stride), _batch_norm(fan_out), nn.ReLU(),
            _conv(fan_out, fan_out, 3), _batch_norm(fan_out),
        )  # fmt: skip
        if fan_in == fan_out:
            self.shortcut = nn.Sequential()
        else:
            self.shortcut = nn.Sequential(_conv(fan_in, fan_out, 1, stride), _batch_norm(fan_out))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(self.residual(x) + self.shortcut(x))
        return y


def _conv(fan_in: int, fan_out: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(fan_in, fan_out, size, stride, padding=size // 2, bias=False)


def _batch_norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, track_running_stats=False)


def _grey_or_colour(arch: str, channels: int) -> None:
    if channels not in (1, 3):
        raise RequestError("arch", arch, f"it takes 1 or 3 channels, the data has {channels}")

"""What is trained: networks as pure functions of their weights, and the laws that fresh weights come from."""

from ddray.networks.image import AlexCifarNet, ConvNet3, LeNet
from ddray.networks.large import AlexNet, ResNet18
from ddray.networks.laws import LAWS, Law, initialise
from ddray.networks.network import ARCHITECTURES, Network, build, outputs_for
from ddray.networks.text import (
    TakesWords,
    TextConvNet,
    TextConvNet2,
    TextLSTM1,
    TextLSTM2,
    TextRNN1,
    TextRNN2,
    Transformer,
)

__all__ = [
    "ARCHITECTURES",
    "LAWS",
    "AlexCifarNet",
    "AlexNet",
    "ConvNet3",
    "Law",
    "LeNet",
    "Network",
    "ResNet18",
    "TakesWords",
    "TextConvNet",
    "TextConvNet2",
    "TextLSTM1",
    "TextLSTM2",
    "TextRNN1",
    "TextRNN2",
    "Transformer",
    "build",
    "initialise",
    "outputs_for",
]

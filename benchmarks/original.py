"""The original dataset distillation (Wang et al., 2018), with soft labels as in its fork: the baseline of a speed benchmark.

It computes what those codes compute, in the way they do it, and borrows nothing from ddray:

    network   one module; its parameters are one flat vector, whose views stand in as attributes for the time of a forward
    forward   gₜ = grad(lossₜ, wₜ₋₁), weighted by rateₜ through `grad_outputs`, with `create_graph`; wₜ = wₜ₋₁ − gₜ is a new leaf;
              the graphs of all T steps are kept, and the real batch is one piece
    backward  by hand, from the last step to the first: one `autograd.grad` of gₜ by −∂L/∂wₜ, which frees that step's graph
    update    one Adam over labels, images and raw rates, whose softplus are the rates

Left as it was: the layers and their order, the sizes and defaults, a fresh draw of weights and a real batch for every outer step.
Kinder than it was: the fork's loop over classes in the soft cross-entropy is one expression; its graphs are freed, as the first
code came to do; its ban on cuDNN is lifted. Left out, as they cost next to nothing: the decay of Adam's rate, and the log.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

CLASSES = 10
MNIST_STATISTICS = ((0.1307,), (0.3081,))
CIFAR10_STATISTICS = ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261))

Batches = Iterator[tuple[Tensor, Tensor]]


class LeNet(nn.Module):
    """LeNet-5 for images of 28×28 (padded by 2) or 32×32."""

    def __init__(self, channels: int = 1, size: int = 28) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 6, 5, padding=2 if size == 28 else 0)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(400, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, 10]."""
        x = F.max_pool2d(F.relu(self.conv1(x), inplace=True), 2)
        x = F.max_pool2d(F.relu(self.conv2(x), inplace=True), 2)
        x = F.relu(self.fc1(x.flatten(1)), inplace=True)
        x = F.relu(self.fc2(x), inplace=True)
        logits: Tensor = self.fc3(x)
        return logits


def _response_norm() -> nn.Module:
    return nn.LocalResponseNorm(4, alpha=0.001 / 9, beta=0.75, k=1)


def _alex_cifar_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 64, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, padding=1), _response_norm(),
        nn.Conv2d(64, 64, 5, padding=2), nn.ReLU(inplace=True), _response_norm(), nn.MaxPool2d(3, 2, padding=1),
        nn.Flatten(),
        nn.Linear(4096, 384), nn.ReLU(inplace=True),
        nn.Linear(384, 192), nn.ReLU(inplace=True),
        nn.Linear(192, CLASSES),
    )  # fmt: skip


def _conv_net_3(width: int = 128) -> nn.Module:
    # Not one of the original's: today's common network, in the same style.
    layers: list[nn.Module] = []
    for fan_in in (3, width, width):
        layers += [
            nn.Conv2d(fan_in, width, 3, padding=1),
            nn.GroupNorm(width, width),
            nn.ReLU(inplace=True),
            nn.AvgPool2d(2),
        ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * 4 * 4, CLASSES))


# For every network, its module's factory and the shape of its images.
ARCHITECTURES = {
    "LeNet": (LeNet, (1, 28, 28)),
    "AlexCifarNet": (_alex_cifar_net, (3, 32, 32)),
    "ConvNet3": (_conv_net_3, (3, 32, 32)),
}


class FlatModule:
    """A module without parameters of its own: they are one flat leaf, `weights` [P], in the order of `parameters()`."""

    def __init__(self, module: nn.Module, device: torch.device | str) -> None:
        self.module = module.to(device)
        self._places = [(m, name) for m in module.modules() for name, _ in m.named_parameters(recurse=False)]
        parameters = [parameter.detach() for parameter in module.parameters()]
        self._sizes = [parameter.numel() for parameter in parameters]
        self._shapes = [parameter.shape for parameter in parameters]
        self.weights = torch.cat([parameter.reshape(-1) for parameter in parameters]).requires_grad_()
        for owner, name in self._places:
            delattr(owner, name)
            owner.register_buffer(name, None)

    @contextmanager
    def installed(self, weights: Tensor) -> Iterator[None]:
        """The module with views of `weights` [P] as its attributes."""
        parts = zip(self._places, weights.split(self._sizes), self._shapes, strict=True)
        for (owner, name), part, shape in parts:
            setattr(owner, name, part.view(shape))
        yield
        for owner, name in self._places:
            setattr(owner, name, None)

    def __call__(self, x: Tensor, weights: Tensor) -> Tensor:
        """Logits [N, 10] of images [N, ...]."""
        with self.installed(weights):
            logits: Tensor = self.module(x)
        return logits

    @torch.no_grad()
    def reset(self) -> None:
        """Draw new weights in place: Xavier's normal law, biases 0, scales 1."""
        with self.installed(self.weights):
            for layer in self.module.modules():
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    assert layer.bias is not None
                    nn.init.xavier_normal_(layer.weight)
                    nn.init.zeros_(layer.bias)
                elif isinstance(layer, nn.GroupNorm):
                    nn.init.ones_(layer.weight)
                    nn.init.zeros_(layer.bias)


def soft_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the images of −Σₖ labelₖ · log softmax(logits)ₖ; labels [n, 10] are any numbers."""
    return -(labels * F.log_softmax(logits, dim=1)).sum(1).mean()


# One inner step: images [10, ...], labels [10, 10] and the rate, a scalar.
Step = tuple[Tensor, Tensor, Tensor]


class Original:
    """A distillation of one image per class and step, for networks of unknown initialisation.

    Args:
        arch: a name from `ARCHITECTURES`.
        steps: how many sets of images there are, S.
        epochs: how often an inner run passes over them, E; there are T = S·E inner steps, each with a rate of its own.
        batches: normalised real images and their classes, without end.
        device: where all of it lives.
        distill_lr: the rates at the start.

    """

    def __init__(
        self, arch: str, steps: int, epochs: int, batches: Batches, device: torch.device | str = "cpu",
        distill_lr: float = 0.02,
    ) -> None:  # fmt: skip
        factory, shape = ARCHITECTURES[arch]
        self.network = FlatModule(factory(), device)
        self.batches = batches
        self.device = torch.device(device)
        self.epochs = epochs
        self.labels = [torch.eye(CLASSES, device=device).requires_grad_() for _ in range(steps)]
        self.data = [torch.randn(CLASSES, *shape, device=device, requires_grad=True) for _ in range(steps)]
        rates = torch.full((steps * epochs,), distill_lr, device=device)
        self.raw_rates = rates.expm1_().log_().requires_grad_()
        self.parameters = [*self.labels, *self.data, self.raw_rates]
        self.optimizer = torch.optim.Adam(self.parameters, lr=0.01, betas=(0.5, 0.999))
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)

    def outer_step(self) -> float:
        """One iteration, from taking a real batch to Adam's update; the outer loss."""
        x, y = next(self.batches)
        x, y = x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)
        self.network.reset()
        loss = self.differentiate(x, y)
        self.optimizer.step()
        return loss.item()

    def differentiate(self, x: Tensor, y: Tensor) -> Tensor:
        """The outer loss on a real batch from the network's present weights; its gradient becomes the parameters' `grad`."""
        self.optimizer.zero_grad(set_to_none=False)
        sets = list(zip(self.data, self.labels, strict=True)) * self.epochs
        rates = F.softplus(self.raw_rates).unbind()
        steps = [(data, label, rate) for (data, label), rate in zip(sets, rates, strict=True)]
        loss, weights, gradients = self._forward(steps, x, y)
        self._backward(steps, loss, weights, gradients)
        return loss.detach()

    def _forward(self, steps: list[Step], x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        # The outer loss, the weights before each step and after the last, and the steps' weighted gradients.
        self.network.module.train()
        w = self.network.weights
        weights, gradients = [w], []
        for data, label, rate in steps:
            loss = soft_cross_entropy(self.network(data, w), label)
            (gradient,) = torch.autograd.grad(loss, w, grad_outputs=rate, create_graph=True)
            with torch.no_grad():
                w = w.sub(gradient).requires_grad_()
            weights.append(w)
            gradients.append(gradient)
        self.network.module.eval()
        return F.cross_entropy(self.network(x, w), y), weights, gradients

    def _backward(self, steps: list[Step], loss: Tensor, weights: list[Tensor], gradients: list[Tensor]) -> None:
        # dw is the derivative of the outer loss by the weights after the step at hand.
        self.network.module.train()
        (dw,) = torch.autograd.grad(loss, weights[-1])
        d_rates = []
        for (data, label, rate), w, gradient in reversed(list(zip(steps, weights[:-1], gradients, strict=True))):
            by = torch.autograd.grad(gradient, (w, data, label, rate), grad_outputs=dw.neg())
            with torch.no_grad():
                dw.add_(by[0])
                _grad(data).add_(by[1])
                _grad(label).add_(by[2])
            d_rates.append(by[3])
        torch.autograd.backward([rate for _, _, rate in steps], d_rates[::-1])


def _grad(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def from_loader(dataset: Literal["MNIST", "CIFAR10"], batch: int = 1024, workers: int = 8) -> Batches:
    """Shuffled real batches without end, by a loader with `workers` processes that live as long as it does.

    Every image is decoded, augmented and normalised by torchvision each time it is used. The files lie in the directory
    that the environment variable DDRAY_DATA names, in torchvision's layout; nothing is downloaded.
    """
    loader = DataLoader(
        training_set(dataset), batch, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )
    return _endless(loader)


def training_set(dataset: Literal["MNIST", "CIFAR10"]) -> datasets.MNIST | datasets.CIFAR10:
    """The training set as torchvision reads it, with the original's transforms."""
    root = Path(os.environ["DDRAY_DATA"])
    if dataset == "MNIST":
        steps = [transforms.ToTensor(), transforms.Normalize(*MNIST_STATISTICS)]
        return datasets.MNIST(root, train=True, transform=transforms.Compose(steps))
    steps = [
        transforms.Pad(4, padding_mode="reflect"),
        transforms.RandomCrop(32),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(*CIFAR10_STATISTICS),
    ]
    return datasets.CIFAR10(root, train=True, transform=transforms.Compose(steps))


def _endless(loader: DataLoader[tuple[Tensor, Tensor]]) -> Batches:
    while True:
        yield from loader


def from_tensors(x: Tensor, y: Tensor, batch: int = 1024, augment: bool = False) -> Batches:
    """Shuffled real batches without end out of normalised images [N, C, H, W] in memory.

    `augment` asks for CIFAR's: reflect-pad by 4, crop back at random, and flip half of the images.
    """
    while True:
        order = torch.randperm(len(y), device=y.device)
        for indices in order.split(batch)[: len(y) // batch]:
            chosen = x[indices]
            yield _crop_flip(chosen) if augment else chosen, y[indices]


def _crop_flip(x: Tensor, padding: int = 4) -> Tensor:
    n, _, height, width = x.shape
    top, left = torch.randint(2 * padding + 1, (2, n, 1), device=x.device)
    rows = top + torch.arange(height, device=x.device)
    columns = left + torch.arange(width, device=x.device)
    columns = torch.where(torch.rand(n, 1, device=x.device) < 0.5, columns.flip(1), columns)
    image = torch.arange(n, device=x.device)[:, None, None]
    # Indices on both sides of a slice put the channels last.
    cropped = F.pad(x, (padding,) * 4, mode="reflect")[image, :, rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2).contiguous()

"""A network as a pure function of its weights."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ddray.errors import RequestError
from ddray.networks.image import AlexCifarNet, ConvNet3, LeNet
from ddray.networks.large import AlexNet, ResNet18
from ddray.networks.laws import Law, drawn
from ddray.networks.text import TextConvNet, TextConvNet2, TextLSTM1, TextLSTM2, TextRNN1, TextRNN2, Transformer

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "LeNet": LeNet,
    "AlexCifarNet": AlexCifarNet,
    "ConvNet3": ConvNet3,
    "AlexNet": AlexNet,
    "ResNet18": ResNet18,
    "TextConvNet": TextConvNet,
    "TextConvNet2": TextConvNet2,
    "TextRNN1": TextRNN1,
    "TextRNN2": TextRNN2,
    "TextLSTM1": TextLSTM1,
    "TextLSTM2": TextLSTM2,
    "Transformer": Transformer,
}


class Network:
    """An `nn.Module` whose weights are an argument: `network(weights, x)`.

    The weights of all layers travel as one flat vector, so that an inner step is one fused operation and T of them are
    one block of memory. Buffers stay inside the module and are never learned; batch normalisation uses the statistics
    of its batch, in training and evaluation alike.

    Attributes:
        module: the layers; its own parameters are scratch space.
        shapes: name and shape of every weight tensor, in the order in which they lie in the vector.
        size: length of the vector.
        stochastic: it draws random numbers in training mode: it has dropout layers, or `probe` saw it draw.
        mixes_examples: it has batch statistics, so that an example's logits depend on who else is in its batch.
        identity: equal for networks that compute the same function of their weights.

    Raises:
        RequestError: a layer that torch cannot differentiate twice.

    """

    def __init__(self, module: nn.Module) -> None:
        _refuse_single_derivatives(module)
        torch.func.replace_all_batch_norm_modules_(module)
        self.module = module
        self.shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
        self._lengths = [p.numel() for p in module.parameters()]
        self.size = sum(self._lengths)
        self.stochastic = any(isinstance(m, nn.modules.dropout._DropoutNd) for m in module.modules())
        self.mixes_examples = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules())
        self.identity: Hashable = object()
        self._training: bool | None = None

    @property
    def vmappable(self) -> bool:
        """Whether several such networks may be trained side by side under `torch.vmap`.

        It cannot give each its own seeded masks, and the second derivatives of batch, layer and instance norm are wrong under
        it (by some hundredths with torch 2.15; see its issue 534 for batch norm). Group norm is right.
        """
        wrong = nn.LayerNorm | nn.modules.instancenorm._InstanceNorm
        return not (self.stochastic or self.mixes_examples or any(isinstance(m, wrong) for m in self.module.modules()))

    def __call__(self, weights: Tensor, x: Tensor, *, seed: int | None = None) -> Tensor:
        """Logits [N, outputs] of inputs x [N, ...] under `weights` [size].

        With a `seed` the network is in training mode and its dropout masks follow from that seed alone; without, it is
        in evaluation mode.
        """
        if seed is not None:
            with self.masks(seed):
                return self.training(weights, x)
        self._mode(training=False)
        return self._forward(weights, x)

    def training(self, weights: Tensor, x: Tensor) -> Tensor:
        """Logits in training mode; dropout masks come from torch's global generator, which `masks` lends a seed."""
        self._mode(training=True)
        return self._forward(weights, x)

    @contextmanager
    def masks(self, seed: int) -> Iterator[None]:
        """Inside, dropout masks follow from `seed` alone; torch's global generator is given back as it was."""
        if not self.stochastic:
            yield
            return
        parameter = next(self.module.parameters())
        with torch.random.fork_rng(devices=[parameter.device] if parameter.is_cuda else []):
            torch.manual_seed(seed)
            yield

    def probe(self, input_shape: tuple[int, ...]) -> tuple[Tensor, bool]:
        """Logits of two blank inputs, and whether evaluation draws random numbers; notes whether training does.

        Functions such as `F.dropout`, and layers that call them, are dropout that no dropout layer shows.
        """
        weights = self.flatten()
        blank = torch.zeros((2, *input_shape), dtype=weights.dtype, device=weights.device)
        with torch.no_grad(), torch.random.fork_rng(devices=[weights.device] if weights.is_cuda else []):
            logits, random = _draws(lambda: self(weights, blank))
            self.stochastic |= _draws(lambda: self.training(weights, blank))[1]
        return logits, random

    def _mode(self, *, training: bool) -> None:
        if self._training is not training:
            self._training = training
            self.module.train(training)

    def _forward(self, weights: Tensor, x: Tensor) -> Tensor:
        logits: Tensor = torch.func.functional_call(self.module, self.unflatten(weights), (x,))
        return logits

    def unflatten(self, weights: Tensor) -> dict[str, Tensor]:
        """The vector [size] as views, name by name."""
        parts = torch.split(weights, self._lengths)
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def draw(self, law: Law, gain: float, generator: torch.Generator) -> Tensor:
        """A fresh weight vector [size] from the law, on the module's device; `generator` lives on the CPU."""
        weights = drawn(self.module, law, gain, generator)
        device = next(self.module.parameters()).device
        if device.type != "cuda":
            return weights.to(device)
        return weights.pin_memory().to(device, non_blocking=True)

    def flatten(self) -> Tensor:
        """The module's own parameters as one detached vector [size]."""
        return torch.cat([p.detach().reshape(-1) for p in self.module.parameters()])

    @torch.no_grad()
    def install(self, weights: Tensor) -> nn.Module:
        """Write `weights` [size] into the module and return it, ready to use, in evaluation mode."""
        for name, value in self.unflatten(weights).items():
            self.module.get_parameter(name).copy_(value)
        self._training = False
        return self.module.eval()

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Network:
        """Move the module in place; returns self."""
        self.module.to(device=device, dtype=dtype)
        return self


def _refuse_single_derivatives(module: nn.Module) -> None:
    # Their kernels have no second derivative, and under torch.func they read their weights past those put in place.
    kernels = (nn.RNN.forward, nn.LSTM.forward, nn.GRU.forward)
    for layer in module.modules():
        if isinstance(layer, nn.RNNBase) and type(layer).forward in kernels:
            name = type(layer).__name__
            allowed = f"torch's nn.{name} has no second derivative: write out its steps in time, as ddray.networks.recurrent does"
            raise RequestError("arch", type(module).__name__, allowed)


def outputs_for(classes: int) -> int:
    """Number of logits for a number of classes: two classes share one."""
    return 1 if classes == 2 else classes


def build(arch: str, input_shape: tuple[int, ...], classes: int, arguments: Mapping[str, Any] | None = None) -> Network:
    """Build a network for inputs of `input_shape` (without the batch axis) and `classes` classes.

    Args:
        arch: a name from `ARCHITECTURES`, or the dotted path `package.module:factory` of any callable that returns an
            `nn.Module`. The factory is given `input_shape` and `outputs` where it has parameters so named.
        arguments: further keyword arguments of the factory.

    Raises:
        RequestError: unknown or unimportable `arch`, arguments it does not take, or shapes that clash with the data.

    """
    factory = ARCHITECTURES.get(arch) or _import(arch)
    wanted = {"input_shape": input_shape, "outputs": outputs_for(classes)}
    try:
        accepted = inspect.signature(factory).parameters
        given = {key: value for key, value in wanted.items() if key in accepted} | dict(arguments or {})
        # A module draws its first weights from torch's global generator: lend it a seed, and give it back as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = factory(**given)
    except RequestError:  # which says more precisely what is wrong
        raise
    except Exception as error:  # a user's own code may raise anything
        if not arguments:
            raise RequestError("arch", arch, f"its factory cannot be called: {_line(error)}") from error
        raise RequestError("network.args", dict(arguments), f"{arch} does not take these: {_line(error)}") from error
    if not isinstance(module, nn.Module):
        raise RequestError(
            "arch", arch, f"a factory must return a torch.nn.Module, this returned {type(module).__name__}"
        )
    if any(nn.parameter.is_lazy(parameter) for parameter in module.parameters()):
        raise RequestError("arch", arch, "its layers must know their sizes: it has lazy ones")
    if not list(module.parameters()):
        raise RequestError("arch", arch, "it has no weights to train")
    network = Network(module)
    if not list(module.buffers()):
        network.identity = (arch, factory, input_shape, classes, json.dumps(dict(arguments or {}), sort_keys=True))
    _check(arch, network, input_shape, classes)
    return network


def _import(arch: str) -> Callable[..., nn.Module]:
    package, colon, name = arch.partition(":")
    if not colon:
        raise RequestError("arch", arch, f"choose one of {', '.join(ARCHITECTURES)}, or package.module:factory")
    try:
        factory = getattr(importlib.import_module(package), name)
    except (Exception, SystemExit) as error:  # importing runs a user's own code
        raise RequestError("arch", arch, f"it could not be imported: {_line(error)}") from error
    if not callable(factory):
        raise RequestError("arch", arch, "it is not callable")
    return factory  # type: ignore[no-any-return]


def _check(arch: str, network: Network, input_shape: tuple[int, ...], classes: int) -> None:
    try:
        logits, random = network.probe(input_shape)
    except Exception as error:
        raise RequestError("arch", arch, f"it does not take inputs of shape {input_shape}: {_line(error)}") from error
    allowed = {classes, outputs_for(classes)}
    expected = " or ".join(str(k) for k in sorted(allowed))
    if not isinstance(logits, Tensor):
        raise RequestError("arch", arch, f"it must give [N, {expected}] logits, it gave a {type(logits).__name__}")
    if random:
        raise RequestError("arch", arch, "it draws random numbers in evaluation mode: F.dropout(x, p, self.training)?")
    if logits.dim() != 2 or logits.shape[0] != 2 or logits.shape[1] not in allowed:
        raise RequestError(
            "arch",
            arch,
            f"for {classes} classes it must give [N, {expected}] logits, it gave {list(logits.shape)} for N = 2",
        )


def _draws(forward: Callable[[], Tensor]) -> tuple[Tensor, bool]:
    """What `forward` gives, and whether it drew from torch's global generator."""
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    return forward(), not torch.equal(before, torch.random.get_rng_state())


def _line(error: BaseException) -> str:
    said = str(error).strip().splitlines()[0] if str(error).strip() else ""
    explains_itself = isinstance(error, TypeError | ValueError | RuntimeError | ImportError | AttributeError)
    return said if said and explains_itself else f"{type(error).__name__} {said}".strip()

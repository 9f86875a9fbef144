import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddray.errors import RequestError
from ddray.networks import build
from ddray.networks.network import Network


@pytest.mark.parametrize(
    ("arch", "shape", "classes", "size"),
    [
        ("LeNet", (1, 28, 28), 10, 61_706),
        ("LeNet", (3, 32, 32), 10, 62_006),
        ("LeNet", (1, 28, 28), 2, 61_706 - 9 * 85),
        ("AlexCifarNet", (3, 32, 32), 10, 1_756_426),
        ("ConvNet3", (3, 32, 32), 10, 320_010),
    ],
)
def test_sizes(arch: str, shape: tuple[int, ...], classes: int, size: int) -> None:
    assert build(arch, shape, classes).size == size


@pytest.mark.parametrize(("arch", "shape"), [("LeNet", (1, 28, 28)), ("AlexCifarNet", (3, 32, 32)), ("ConvNet3", (1, 28, 28))])
def test_functional_equals_the_module(arch: str, shape: tuple[int, ...]) -> None:
    network = build(arch, shape, 10)
    weights = network.draw("xavier", 1.0, torch.Generator().manual_seed(0))
    x = torch.randn(4, *shape)
    logits = network(weights, x)
    other = network.draw("xavier", 1.0, torch.Generator().manual_seed(1))
    assert not torch.allclose(logits, network(other, x))
    torch.testing.assert_close(network.install(weights)(x), logits)


def test_lenet_is_the_seeds_lenet() -> None:
    """ReLU after the pool is the same function as ReLU before it."""
    network = build("LeNet", (1, 28, 28), 10)
    conv1, conv2 = network.module[0], network.module[3]
    fc = [network.module[i] for i in (7, 9, 11)]
    x = torch.randn(3, 1, 28, 28)
    h = torch.max_pool2d(torch.relu(conv1(x)), 2)
    h = torch.max_pool2d(torch.relu(conv2(h)), 2).flatten(1)
    h = fc[2](torch.relu(fc[1](torch.relu(fc[0](h)))))
    torch.testing.assert_close(network(network.flatten(), x), h)


def test_batch_norm_uses_its_batch_and_keeps_buffers_out() -> None:
    network = Network(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3)))
    assert set(network.shapes) == {"1.weight", "1.bias", "2.weight", "2.bias"}
    x = torch.randn(16, 1, 2, 2) + 5
    out = network(network.flatten(), x)
    torch.testing.assert_close(out.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(network(network.flatten(), x, seed=1), out)


def test_dropout_follows_from_the_seed_and_is_off_without() -> None:
    network = Network(nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 3)))
    weights, x = network.flatten(), torch.ones(2, 64)
    assert torch.equal(network(weights, x, seed=1), network(weights, x, seed=1))
    assert not torch.equal(network(weights, x, seed=1), network(weights, x, seed=2))
    torch.testing.assert_close(network(weights, x), network.module[2](x))
    before = torch.get_rng_state()
    network(weights, x, seed=3)
    assert torch.equal(before, torch.get_rng_state())


def test_dropout_that_no_layer_shows_follows_from_the_seed_too() -> None:
    network = build(f"{HERE}:Careless", (1, 8, 8), 3)
    weights, x = network.flatten(), torch.ones(2, 1, 8, 8)
    assert network.stochastic and not build(f"{HERE}:little", (1, 8, 8), 3).stochastic
    assert torch.equal(network(weights, x, seed=1), network(weights, x, seed=1))
    assert not torch.equal(network(weights, x, seed=1), network(weights, x, seed=2))


def little(input_shape: tuple[int, ...], outputs: int, width: int = 3) -> nn.Module:
    size = input_shape[0] * input_shape[1] * input_shape[2]
    return nn.Sequential(nn.Flatten(), nn.Linear(size, width), nn.Linear(width, outputs))


class Careless(nn.Module):
    """Dropout as a function, which no layer shows; in evaluation too if it `forgets` the mode."""

    def __init__(self, input_shape: tuple[int, ...], outputs: int, *, forgets: bool = False) -> None:
        super().__init__()
        self.linear, self.forgets = nn.Linear(math.prod(input_shape), outputs), forgets

    def forward(self, x: Tensor) -> Tensor:
        dropped: Tensor = self.linear(nn.functional.dropout(x.flatten(1), 0.5, self.training or self.forgets))
        return dropped


class Odd(nn.Module):
    """Goes wrong in forward as a user's network may."""

    def __init__(self, input_shape: tuple[int, ...], outputs: int, how: str) -> None:
        super().__init__()
        self.linear, self.how = nn.Linear(math.prod(input_shape), outputs), how

    def forward(self, x: Tensor) -> object:
        if self.how == "tuple":
            return self.linear(x.flatten(1)), x
        if self.how == "unpacks":
            _, _, _ = x.shape
        raise AssertionError


def lazy(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(outputs))


def weightless() -> nn.Module:
    return nn.Flatten()


def keyless(table: str = "no") -> nn.Module:
    return {"yes": nn.Flatten()}[table]


def two_logits() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 2))


def no_module() -> dict[str, int]:
    return {}


HERE = __name__


def test_a_factory_by_dotted_path() -> None:
    network = build(f"{HERE}:little", (1, 4, 4), 5, {"width": 7})
    assert network.shapes["1.weight"] == (7, 16)
    assert network.shapes["2.weight"] == (5, 7)


def test_two_classes_may_have_two_logits() -> None:
    assert build(f"{HERE}:two_logits", (1, 4, 4), 2).shapes["1.weight"] == (2, 16)


@pytest.fixture
def user_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_nets.py").write_text("1 / 0\n")
    (tmp_path / "leaving_nets.py").write_text("import sys\nsys.exit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize(
    ("arch", "shape", "classes", "arguments", "part"),
    [
        ("Resnet", (1, 28, 28), 10, {}, "choose one of LeNet"),
        ("no.such.module:Net", (1, 28, 28), 10, {}, "could not be imported"),
        (f"{HERE}:missing", (1, 28, 28), 10, {}, "could not be imported"),
        (f"{HERE}:HERE", (1, 28, 28), 10, {}, "not callable"),
        (f"{HERE}:no_module", (1, 28, 28), 10, {}, "must return a torch.nn.Module"),
        ("LeNet", (1, 20, 20), 10, {}, "28×28 or 32×32"),
        ("LeNet", (5,), 10, {}, "it takes images"),
        ("AlexCifarNet", (1, 32, 32), 10, {}, "3 channels"),
        ("ConvNet3", (1, 4, 4), 10, {}, "at least 8×8"),
        ("LeNet", (1, 28, 28), 10, {"width": 3}, "does not take these"),
        (f"{HERE}:two_logits", (1, 4, 4), 3, {}, "it gave [2, 2]"),
        (f"{HERE}:two_logits", (1, 5, 5), 2, {}, "does not take inputs of shape"),
        (f"{HERE}:Careless", (1, 4, 4), 3, {"forgets": True}, "random numbers in evaluation mode"),
        (f"{HERE}:Odd", (1, 4, 4), 3, {"how": "tuple"}, "it gave a tuple"),
        (f"{HERE}:Odd", (1, 4, 4), 3, {"how": "unpacks"}, "too many values to unpack"),
        (f"{HERE}:Odd", (1, 4, 4), 3, {"how": "asserts"}, "does not take inputs of shape (1, 4, 4): AssertionError"),
        (f"{HERE}:lazy", (1, 4, 4), 3, {}, "it has lazy ones"),
        (f"{HERE}:weightless", (1, 4, 4), 3, {}, "no weights to train"),
        (f"{HERE}:keyless", (1, 4, 4), 3, {}, "its factory cannot be called: KeyError 'no'"),
        (f"{HERE}:Recurrent", (1, 4, 4), 3, {}, "torch's nn.GRU has no second derivative"),
        (".nets:Net", (1, 4, 4), 3, {}, "could not be imported"),
        ("broken_nets:Net", (1, 4, 4), 3, {}, "could not be imported: ZeroDivisionError"),
        ("leaving_nets:Net", (1, 4, 4), 3, {}, "could not be imported: SystemExit 3"),
        ("ConvNet3", (3, 32, 32), 10, {"width": 0}, "does not take these"),
        ("ConvNet3", (3, 32, 32), 10, {"width": -1}, "does not take these"),
    ],
)
def test_refusals(
    arch: str, shape: tuple[int, ...], classes: int, arguments: dict[str, Any], part: str, user_modules: None
) -> None:
    with pytest.raises(RequestError) as refusal:
        build(arch, shape, classes, arguments)
    assert part in str(refusal.value)
    assert "\n" not in str(refusal.value)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.GRU(4, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.last(self.layer(x[:, 0])[0][:, -1])
        return logits

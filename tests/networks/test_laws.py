import math

import pytest
import torch

from ddray.networks import LAWS, Law, build, initialise


def draw(law: str, gain: float = 1.0, seed: int = 0, arch: str = "LeNet") -> dict[str, torch.Tensor]:
    network = build(arch, (1, 28, 28), 10)
    return network.unflatten(network.draw(law, gain, torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("law", LAWS)
def test_a_law_follows_from_its_generator_alone(law: str) -> None:
    torch.manual_seed(1)
    first = draw(law)
    torch.manual_seed(2)
    again, other = draw(law), draw(law, seed=1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["11.weight"], other["11.weight"])


@pytest.mark.parametrize("law", LAWS)
def test_a_law_leaves_the_global_generator_alone(law: str) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    draw(law)
    assert torch.equal(before, torch.get_rng_state())


FAN_IN, FAN_OUT = 400, 120  # of LeNet's first linear layer


@pytest.mark.parametrize(
    ("law", "gain", "std"),
    [
        ("xavier", 1.0, math.sqrt(2 / (FAN_IN + FAN_OUT))),
        ("xavier", 2.0, 2 * math.sqrt(2 / (FAN_IN + FAN_OUT))),
        ("xavier_uniform", 1.0, math.sqrt(2 / (FAN_IN + FAN_OUT))),
        ("kaiming", 1.0, math.sqrt(1 / FAN_IN)),
        ("kaiming_out", 1.0, math.sqrt(1 / FAN_OUT)),
        ("normal", 0.3, 0.3),
    ],
)
def test_the_spread_of_a_law(law: str, gain: float, std: float) -> None:
    assert draw(law, gain)["7.weight"].std().item() == pytest.approx(std, rel=0.02)


def test_uniform_is_bounded() -> None:
    bound = math.sqrt(6 / (FAN_IN + FAN_OUT))
    assert draw("xavier_uniform")["7.weight"].abs().max().item() <= bound


def test_orthogonal_rows_are_orthonormal() -> None:
    weight = draw("orthogonal")["7.weight"]
    torch.testing.assert_close(weight @ weight.T, torch.eye(FAN_OUT), atol=1e-5, rtol=0)


def test_biases_are_zero_and_norms_one() -> None:
    weights = draw("xavier", arch="ConvNet3")
    assert weights["0.bias"].abs().max() == 0
    assert torch.equal(weights["1.weight"], torch.ones(128))
    assert weights["1.bias"].abs().max() == 0


def test_default_draws_biases_as_the_layers_do() -> None:
    bias = draw("default")["7.bias"]
    assert 0 < bias.abs().max() <= 1 / math.sqrt(FAN_IN)


@pytest.mark.parametrize("law", LAWS)
def test_drawn_weights_are_those_of_an_initialised_module(law: Law) -> None:
    network = build("LeNet", (1, 28, 28), 10)
    weights = network.draw(law, 1.0, torch.Generator().manual_seed(3))
    initialise(network.module, law, 1.0, torch.Generator().manual_seed(3))
    assert torch.equal(weights, network.flatten())

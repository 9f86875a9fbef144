"""The gradient through the inner loop, against finite differences and against plain autograd."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ddray.distillation.unroll import (
    ADJOINTS,
    RealBatch,
    Synthetic,
    full,
    hard_loss,
    outer_loss,
    predictions,
    recompute,
    sgd_step,
    soft_loss,
    through_window,
    trajectory,
)
from ddray.errors import Diverged
from ddray.networks import build
from ddray.networks.network import Network

ORDER = [0, 1, 0, 1]


def dropout_network() -> Network:
    return Network(nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Dropout(0.5), nn.Linear(12, 3)))


NETWORKS: dict[str, tuple[Callable[[], Network], tuple[int, ...], int]] = {
    "LeNet": (lambda: build("LeNet", (1, 28, 28), 10), (1, 28, 28), 10),
    "AlexCifarNet": (lambda: build("AlexCifarNet", (3, 32, 32), 10), (3, 32, 32), 10),
    "ConvNet3": (lambda: build("ConvNet3", (1, 16, 16), 3, {"width": 8}), (1, 16, 16), 3),
    "binary LeNet": (lambda: build("LeNet", (1, 28, 28), 2), (1, 28, 28), 1),
    "dropout": (dropout_network, (1, 4, 4), 3),
}


def problem(name: str) -> tuple[Network, Tensor, Synthetic, RealBatch]:
    make, shape, width = NETWORKS[name]
    network, g = make().to(dtype=torch.float64), torch.Generator().manual_seed(0)
    normal = {"generator": g, "dtype": torch.float64}
    weights = network.draw("xavier", 1.0, g)
    samples, scale = (2, 0.001) if name == "AlexCifarNet" else (5, 1.0)
    synthetic = Synthetic(
        torch.randn(2, samples, *shape, **normal),
        torch.randn(2, samples, width, **normal),
        scale * (0.02 + 0.05 * torch.rand(len(ORDER), generator=g, dtype=torch.float64)),
    )
    classes = torch.randint(max(width, 2), (4,), generator=g)
    return network, weights, synthetic, RealBatch(torch.randn(len(classes), *shape, **normal), classes)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("tensor", ["inputs", "labels", "rates"])
def test_gradient_equals_finite_differences(name: str, tensor: str) -> None:
    network, weights, synthetic, batch = problem(name)
    _, gradient = recompute(network, weights, synthetic, ORDER, batch, 7)
    analytic, values = getattr(gradient, tensor).flatten(), getattr(synthetic, tensor)
    # The entries that matter most: where the gradient is tiny, rounding is all that differences show.
    entries = analytic.abs().topk(2).indices.tolist()
    assert analytic[entries].abs().min() > 1e-7
    for entry in entries:
        eps, losses = 1e-6 * values.abs().mean().item(), []
        for sign in (1, -1):
            moved = values.clone()
            moved.view(-1)[entry] += sign * eps
            states = trajectory(network, weights, replace(synthetic, **{tensor: moved}), ORDER, 7)
            losses.append(outer_loss(network, states[-1], batch)[0].item())
        assert (losses[0] - losses[1]) / (2 * eps) == pytest.approx(analytic[entry].item(), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("name", NETWORKS)
def test_recompute_equals_full(name: str) -> None:
    network, weights, synthetic, batch = problem(name)
    loss, gradient = recompute(network, weights, synthetic, ORDER, batch, 7)
    expected_loss, expected = full(network, weights, synthetic, ORDER, batch, 7)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=0)
    for name in ("inputs", "labels", "rates"):
        torch.testing.assert_close(getattr(gradient, name), getattr(expected, name), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_a_window_over_all_steps_is_the_whole_unroll(adjoint: str) -> None:
    network, weights, synthetic, batch = problem("dropout")
    whole = ADJOINTS[adjoint](network, weights, synthetic, ORDER, batch, 7)
    windowed = through_window(ADJOINTS[adjoint], network, weights, synthetic, ORDER, batch, 7, range(len(ORDER)))
    assert torch.equal(whole[0], windowed[0])
    for name in ("inputs", "labels", "rates"):
        assert torch.equal(getattr(whole[1], name), getattr(windowed[1], name))


@pytest.mark.parametrize("tensor", ["inputs", "labels", "rates"])
def test_the_gradient_through_a_window_equals_finite_differences_in_its_steps(tensor: str) -> None:
    network, weights, synthetic, batch = problem("dropout")
    window = range(1, 3)
    loss, gradient = through_window(recompute, network, weights, synthetic, ORDER, batch, 7, window)
    begun = trajectory(network, weights, synthetic, ORDER[:1], 7)[-1]
    assert gradient.rates[[0, 3]].eq(0).all()

    def after(moved: Synthetic) -> float:
        weights = begun
        for t in window:
            s = ORDER[t]
            weights = sgd_step(network, weights, moved.inputs[s], moved.labels[s], moved.rates[t], 7 + t)
        return outer_loss(network, weights, batch)[0].item()

    assert after(synthetic) == pytest.approx(loss.item(), rel=1e-12)
    analytic, values = getattr(gradient, tensor).flatten(), getattr(synthetic, tensor)
    entry = int(analytic.abs().argmax())
    eps, losses = 1e-6, []
    for sign in (1, -1):
        moved = values.clone()
        moved.view(-1)[entry] += sign * eps
        losses.append(after(replace(synthetic, **{tensor: moved})))
    assert (losses[0] - losses[1]) / (2 * eps) == pytest.approx(analytic[entry].item(), rel=1e-5)


def test_the_outer_loss_is_a_mean_over_all_chunks() -> None:
    network, weights, _, _ = problem("LeNet")
    g = torch.Generator().manual_seed(1)
    x = torch.randn(300, 1, 28, 28, generator=g, dtype=torch.float64)
    y = torch.randint(10, (300,), generator=g)
    loss, gradient = outer_loss(network, weights, RealBatch(x, y))
    leaf = weights.clone().requires_grad_()
    expected = hard_loss(network(leaf, x), y)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, leaf)[0])


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_divergence_is_caught_at_the_inner_step(adjoint: str) -> None:
    network, weights, synthetic, batch = problem("LeNet")
    rates = synthetic.rates.clone()
    rates[1] = float("inf")
    with pytest.raises(Diverged, match="inner step 2"):
        ADJOINTS[adjoint](network, weights, replace(synthetic, rates=rates), ORDER, batch, 0)
    with pytest.raises(Diverged, match="inner step 2"):
        through_window(
            ADJOINTS[adjoint], network, weights, replace(synthetic, rates=rates), ORDER, batch, 0, range(3, 4)
        )


def test_soft_loss_is_cross_entropy_on_one_hot_labels() -> None:
    logits, classes = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 1, 0])
    one_hot = torch.eye(4)[classes]
    torch.testing.assert_close(soft_loss(logits, one_hot), nn.functional.cross_entropy(logits, classes))


def test_one_logit_is_judged_by_its_sign() -> None:
    assert predictions(torch.tensor([[-0.1], [0.1], [0.4], [0.6]])).tolist() == [0, 1, 1, 1]
    assert predictions(torch.tensor([[0.1, 0.2], [3.0, -1.0]])).tolist() == [1, 0]

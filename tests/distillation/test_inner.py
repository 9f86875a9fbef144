"""Inner optimisers against torch's own."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ddray.distillation.config import InnerConfig
from ddray.distillation.inner import make_optimiser, soft_loss

RATES = (0.3, 0.1, 0.2, 0.05)


@pytest.mark.parametrize(
    ("config", "theirs"),
    [
        (InnerConfig(), lambda w: torch.optim.SGD([w], lr=1.0)),
        (InnerConfig(optimiser="momentum", momentum=0.8), lambda w: torch.optim.SGD([w], lr=1.0, momentum=0.8)),
        (InnerConfig(optimiser="adam", beta1=0.8, beta2=0.95, epsilon=1e-16),
         lambda w: torch.optim.Adam([w], lr=1.0, betas=(0.8, 0.95), eps=1e-12)),
    ],
    ids=["sgd", "momentum", "adam"],
)  # fmt: skip
def test_an_inner_optimiser_steps_as_torchs_does(
    config: InnerConfig, theirs: Callable[[Tensor], torch.optim.Optimizer]
) -> None:
    weights = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    leaf = weights.clone().requires_grad_()
    reference, optimiser = theirs(leaf), make_optimiser(config)
    state = optimiser.begin(weights)
    for rate in RATES:
        leaf.grad = torch.sin(3 * leaf.detach())
        gradient = torch.sin(3 * weights)
        reference.param_groups[0]["lr"] = rate
        reference.step()
        weights, state = optimiser.update(weights, state, gradient, torch.tensor(rate, dtype=torch.float64))
        torch.testing.assert_close(weights, leaf.detach(), rtol=1e-9, atol=1e-12)


def test_adam_has_a_finite_derivative_where_a_weight_has_no_gradient() -> None:
    optimiser, rate = make_optimiser(InnerConfig(optimiser="adam")), torch.tensor(0.1)
    weights = torch.zeros(3)

    def moved(gradient: Tensor) -> Tensor:
        return optimiser.update(weights, optimiser.begin(weights), gradient, rate)[0].sum()

    slope = torch.func.grad(moved)(torch.tensor([0.0, 1.0, -2.0]))
    assert torch.isfinite(slope).all()


def test_soft_loss_is_cross_entropy_on_one_hot_labels() -> None:
    logits, classes = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 1, 0])
    one_hot = torch.eye(4)[classes]
    torch.testing.assert_close(soft_loss(logits, one_hot), nn.functional.cross_entropy(logits, classes))


def test_soft_loss_by_hand() -> None:
    logits = torch.tensor([[math.log(3), 0.0], [0.0, 0.0], [0.0, math.log(3)]])  # 3/4, 1/4; 1/2, 1/2; 1/4, 3/4
    labels = torch.tensor([[2.0, 0.5], [0.5, 0.5], [-1.0, 0.0]])
    first = 2 * math.log(4 / 3) + 0.5 * math.log(4)
    assert soft_loss(logits, labels).item() == pytest.approx((first + math.log(2) - math.log(4)) / 3)


def test_soft_loss_of_one_logit_by_hand() -> None:
    logits, labels = torch.tensor([[math.log(3)], [0.0], [-math.log(3)]]), torch.tensor([[0.25], [1.0], [2.0]])
    first = 0.25 * math.log(4 / 3) + 0.75 * math.log(4)
    last = 2 * math.log(4) - math.log(4 / 3)
    assert soft_loss(logits, labels).item() == pytest.approx((first + math.log(2) + last) / 3)

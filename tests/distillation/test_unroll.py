"""The gradient through the inner loop, against finite differences and against plain autograd."""

from dataclasses import replace
from typing import get_args

import pytest
import torch

from ddray.distillation.config import InnerConfig
from ddray.distillation.inner import InnerStep
from ddray.distillation.outer import OuterLoss
from ddray.distillation.reference import by_autograd, differentiate
from ddray.distillation.unroll import (
    ADJOINTS,
    Adjoint,
    Synthetic,
    advance,
    segments,
    train_as_distilled,
)
from ddray.errors import Diverged

from .unrolls import NETWORKS, ORDER, PARTS, check_equal, problem

OPTIMISERS = get_args(InnerConfig.model_fields["optimiser"].annotation)
# Where the gradient is near the root of epsilon, Adam is as sharp as a step: a larger one is as good a test.
SMOOTH = {"epsilon": 1e-3}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("part", PARTS)
def test_gradient_equals_finite_differences(name: str, part: str) -> None:
    network, weights, synthetic, batch = problem(name)
    step = InnerStep(network)
    analytic = getattr(differentiate(step, weights, synthetic, ORDER, batch, 7)[1], part)

    def loss(moved: Synthetic) -> float:
        return OuterLoss(network)(train_as_distilled(step, weights, moved, ORDER, 7), batch)[0].item()

    check_differences(analytic, synthetic, part, loss)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("part", PARTS)
def test_every_adjoint_of_every_optimiser_equals_finite_differences(
    optimiser: str, adjoint: Adjoint, part: str
) -> None:
    network, weights, synthetic, batch = problem("dropout")
    step = InnerStep(network, InnerConfig(optimiser=optimiser, **SMOOTH))
    analytic = getattr(differentiate(step, weights, synthetic, ORDER, batch, 7, adjoint=adjoint)[1], part)

    def loss(moved: Synthetic) -> float:
        return OuterLoss(network)(train_as_distilled(step, weights, moved, ORDER, 7), batch)[0].item()

    check_differences(analytic, synthetic, part, loss)


def check_differences(analytic, synthetic, part, loss) -> None:  # type: ignore[no-untyped-def]
    # The entries that matter most: where the gradient is tiny, rounding is all that differences show.
    values, entries = getattr(synthetic, part), analytic.abs().flatten().topk(2).indices.tolist()
    assert analytic.flatten()[entries].abs().min() > 1e-7
    for entry in entries:
        eps, losses = 1e-6 * values.abs().mean().item(), []
        for sign in (1, -1):
            moved = values.clone()
            moved.view(-1)[entry] += sign * eps
            losses.append(loss(replace(synthetic, **{part: moved})))
        difference = (losses[0] - losses[1]) / (2 * eps)
        assert difference == pytest.approx(analytic.flatten()[entry].item(), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_every_adjoint_equals_plain_autograd(name: str, adjoint: Adjoint) -> None:
    network, weights, synthetic, batch = problem(name)
    step = InnerStep(network)
    found = differentiate(step, weights, synthetic, ORDER, batch, 7, adjoint=adjoint)
    check_equal(found, by_autograd(step, weights, synthetic, ORDER, batch, 7))


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_every_optimiser_equals_plain_autograd(optimiser: str, adjoint: Adjoint) -> None:
    network, weights, synthetic, batch = problem("ConvNet3")
    step = InnerStep(network, InnerConfig(optimiser=optimiser))
    found = differentiate(step, weights, synthetic, ORDER, batch, 7, adjoint=adjoint)
    check_equal(found, by_autograd(step, weights, synthetic, ORDER, batch, 7), rtol=1e-8)


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_networks_side_by_side_equal_one_by_one(optimiser: str, adjoint: Adjoint) -> None:
    network, _, synthetic, batch = problem("LeNet")
    g = torch.Generator().manual_seed(3)
    starts = torch.stack([network.draw("xavier", 1.0, g) for _ in range(3)])
    config = InnerConfig(optimiser=optimiser, **SMOOTH)
    one, several = InnerStep(network, config), InnerStep(network, config, batched=True)
    alone = [differentiate(one, start, synthetic, ORDER, batch) for start in starts]
    losses = torch.stack([loss for loss, _ in alone])
    total = Synthetic(*(sum(getattr(slope, part) for _, slope in alone) for part in PARTS))
    check_equal(differentiate(several, starts, synthetic, ORDER, batch, adjoint=adjoint), (losses, total))


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_a_window_over_all_steps_is_the_whole_unroll(adjoint: Adjoint) -> None:
    network, weights, synthetic, batch = problem("dropout")
    step = InnerStep(network)
    whole = by_autograd(step, weights, synthetic, ORDER, batch, 7)
    windowed = differentiate(step, weights, synthetic, ORDER, batch, 7, adjoint=adjoint, window=range(len(ORDER)))
    check_equal(windowed, whole)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("part", PARTS)
def test_the_gradient_through_a_window_equals_finite_differences_in_its_steps(optimiser: str, part: str) -> None:
    network, weights, synthetic, batch = problem("dropout")
    step, window = InnerStep(network, InnerConfig(optimiser=optimiser, **SMOOTH)), range(1, 3)
    loss, gradient = differentiate(step, weights, synthetic, ORDER, batch, 7, window=window)
    begun = advance(step, step.begin(weights), synthetic, ORDER, 7, range(1))
    assert gradient.rates[[0, 3]].eq(0).all()

    def after(moved: Synthetic) -> float:
        carry = advance(step, begun, moved, ORDER, 7, window)
        return OuterLoss(network)(carry[0], batch)[0].item()

    assert after(synthetic) == pytest.approx(loss.item(), rel=1e-12)
    analytic, values = getattr(gradient, part).flatten(), getattr(synthetic, part)
    entry = int(analytic.abs().argmax())
    eps, losses = 1e-6, []
    for sign in (1, -1):
        moved = values.clone()
        moved.view(-1)[entry] += sign * eps
        losses.append(after(replace(synthetic, **{part: moved})))
    assert (losses[0] - losses[1]) / (2 * eps) == pytest.approx(analytic[entry].item(), rel=1e-5)


def test_segments_cover_the_window_once_in_order() -> None:
    for adjoint in ADJOINTS:
        for window in (range(1), range(2, 12), range(30), range(3, 20)):
            parts = segments(window, adjoint)
            assert [t for part in parts for t in part] == list(window)
    assert len(segments(range(30), "full")) == 1
    assert len(segments(range(30), "recompute")) == 30
    assert [len(part) for part in segments(range(30), "checkpoint")] == [6] * 5


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_divergence_is_caught_at_the_inner_step(adjoint: Adjoint) -> None:
    network, weights, synthetic, batch = problem("LeNet")
    rates = synthetic.rates.clone()
    rates[1] = float("inf")
    step, broken = InnerStep(network), replace(synthetic, rates=rates)
    for window in (None, range(3, 4)):
        with pytest.raises(Diverged, match="inner step 2"):
            differentiate(step, weights, broken, ORDER, batch, adjoint=adjoint, window=window)

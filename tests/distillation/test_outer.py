"""The loss on real examples."""

import math

import pytest
import torch

from ddray.distillation.outer import OuterLoss, RealBatch, hard_loss, predictions

from .unrolls import problem


def real(count: int = 300) -> RealBatch:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(count, 1, 28, 28, generator=g, dtype=torch.float64)
    return RealBatch(x, torch.randint(10, (count,), generator=g))


@pytest.mark.parametrize("chunk", [0, 7, 300, 1000])
def test_the_outer_loss_is_a_mean_over_all_chunks(chunk: int) -> None:
    network, weights, _, _ = problem("LeNet")
    batch = real()
    loss, gradient = OuterLoss(network, chunk)(weights, batch)
    leaf = weights.clone().requires_grad_()
    expected = hard_loss(network(leaf, batch.x), batch.y)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, leaf)[0])


def test_several_networks_are_judged_as_each_alone() -> None:
    network, weights, _, _ = problem("LeNet")
    several = torch.stack([weights, 0.9 * weights])
    losses, gradients = OuterLoss(network)(several, real())
    for found, start in zip(zip(losses, gradients, strict=True), several, strict=True):
        torch.testing.assert_close(found, OuterLoss(network)(start, real()))


def test_a_network_with_batch_statistics_sees_the_whole_batch() -> None:
    network, weights, _, _ = problem("batch norm")
    g = torch.Generator().manual_seed(1)
    batch = RealBatch(torch.randn(200, 1, 8, 8, generator=g, dtype=torch.float64), torch.arange(200) % 3)
    expected = hard_loss(network(weights, batch.x), batch.y)
    torch.testing.assert_close(OuterLoss(network, 7)(weights, batch)[0], expected)


def test_mixed_precision_is_near_float32() -> None:
    network, weights, _, _ = problem("LeNet", torch.float32)
    batch = RealBatch(real().x.float(), real().y)
    loss, gradient = OuterLoss(network)(weights, batch)
    rough, rough_gradient = OuterLoss(network, bfloat16=True)(weights, batch)
    assert rough.dtype == rough_gradient.dtype == torch.float32
    torch.testing.assert_close(rough, loss, rtol=0.02, atol=0)
    assert torch.nn.functional.cosine_similarity(rough_gradient, gradient, dim=0) > 0.99


def test_one_logit_is_judged_by_its_sign() -> None:
    assert predictions(torch.tensor([[-0.1], [0.1], [0.4], [0.6]])).tolist() == [0, 1, 1, 1]
    assert predictions(torch.tensor([[0.1, 0.2], [3.0, -1.0]])).tolist() == [1, 0]


@pytest.mark.parametrize(
    "logits",
    [[[0.0, math.log(3)], [0.0, 0.0], [0.0, math.log(7)]], [[math.log(3)], [0.0], [math.log(7)]]],
    ids=["two logits", "one logit"],
)
def test_the_loss_on_real_examples_by_hand(logits: list[list[float]]) -> None:
    found = hard_loss(torch.tensor(logits), torch.tensor([1, 0, 0])).item()  # at odds of 3 to 1, even odds, 1 to 7
    assert found == pytest.approx((math.log(4 / 3) + math.log(2) + math.log(8)) / 3)

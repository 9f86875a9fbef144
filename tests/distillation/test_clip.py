"""Clipping: fixed, by a running average, together or each by itself."""

import pytest
import torch
from torch import Tensor

from ddray.distillation.clip import Clip
from ddray.distillation.config import OuterConfig


def gradients(inputs: float, labels: float) -> dict[str, Tensor]:
    """Gradients of these norms."""
    return {"inputs": torch.full((4,), inputs / 2), "labels": torch.full((9,), labels / 3)}


def norms(given: dict[str, Tensor]) -> list[float]:
    return [float(torch.linalg.vector_norm(g)) for g in given.values()]


def test_a_fixed_clip_shortens_all_together_as_torch_does() -> None:
    ours, theirs = gradients(3, 4), [g.clone().requires_grad_() for g in gradients(3, 4).values()]
    for leaf in theirs:
        leaf.grad = leaf.detach().clone()
    Clip(OuterConfig(clip=2.0))(ours)
    torch.nn.utils.clip_grad_norm_(theirs, 2.0)
    for found, leaf in zip(ours.values(), theirs, strict=True):
        torch.testing.assert_close(found, leaf.grad)
    assert norms(ours) == pytest.approx([1.2, 1.6])


def test_what_is_short_enough_stays_to_the_bit() -> None:
    given = gradients(0.3, 0.4)
    Clip(OuterConfig(clip=2.0))(given)
    assert all(torch.equal(a, b) for a, b in zip(given.values(), gradients(0.3, 0.4).values(), strict=True))


def test_each_by_itself() -> None:
    given = gradients(0.5, 8)
    Clip(OuterConfig(clip=2.0, clip_each=True))(given)
    assert norms(given) == pytest.approx([0.5, 2.0])


def test_an_average_follows_and_an_explosion_does_not_excuse_the_next() -> None:
    clip = Clip(OuterConfig(clip=None, clip_average=2.0, clip_decay=0.5))
    lengths = []
    for length in (5.0, 3.0, 1000.0, 1000.0, 3.0):
        given = gradients(length * 0.6, length * 0.8)
        clip(given)
        lengths.append(torch.linalg.vector_norm(torch.tensor(norms(given))).item())
    # Averages after each step: 5, 4, (4 + 8) / 2 = 6, (6 + 12) / 2 = 9, 6.
    assert lengths == pytest.approx([5, 3, 8, 12, 3], rel=1e-5)
    assert clip.averages == pytest.approx({"all": 6.0}, rel=1e-5)


def test_a_first_gradient_of_zero_stops_nothing() -> None:
    clip = Clip(OuterConfig(clip=None, clip_average=2.0, clip_each=True))
    clip(gradients(0.0, 4.0))
    given = gradients(3.0, 4.0)
    clip(given)
    assert norms(given) == pytest.approx([3.0, 4.0])


def test_the_smaller_of_both_limits_holds() -> None:
    clip = Clip(OuterConfig(clip=1.0, clip_average=2.0))
    for expected in (1.0, 1.0):
        given = gradients(6, 8)
        clip(given)
        assert torch.linalg.vector_norm(torch.tensor(norms(given))).item() == pytest.approx(expected)


def test_no_clip_at_all() -> None:
    given = gradients(300, 400)
    clip = Clip(OuterConfig(clip=None))
    clip(given)
    assert norms(given) == pytest.approx([300, 400]) and not clip.averages

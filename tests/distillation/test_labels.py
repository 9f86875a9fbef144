import pytest
import torch

from ddray.distillation.config import LabelsConfig
from ddray.distillation.labels import initial_labels, one_hot, sample_classes

INITS = ["one_hot", "smoothed", "normal", "uniform", "zeros", "ones", "bernoulli", "orthogonal"]


def start(init: str, classes: tuple[int, ...] = (0, 1, 2), width: int = 3, per_class: int = 2, steps: int = 4, **more: object):  # type: ignore[no-untyped-def]
    config = LabelsConfig(init=init, **more)  # type: ignore[arg-type]
    members = sample_classes(classes, per_class)
    return initial_labels(config, steps, members, width, torch.Generator().manual_seed(0))


def test_samples_are_ordered_class_by_class_in_turn() -> None:
    assert sample_classes((0, 3, 7), 2).tolist() == [0, 3, 7, 0, 3, 7]


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("per_class", [1, 3])
@pytest.mark.parametrize(("classes", "width"), [((0, 1, 2), 3), ((4, 2), 10), ((0, 1), 1), ((1,), 1)])
def test_shape_for_every_number_of_classes_and_samples(init: str, per_class: int, classes: tuple[int, ...], width: int) -> None:
    labels = start(init, classes, width, per_class)
    assert labels.shape == (4, len(classes) * per_class, width)
    assert torch.isfinite(labels).all()


@pytest.mark.parametrize("init", ["one_hot", "smoothed"])
def test_labels_name_the_class_of_their_sample(init: str) -> None:
    labels = start(init, (4, 2), 10, per_class=3)
    assert labels.argmax(-1).tolist() == [[4, 2, 4, 2, 4, 2]] * 4


def test_smoothed_keeps_its_sum() -> None:
    labels = start("smoothed", smoothing=0.3)
    torch.testing.assert_close(labels.sum(-1), torch.ones(4, 6))
    torch.testing.assert_close(labels[0, 0], torch.tensor([0.8, 0.1, 0.1]))


def test_one_logit_is_asked_for_the_class_itself() -> None:
    assert start("one_hot", (0, 1), 1).squeeze(-1)[0].tolist() == [0, 1, 0, 1]
    torch.testing.assert_close(start("smoothed", (0, 1), 1)[0, :2, 0], torch.tensor([0.05, 0.95]))


def test_orthogonal_rows_are_orthonormal_and_differ_between_steps() -> None:
    labels = start("orthogonal", per_class=1)
    torch.testing.assert_close(labels[0] @ labels[0].T, torch.eye(3), atol=1e-5, rtol=0)
    assert not torch.allclose(labels[0], labels[1])


def test_orthogonal_repeats_a_class_without_growing() -> None:
    labels = start("orthogonal", per_class=2)
    torch.testing.assert_close(labels[0, :3], labels[0, 3:])
    torch.testing.assert_close(labels.norm(dim=-1), torch.ones(4, 6))


def test_constant_and_binary_inits() -> None:
    assert start("zeros").abs().max() == 0
    assert start("ones").min() == 1
    assert set(start("bernoulli").unique().tolist()) == {0.0, 1.0}
    assert 0 <= start("uniform").min() < start("uniform").max() < 1


@pytest.mark.parametrize(("first", "expected"), [(True, 15.0), (False, 9.5)])
def test_scale_and_shift_in_both_orders(first: bool, expected: float) -> None:
    labels = start("ones", scale=10.0, shift=0.5 if first else -0.5, shift_first=first)
    assert labels.unique().tolist() == [expected]


def test_one_hot_of_wide_and_single_outputs() -> None:
    assert one_hot(torch.tensor([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert one_hot(torch.tensor([1, 0]), 1).tolist() == [[1], [0]]

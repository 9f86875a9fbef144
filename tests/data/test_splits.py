"""What is held out: DESIGN's rule, and that everyone holds out the same examples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddray.data import Dataset
from ddray.data.splits import stratified_share, validation_size

RULE = {1: 0, 2: 1, 3: 1, 39: 9, 40: 10, 80: 10, 99: 10, 100: 10, 119: 11, 1000: 100}


@pytest.mark.parametrize(("members", "held_out"), RULE.items())
def test_size_of_validation(members: int, held_out: int) -> None:
    assert validation_size(members) == held_out


@given(st.integers(2, 100_000))
def test_size_of_validation_keeps_to_the_rule(members: int) -> None:
    held_out = validation_size(members)
    assert held_out >= 1 and held_out >= members // 10
    assert held_out == 1 or 4 * held_out <= members
    assert (held_out >= 10) == (members >= 40)


def numbered(sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Shuffled examples of classes of these sizes; the input of each is its position."""
    y = np.random.default_rng(1).permutation(np.repeat(np.arange(len(sizes)), sizes))
    return np.arange(len(y), dtype=np.float32)[:, None], y


@given(st.lists(st.integers(1, 130), min_size=2, max_size=6).filter(lambda sizes: max(sizes) > 1))
def test_every_class_gives_its_share_to_validation(sizes: list[int]) -> None:
    x, y = numbered(sizes)
    dataset = Dataset(x, y, x, y)
    counts = torch.bincount(dataset.validation.y, minlength=len(sizes)).tolist()
    assert counts == [validation_size(size) for size in sizes]


def test_splits_are_disjoint_complete_and_in_order() -> None:
    x, y = numbered(list(RULE))
    dataset = Dataset(x, y, x, y)
    train, validation = dataset.train.x.flatten().tolist(), dataset.validation.x.flatten().tolist()
    assert sorted(train + validation) == x.flatten().tolist()
    assert train == sorted(train) and validation == sorted(validation)


def test_labels_stay_with_their_inputs() -> None:
    x, y = numbered([50, 60])
    dataset = Dataset(x, y, x, y)
    for split in (dataset.train, dataset.validation):
        assert split.y.tolist() == y[split.x.flatten().long().numpy()].tolist()


def test_the_same_examples_are_held_out_whatever_the_seed_of_a_run() -> None:
    x, y = numbered([50, 60])
    torch.manual_seed(1)
    first = Dataset(x, y, x, y).digests()
    torch.manual_seed(2)
    assert Dataset(x, y, x, y).digests() == first


def test_held_out_examples_are_those_of_every_release() -> None:
    x, y = numbered([20, 20])
    # Distilled sets record digests of the splits: another draw here would cut every one of them off from its data.
    assert Dataset(x, y, x, y).validation.x.flatten().tolist() == [3, 10, 11, 13, 15, 18, 28, 30, 32, 34]


def test_official_validation_is_used_as_it_is() -> None:
    x, y = numbered([50, 60])
    dataset = Dataset(x, y, x, y, val_x=x[:7], val_y=y[:7])
    assert len(dataset.train) == 110 and dataset.validation.x.flatten().tolist() == list(range(7))


def test_stratified_share_takes_a_part_of_every_class() -> None:
    y = torch.tensor([0] * 10 + [1] * 14 + [2] * 2 + [3])
    mask = stratified_share(y, 0.2, torch.Generator().manual_seed(0))
    assert torch.bincount(y[mask], minlength=4).tolist() == [2, 2, 1, 0]

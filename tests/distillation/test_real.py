"""Real examples: the minibatches of the outer loss, and samples."""

import pytest
import torch
from torch import Tensor

from ddray.data import Dataset
from ddray.distillation.labels import sample_classes
from ddray.distillation.real import RealBatches, class_averages, real_samples
from ddray.distillation.streams import generator

from .problems import blobs


@pytest.mark.parametrize("classes", [(0, 1, 2), (2, 0)])
@pytest.mark.parametrize("per_class", [1, 2])
def test_real_samples_are_of_the_class_that_the_label_names(classes: tuple[int, ...], per_class: int) -> None:
    data, wanted = blobs(), sample_classes(classes, per_class)
    samples = real_samples(data, wanted, 3, generator("draw"))
    assert samples.shape == (3, len(wanted), 1, 4, 4)
    everything = data.normalise(data.train.x)
    chosen = [[int(torch.nonzero((everything == x).flatten(1).all(1))[0]) for x in step] for step in samples]
    assert [[int(data.train.y[i]) for i in step] for step in chosen] == [wanted.tolist()] * 3
    assert len({i for step in chosen for i in step}) == 3 * len(wanted)


def test_a_class_with_too_few_examples_begins_again() -> None:
    data = blobs(members=4)
    samples = real_samples(data, sample_classes((1,), 5), 2, generator("draw"))
    assert samples.shape[:2] == (2, 5)


def test_averages_are_means_of_their_class() -> None:
    data = blobs()
    averages = class_averages(data, sample_classes((2, 1), 1), 2)
    torch.testing.assert_close(averages[1, 0], data.normalise(data.train.x[data.train.y == 2]).mean(0))


def test_batches_cover_an_epoch_without_repeats_and_do_not_depend_on_the_past() -> None:
    data = blobs()
    batches = RealBatches(data, 40, augment=False, seed=3)
    per_epoch = len(data.train) // 40
    seen = torch.cat([batches.at(step).x for step in range(per_epoch)]).flatten(1)
    assert len(seen.unique(dim=0)) == 40 * per_epoch
    assert torch.equal(RealBatches(data, 40, augment=False, seed=3).at(7).x, batches.at(7).x)
    assert not torch.equal(batches.at(0).x, batches.at(per_epoch).x)


def test_the_seed_decides_the_order_of_real_examples() -> None:
    first, again, other = (RealBatches(blobs(), 40, augment=False, seed=seed).at(0) for seed in (1, 1, 2))
    assert torch.equal(first.x, again.x) and torch.equal(first.y, again.y)
    assert not torch.equal(first.x, other.x)


def test_an_example_of_a_batch_keeps_its_class() -> None:
    data = blobs()
    batch = RealBatches(data, 40, augment=False, seed=3).at(1)
    stored = data.normalise(data.train.x)
    places = [int((stored == x).flatten(1).all(1).nonzero()) for x in batch.x]
    assert data.train.y[places].tolist() == batch.y.tolist()


def one_picture() -> Dataset:
    """Every example is the same picture, so that batches differ by their augmentation alone."""
    picture = torch.randint(256, (1, 1, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    x, y = picture.repeat(30, 1, 1, 1), torch.arange(30) % 3
    return Dataset(x, y, x, y, augmentation="crop_flip")


def shown(augment: bool, seed: int, step: int) -> Tensor:
    return RealBatches(one_picture(), 8, augment, seed).at(step).x


def test_augmentation_differs_from_step_to_step_and_with_the_seed_and_is_drawn_again_when_asked_again() -> None:
    data = one_picture()
    per_epoch = len(data.train) // 8
    batches = [shown(True, seed, step) for seed in (0, 1) for step in range(per_epoch + 1)]
    assert len(torch.stack(batches).unique(dim=0)) == len(batches)
    assert torch.equal(shown(True, 0, 2), batches[2])


def test_without_augmentation_examples_are_shown_as_they_are() -> None:
    data = one_picture()
    assert torch.equal(shown(False, 0, 1), data.normalise(data.train.x[:8]))

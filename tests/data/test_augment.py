"""Crop and flip, against padding done by torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ddray.data import Dataset
from ddray.data.augment import crop_flip

X = torch.randint(256, (200, 3, 11, 13), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def windows(image: torch.Tensor) -> dict[bytes, tuple[int, int, bool]]:
    """Every crop of one reflect-padded image, flipped or not, by its bytes."""
    padded = F.pad(image[None].float(), [4] * 4, mode="reflect")[0].to(torch.uint8)
    crops = {(r, c): padded[:, r : r + 11, c : c + 13] for r in range(9) for c in range(9)}
    return {
        (crop.flip(2) if flip else crop).numpy().tobytes(): (r, c, flip)
        for (r, c), crop in crops.items()
        for flip in (False, True)
    }


def test_every_image_is_a_crop_of_its_own_padded_image() -> None:
    out = crop_flip(X[:40], seeded(1))
    assert out.dtype == torch.uint8 and out.shape == X[:40].shape and out.is_contiguous()
    assert all(image.numpy().tobytes() in windows(original) for image, original in zip(out, X[:40], strict=True))


def test_every_offset_and_both_directions_are_drawn() -> None:
    known = windows(X[0])
    drawn = [known[image.numpy().tobytes()] for image in crop_flip(X[:1].expand(2000, -1, -1, -1), seeded(2))]
    assert {(r, c) for r, c, _ in drawn} == {(r, c) for r in range(9) for c in range(9)}
    assert 0.45 < sum(flip for _, _, flip in drawn) / len(drawn) < 0.55


def test_same_seed_same_images() -> None:
    assert torch.equal(crop_flip(X, seeded(3)), crop_flip(X, seeded(3)))
    assert not torch.equal(crop_flip(X, seeded(3)), crop_flip(X, seeded(4)))


def test_floats_are_augmented_alike() -> None:
    assert torch.equal(crop_flip(X.float(), seeded(5)), crop_flip(X, seeded(5)).float())


@pytest.mark.parametrize(("augmentation", "changed"), [("none", False), ("crop_flip", True)])
def test_a_dataset_augments_as_it_was_told(augmentation: str, changed: bool) -> None:
    y = torch.arange(200) % 2
    dataset = Dataset(X, y, X, y, augmentation=augmentation)  # type: ignore[arg-type]
    before = X.clone()
    assert torch.equal(dataset.augment(X, seeded(6)), X) != changed
    assert torch.equal(X, before)

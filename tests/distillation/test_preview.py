"""The picture of a set."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from matplotlib.axes import Axes
from torch import Tensor

from ddray.distillation import DistilledSet
from ddray.distillation.preview import caption, draw, drawable, pictures
from ddray.distillation.run import artefact

from .problems import distiller


@pytest.fixture(scope="module")
def made() -> DistilledSet:
    return artefact(distiller())


def shown(made: DistilledSet, inputs: Tensor) -> Tensor:
    return pictures(replace(made, inputs=inputs))


def test_the_middle_98_per_cent_of_values_are_spread_over_black_to_white(made: DistilledSet) -> None:
    values = torch.randperm(101, generator=torch.Generator().manual_seed(0)).float()
    picture = shown(made, values.view(1, 1, 1, 1, 101)).flatten()
    torch.testing.assert_close(picture, ((values - 1) / 98).clamp(0, 1))
    assert picture[values == 1].item() == 0 and picture[values == 99].item() == 1


def test_every_image_is_spread_by_its_own_values_and_its_channels_alike(made: DistilledSet) -> None:
    image = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    inputs = torch.stack([image, 100 * image + 1000, 0.01 * image - 3])
    found = shown(made, inputs[:, None])
    assert found.shape == (3, 1, 3, 5, 7)
    for picture in found[:, 0]:
        torch.testing.assert_close(picture, found[0, 0], rtol=0, atol=1e-4)
    between = (found[0, 0] > 0) & (found[0, 0] < 1)
    assert found[0, 0][between].argsort().equal(image[between].argsort())


def test_an_image_of_one_value_is_a_picture(made: DistilledSet) -> None:
    assert torch.isfinite(shown(made, torch.full((1, 1, 1, 4, 4), 7.0))).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_drawn_upright_in_reading_order(
    channels: int, made: DistilledSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canvases = []
    monkeypatch.setattr(Axes, "imshow", lambda _, canvas, **__: canvases.append(torch.from_numpy(canvas)))
    inputs = torch.randn(2, 3, channels, 4, 5, generator=torch.Generator().manual_seed(0))
    drawn = replace(made, inputs=inputs)
    draw(drawn, tmp_path / "set.png")
    windows = canvases[0].unfold(0, 4, 1).unfold(1, 5, 1)
    places = []
    for picture in pictures(drawn).flatten(0, 1):
        (place,) = (windows == picture.expand(3, -1, -1)).flatten(2).all(-1).nonzero().tolist()
        places.append(place)
    assert places == sorted(places)
    assert len({row for row, _ in places}) == 2 and len({column for _, column in places}) == 3


def test_a_caption_names_the_three_largest_weights() -> None:
    names = ("ant", "bee", "cat", "dog", "eel")
    assert caption(torch.tensor([0.1, 0.7, -2.0, 0.44, -0.04]), names) == "bee: 0.7\ndog: 0.4\nant: 0.1"
    assert caption(torch.tensor([-0.04, 1.0, -3.0]), names[:3]) == "bee: 1.0\nant: 0.0\ncat: -3.0"


def test_a_caption_of_one_logit_is_of_the_second_class() -> None:
    assert caption(torch.tensor([1.26]), ("no", "yes")) == "yes: 1.3"


def test_every_picture_has_the_caption_of_its_own_label(
    made: DistilledSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    monkeypatch.setattr(Axes, "text", lambda _, *given, **__: written.append(given[2]))
    labels = torch.arange(18.0).view(2, 3, 3)
    draw(replace(made, labels=labels), tmp_path / "set.png")
    assert written == [caption(label, made.manifest.dataset.class_names) for label in labels.flatten(0, 1)]


@pytest.mark.parametrize(
    ("shape", "can"), [((1, 8, 8), True), ((3, 8, 8), True), ((2, 8, 8), False), ((12,), False), ((8, 8), False)], ids=str
)
def test_images_of_one_or_three_channels_can_be_drawn(shape: tuple[int, ...], can: bool) -> None:
    assert drawable(shape) == can

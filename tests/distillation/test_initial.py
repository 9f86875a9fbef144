"""Where a set starts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ddray.distillation.config import DistillConfig
from ddray.distillation.initial import initial_tensors
from ddray.distillation.labels import sample_classes
from ddray.distillation.real import class_averages

from .problems import blobs

DATA, CLASSES = blobs(), sample_classes((2, 0), 2)


def start(seed: int = 0, **settings: Any) -> dict[str, Tensor]:
    config = DistillConfig.from_flat({"synthetic.steps": 3} | {key.replace("__", "."): v for key, v in settings.items()})
    return initial_tensors(config, DATA, CLASSES, 3, 7, seed)


@pytest.mark.parametrize(
    ("part", "settings"),
    [("inputs", {}), ("inputs", {"synthetic__init": "real"})]
    + [("labels", {"labels__init": init}) for init in ("normal", "uniform", "bernoulli", "orthogonal")],
    ids=str,
)
def test_the_seed_decides_what_is_drawn(part: str, settings: dict[str, Any]) -> None:
    first, again, other = (start(seed, **settings)[part] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


def test_inputs_and_labels_are_drawn_apart() -> None:
    made = start(labels__init="normal")
    assert not torch.equal(made["inputs"].flatten()[:12], made["labels"].flatten()[:12])


def test_inputs_begin_as_noise_of_the_spread_of_real_examples() -> None:
    inputs = start()["inputs"]
    assert inputs.shape == (3, 4, 1, 4, 4)
    assert inputs.mean().item() == pytest.approx(0, abs=0.2) and inputs.std().item() == pytest.approx(1, abs=0.1)


def test_inputs_begin_as_distinct_real_examples_of_the_class_of_their_sample() -> None:
    inputs, stored = start(synthetic__init="real")["inputs"], DATA.normalise(DATA.train.x)
    places = [int((stored == x).flatten(1).all(1).nonzero()) for x in inputs.flatten(0, 1)]
    assert DATA.train.y[places].tolist() == CLASSES.repeat(3).tolist()
    assert len(set(places)) == len(places)


def test_inputs_begin_as_the_average_of_the_class_of_their_sample() -> None:
    inputs = start(synthetic__init="average")["inputs"]
    assert torch.equal(inputs, class_averages(DATA, CLASSES, 3))
    assert inputs.is_contiguous()  # a step's own, to be learned apart from the others'


@pytest.mark.parametrize("learn", [(True, False), (False, True)])
def test_what_is_learned_asks_for_gradients(learn: tuple[bool, bool]) -> None:
    made = start(synthetic__learn=learn[0], labels__learn=learn[1])
    assert {name: value.requires_grad for name, value in made.items()} == dict(
        zip(("inputs", "labels", "rates"), (*learn, True), strict=True)
    )
    assert all(value.is_leaf for value in made.values())

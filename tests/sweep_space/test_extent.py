"""The largest trial of a space: by its ranges, and by what its constraints leave of them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddray.distillation.config import DistillConfig
from ddray.sweep.constraint import Problem
from ddray.sweep.extent import largest, least
from ddray.sweep.spec import SweepSpec, build

PROBLEM = Problem(classes=3, input_shape=(1, 8, 8))
WIDE = {
    "synthetic.steps": {"int": [1, 1000], "log": True},
    "synthetic.samples_per_class": {"int": [1, 200], "log": True},
    "outer.batch": {"int": [8, 64]},
}


def spec(search: dict[str, Any], *constraints: str) -> SweepSpec:
    return build("x", {"dataset": "digits", "arch": "LeNet", "search": search, "constraints": list(constraints)})


def sizes(config: DistillConfig) -> tuple[int, int]:
    return config.synthetic.steps, config.synthetic.samples_per_class


def test_without_constraints_every_number_is_at_its_end() -> None:
    assert sizes(largest(spec(WIDE), PROBLEM)) == (1000, 200)
    assert sizes(least(spec(WIDE))) == (1, 1)
    assert largest(spec(WIDE), PROBLEM).outer.batch == 64


@pytest.mark.parametrize(
    ("constraints", "expected"),
    [
        (["stored_samples <= 100"], (33, 1)),
        (["stored_samples <= 100", "inner_steps <= 6"], (1, 33)),
        (["stored_samples <= 700"], (233, 1)),
        (["inner_steps <= 6"], (2, 200)),
        (["stored_bytes <= 10000"], (12, 1)),
    ],
    ids=str,
)
def test_constraints_bound_it(constraints: list[str], expected: tuple[int, int]) -> None:
    found = largest(spec(WIDE, *constraints), PROBLEM)
    assert sizes(found) == expected and found.outer.batch == 64


def test_choices_of_sizes_count_as_well() -> None:
    search = {
        "synthetic.steps": {"choice": [4, 50, 20]},
        "synthetic.classes": {"choice": [None, [1], 2]},
        "labels.learn": {"choice": [True, False]},
    }
    assert largest(spec(search), PROBLEM).stored_samples(3) == 150
    found = largest(spec(search, "stored_samples <= 90"), PROBLEM)
    assert (found.synthetic.steps, found.stored_samples(3)) == (20, 60)


@given(bound=st.integers(3, 5000), steps=st.integers(1, 1000), samples=st.integers(1, 200))
def test_nothing_that_a_trial_may_be_is_twice_as_large(bound: int, steps: int, samples: int) -> None:
    found = largest(spec(WIDE, f"stored_samples <= {bound}"), PROBLEM)
    assert found.stored_samples(3) <= bound
    if 3 * steps * samples <= bound:
        assert 3 * steps * samples < 2 * found.stored_samples(3)

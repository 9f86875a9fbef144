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


def test_choices_of_anything_that_takes_memory_are_at_their_end() -> None:
    search: dict[str, Any] = {
        "inner.optimiser": {"choice": ["sgd", "adam", "momentum"]},
        "outer.batch": {"choice": [16, 4096, 512]},
        "outer.networks": {"choice": [1, 8]},
    }
    most = largest(spec(search), PROBLEM)
    assert (most.inner.optimiser, most.outer.batch, most.outer.networks) == ("adam", 4096, 8)
    few = least(spec(search))
    assert (few.inner.optimiser, few.outer.batch, few.outer.networks) == ("sgd", 16, 1)


@pytest.mark.parametrize(
    ("window", "seen"),
    [
        ({"int": [2, 10]}, 10),
        ({"choice": [2, 10]}, 10),
        ({"choice": [2, None]}, 30),
        ({"int": [2, 10], "when": {"inner.optimiser": "adam"}}, 30),
    ],
    ids=str,
)
def test_a_window_counts_where_every_trial_has_one(window: dict[str, Any], seen: int) -> None:
    search = {"inner.optimiser": {"choice": ["sgd", "adam"]}, "outer.window": window}
    assert largest(spec(search), PROBLEM).seen_steps == seen


def test_a_choice_that_another_parameter_depends_on_is_the_one_taken() -> None:
    search: dict[str, Any] = {
        "network.source": {"choice": ["random", "fixed"]},
        "network.starts": {"int": [1, 4], "when": {"network.source": "fixed"}},
    }
    assert largest(spec(search), PROBLEM).network.starts == 4


@given(bound=st.integers(3, 5000), steps=st.integers(1, 1000), samples=st.integers(1, 200))
def test_nothing_that_a_trial_may_be_is_twice_as_large(bound: int, steps: int, samples: int) -> None:
    found = largest(spec(WIDE, f"stored_samples <= {bound}"), PROBLEM)
    assert found.stored_samples(3) <= bound
    if 3 * steps * samples <= bound:
        assert 3 * steps * samples < 2 * found.stored_samples(3)

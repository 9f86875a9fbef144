"""What is told of every setting holds: its default is taken, and so is its range, and nothing beside it."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from ddray.distillation.config import DistillConfig, EngineConfig
from ddray.distillation.keys import parse, parse_assignment
from ddray.distillation.settings import GROUPS, Setting, list_settings
from ddray.errors import RequestError

ROWS = list_settings()
EACH = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.key)
ANY = ("text", "keys with values", "whole number, list of whole numbers, or null")
RANGES = [row for row in ROWS if "number" in row.allowed and row.allowed not in ANY]
CHOICES = [row for row in ROWS if "number" not in row.allowed and row.allowed not in ANY]


def given(key: str, value: Any) -> Any:
    """The setting as it is kept, if the value is taken."""
    if key.startswith("engine."):
        name = key.removeprefix("engine.")
        return parse(EngineConfig, {name: value}, "engine.").model_dump(mode="json")[name]
    more = {"network.source": "fixed"} if key == "network.starts" else {}
    return DistillConfig.from_flat({key: value, **more}).flat()[key]


def number(told: str) -> float:
    return float(told.replace(",", ""))


def ends(allowed: str) -> tuple[list[float], list[float]]:
    """The furthest values in a range that is told in words, and the nearest ones outside."""
    whole = allowed.startswith("whole")

    def beside(limit: float, towards: float) -> float:
        return int(limit + math.copysign(1, towards)) if whole else math.nextafter(limit, towards)

    inside, outside = [], []
    figure = r"(-?[\d,.]*\d)"
    for pattern, away, included in (
        (rf"{figure} to ", -math.inf, True),
        (rf" to {figure}", math.inf, True),
        (rf"at least {figure}", -math.inf, True),
        (rf"at most {figure}", math.inf, True),
        (rf"above {figure}", -math.inf, False),
        (rf"below {figure}", math.inf, False),
    ):
        for told in re.findall(pattern, allowed):
            limit = int(number(told)) if whole else number(told)
            inside.append(limit if included else beside(limit, -away))
            outside.append(beside(limit, away) if included else limit)
    return inside, outside


def choices(allowed: str) -> list[Any]:
    if allowed == "true or false":
        return [True, False]
    return re.split(r", or |, ", re.sub(r", or a word of ([\w/]+)", r", \1", allowed))


def test_every_setting_has_a_row_in_the_order_of_its_group() -> None:
    engine = [f"engine.{name}" for name in EngineConfig.model_fields]
    assert [row.key for row in ROWS] == [*DistillConfig().flat(), *engine]


@EACH
def test_every_setting_says_what_it_is_in_one_sentence(row: Setting) -> None:
    assert re.fullmatch(r"\S[^\n]{9,118}\.", row.description)


@EACH
def test_the_default_that_is_told_is_the_default_and_is_taken(row: Setting) -> None:
    assert given(row.key, row.default) == row.default
    everything = {**DistillConfig().flat(), **{f"engine.{k}": v for k, v in EngineConfig().model_dump(mode="json").items()}}
    assert row.default == everything[row.key]


@EACH
def test_the_default_in_a_table_can_be_given_as_it_stands(row: Setting) -> None:
    assert parse_assignment(f"{row.key}={row.default_text}") == (row.key, row.default)


@EACH
def test_null_is_taken_where_it_is_told_and_nowhere_else(row: Setting) -> None:
    if row.allowed.endswith(", or null"):
        assert given(row.key, None) is None
    else:
        with pytest.raises(RequestError):
            given(row.key, None)


@pytest.mark.parametrize("row", RANGES, ids=lambda row: row.key)
def test_the_ends_of_a_range_are_taken_and_what_is_just_outside_is_refused(row: Setting) -> None:
    inside, outside = ends(row.allowed)
    assert len(inside) == len(outside) == 2
    for value in inside:
        assert given(row.key, value) == value
    for value in outside:
        with pytest.raises(RequestError, match=re.escape(row.key)):
            given(row.key, value)


@pytest.mark.parametrize("row", CHOICES, ids=lambda row: row.key)
def test_choices_are_taken_and_nothing_else_is(row: Setting) -> None:
    for choice in choices(row.allowed):
        assert given(row.key, choice) == choice
    with pytest.raises(RequestError, match=re.escape(row.key)):
        given(row.key, "neither of them")


@pytest.mark.parametrize(
    ("key", "allowed"),
    [
        ("outer.steps", "whole number, 1 to 10,000,000"),
        ("outer.decay_factor", "number, above 0, at most 1"),
        ("labels.smoothing", "number, at least 0, below 1"),
        ("labels.shift", "number, -1,000,000 to 1,000,000"),
        ("outer.window", "whole number, 1 to 10,000, or null"),
        ("outer.clip", "number, above 0, at most 1,000,000, or null"),
        ("synthetic.classes", "whole number, list of whole numbers, or null"),
        ("synthetic.learn", "true or false"),
        ("network.args", "keys with values"),
        ("objective.kind", "classification"),
        ("inner.optimiser", "sgd, momentum, adam"),
        ("engine.outer_layout", "auto, blocked, or a word of BPXYTZL/MUVSD"),
        ("engine.device", "text"),
    ],
)
def test_what_is_allowed_is_told_in_words(key: str, allowed: str) -> None:
    assert {row.key: row.allowed for row in ROWS}[key] == allowed


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_has_its_own_settings_alone(group: str) -> None:
    assert list_settings(group) == [row for row in ROWS if row.key.startswith(f"{group}.")] != []


@pytest.mark.parametrize("group", ["outter", "", "outer.lr"])
def test_an_unknown_group_is_refused_with_those_that_there_are(group: str) -> None:
    with pytest.raises(RequestError, match=r"one of data, network, synthetic, labels, inner, outer, objective, engine$"):
        list_settings(group)

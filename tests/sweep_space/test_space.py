"""Searched parameters: what a space may say of one, and what Optuna is asked for."""

from __future__ import annotations

import math
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddray.errors import RequestError
from ddray.sweep.space import category, parse_search, suggest

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)
RULES = JSON | st.fixed_dictionaries(
    {},
    optional={
        "int": st.lists(st.integers() | st.floats(), max_size=3) | JSON,
        "float": st.lists(st.floats() | st.integers(), max_size=3) | JSON,
        "choice": st.lists(JSON, max_size=3),
        "log": st.booleans() | JSON,
        "when": st.dictionaries(st.sampled_from(["a", "b", "c"]), JSON, max_size=2),
    },
)


@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), RULES, max_size=3))
def test_any_rule_reads_or_is_refused_in_one_line(search: dict[str, Any]) -> None:
    try:
        parameters = parse_search(search, {"c": 1})
    except RequestError as error:
        assert error.key.startswith("search") and "\n" not in str(error)
        return
    assert {p.key for p in parameters} == set(search)
    for p in parameters:
        if p.kind == "choice":
            assert p.choices
        else:
            assert -math.inf < p.low < p.high < math.inf and (p.low > 0 or not p.log)


@given(
    kind=st.sampled_from(["int", "float"]),
    ends=st.lists(st.integers(-(10**9), 10**9), min_size=2, max_size=2, unique=True).map(sorted),
    log=st.booleans(),
)
def test_a_range_is_taken_as_it_is(kind: str, ends: list[int], log: bool) -> None:
    ends = [1 + abs(ends[0]), 2 + abs(ends[0]) + abs(ends[1])] if log else ends
    (parameter,) = parse_search({"a": {kind: ends, "log": log}}, {})
    assert (parameter.kind, list(parameter.extremes()), parameter.log) == (kind, ends, log)


@pytest.mark.parametrize(
    ("rule", "allowed"),
    [
        ({"float": [2, 2]}, "LOW below HIGH"), ({"float": [2, 1]}, "LOW below HIGH"),
        ({"float": [0, 1], "log": True}, "positive"), ({"int": [-1, 5], "log": True}, "positive"),
        ({"float": [math.nan, 1]}, "between"), ({"float": [0, math.inf]}, "between"), ({"int": [0, 10**400]}, "between"),
        ({"int": [1, 2.0]}, "whole numbers"), ({"int": [True, 5]}, "whole numbers"), ({"float": ["1", 2]}, "numbers"),
        ({"float": [1]}, "[LOW, HIGH]"), ({"float": 1}, "[LOW, HIGH]"), ({"choice": []}, "at least one"),
        ({"choice": [1, 2], "log": True}, "without log"), ({"choice": [1, 1]}, "differ"), ({"choice": [[1], "[1]"]}, "differ"),
        ({"int": [1, 2], "float": [1, 2]}, "{int: [LOW, HIGH]}"), ({"uniform": [1, 2]}, "{int: [LOW, HIGH]}"),
        ({"int": [1, 2], "step": 1}, "{int: [LOW, HIGH]}"), ({"int": [1, 2], "log": "yes"}, "{int: [LOW, HIGH]}"), (3, "{int"),
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_rule_is_refused_with_what_is_allowed(rule: Any, allowed: str) -> None:
    with pytest.raises(RequestError) as refusal:
        parse_search({"outer.lr": rule}, {})
    assert refusal.value.key == "search.outer.lr" and allowed in refusal.value.allowed


@pytest.mark.parametrize(
    ("when", "allowed"),
    [
        ({"nosuch": 1}, "searches or fixes"), ({"range": 1}, "a key with choices"), ({"kind": "z"}, "only ever one of"),
        ({"fixed": 2}, "only ever one of [1]"),
    ],
)  # fmt: skip
def test_a_wrong_condition_is_refused(when: dict[str, Any], allowed: str) -> None:
    search = {"a": {"int": [1, 2], "when": when}, "range": {"int": [1, 5]}, "kind": {"choice": ["x", "y"]}}
    with pytest.raises(RequestError) as refusal:
        parse_search(search, {"fixed": 1})
    assert refusal.value.key == "search.a.when" and allowed in refusal.value.allowed


def test_conditions_come_before_what_hangs_on_them() -> None:
    choice = {"choice": [True, False]}
    search = {"c": {**choice, "when": {"b": True}}, "b": {**choice, "when": {"a": True}}, "a": choice}
    assert [p.key for p in parse_search(search, {})] == ["a", "b", "c"]


@pytest.mark.parametrize("search", [{"a": "a"}, {"a": "b", "b": "a"}, {"a": "b", "b": "c", "c": "a"}], ids=str)
def test_conditions_in_a_circle_are_refused(search: dict[str, str]) -> None:
    rules = {key: {"choice": [True], "when": {on: True}} for key, on in search.items()}
    with pytest.raises(RequestError, match="circle") as refusal:
        parse_search(rules, {})
    assert refusal.value.value == sorted(search)


@pytest.mark.parametrize("learn", [True, False])
def test_a_parameter_is_asked_for_only_where_its_condition_holds(learn: bool) -> None:
    search = {
        "softmax": {"choice": [True, False], "when": {"learn": True}},
        "learn": {"choice": [True, False]},
        "deeper": {"int": [1, 3], "when": {"softmax": True}},
    }
    trial = optuna.trial.FixedTrial({"learn": learn, "softmax": True, "deeper": 2})
    values = suggest(parse_search(search, {}), {"fixed": 1}, trial)  # type: ignore[arg-type]
    assert values == (
        {"fixed": 1, "learn": True, "softmax": True, "deeper": 2} if learn else {"fixed": 1, "learn": False}
    )


def test_choices_of_any_kind_come_back_as_they_were_written() -> None:
    choices = [None, True, 2.5, "word", [1, 2], {"width": 8}]
    (parameter,) = parse_search({"a": {"choice": choices}}, {})
    for choice in choices:
        trial = optuna.trial.FixedTrial({"a": category(choice)})
        assert parameter.suggest(trial) == choice  # type: ignore[arg-type]

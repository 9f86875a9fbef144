"""Values of flags, parsed once: any text is read or refused in one line."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddray.cli import parse_rates
from ddray.distillation.config import DistillConfig
from ddray.distillation.keys import parse_assignment, split_engine
from ddray.errors import RequestError
from ddray.sweep.request import parse_duration

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("30m", 1800), ("1.5h", 5400), ("1e-3s", 0.001)]
)
def test_a_duration_has_a_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@given(st.text(max_size=12) | st.from_regex(r"\A[-+0-9.eEinfa_]{1,6}[smh]?\Z"))
def test_a_duration_is_positive_or_refused(text: str) -> None:
    try:
        assert 0 < parse_duration(text) < math.inf
    except RequestError as error:
        assert error.value == text and "\n" not in str(error)


@given(st.floats(min_value=0, exclude_min=True, allow_infinity=False))
def test_a_rate_is_read_back(rate: float) -> None:
    assert parse_rates(f"fixed:{rate!r}") == rate


@given(st.text(max_size=12) | st.from_regex(r"\A(fixed|recorded)?:?[-+0-9.eEinfa_]{0,6}\Z"))
def test_a_rate_is_positive_or_refused(text: str) -> None:
    try:
        assert 0 < parse_rates(text) < math.inf
    except RequestError as error:
        assert error.value == text and "\n" not in str(error)


@given(st.text())
def test_an_assignment_is_a_key_and_a_value_or_refused(text: str) -> None:
    try:
        key, _ = parse_assignment(text)
    except RequestError as error:
        assert error.key == "--set" and error.value == text
        assert "=" not in text or not text.split("=")[0].strip()
    else:
        assert key == text.split("=")[0].strip() != ""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("k=1", 1), ("k=1e-3", 0.001), ("k=true", True), ("k=True", True), ("k=None", None), ("k=null", None),
        ("k=[1, 2]", [1, 2]), ("k=one_hot", "one_hot"), ("k=a=b", "a=b"), ("k=", ""), (" k = 1 ", 1),
        ("k=" + 5000 * "9", 5000 * "9"), ("k=" + 100_000 * "[", 100_000 * "["),
    ],
    ids=lambda value: str(value)[:12],
)  # fmt: skip
def test_a_value_is_json_or_a_word(text: str, value: object) -> None:
    assert parse_assignment(text) == ("k", value)


def test_settings_of_the_engine_are_told_apart() -> None:
    assert split_engine(["outer.lr=1", "engine.threads=2"]) == ({"outer.lr": 1}, {"threads": 2})


@given(st.dictionaries(st.sampled_from(sorted(DistillConfig().flat())) | st.text(max_size=20), JSON, max_size=3))
def test_any_settings_make_a_configuration_or_are_refused_in_one_line(values: dict[str, object]) -> None:
    try:
        config = DistillConfig.from_flat(values)
    except RequestError as error:
        assert "\n" not in str(error)
    else:
        assert DistillConfig.from_flat(config.flat()) == config


@pytest.mark.parametrize(
    "values", [{"synthetic.steps": True}, {"synthetic.steps": "3"}, {"outer.lr": True}, {"synthetic.classes": True}]
)
def test_a_number_is_not_a_word_or_a_truth(values: dict[str, object]) -> None:
    with pytest.raises(RequestError, match="a number"):
        DistillConfig.from_flat(values)


def test_single_arguments_of_a_network_join_the_others() -> None:
    both = {"network.args": {"width": 3, "depth": 1}, "network.args.depth": 2}
    assert DistillConfig.from_flat(both).network.args == {"width": 3, "depth": 2}
    assert DistillConfig.from_flat(dict(reversed(both.items()))).network.args == {"width": 3, "depth": 2}
    with pytest.raises(RequestError, match="a mapping of arguments"):
        DistillConfig.from_flat({"network.args": 3, "network.args.depth": 2})

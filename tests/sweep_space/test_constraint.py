"""Limits on what a configuration costs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddray.data.sentences import Sentences
from ddray.data.text import corpus
from ddray.distillation.config import DistillConfig
from ddray.errors import RequestError
from ddray.sweep.constraint import QUANTITIES, Constraint, Problem, parse_constraint, stored_bytes

PROBLEM = Problem(classes=3, input_shape=(1, 4, 4))
CONFIG = DistillConfig.from_flat({"synthetic.steps": 2, "synthetic.epochs": 5, "synthetic.samples_per_class": 3})


@given(st.sampled_from(sorted(QUANTITIES)), st.floats(-1e300, 1e300))
def test_a_constraint_is_read_back(quantity: str, bound: float) -> None:
    assert parse_constraint(f" {quantity}<= {bound!r} ") == Constraint(quantity, bound)


@given(
    st.text()
    | st.from_regex(r"\A(stored_samples|inner_steps|x)? ?(<=|<|=)? ?[-+0-9.e_]{0,6}\Z")
    | st.integers()
    | st.none()
)
def test_anything_is_a_finite_bound_or_refused_in_one_line(text: object) -> None:
    try:
        constraint = parse_constraint(text)
    except RequestError as error:
        assert error.key == "constraints" and error.value == text and len(str(error).splitlines()) == 1
    else:
        assert constraint.quantity in QUANTITIES and math.isfinite(constraint.bound)


@pytest.mark.parametrize(
    "text", ["samples <= 3", "stored_samples >= 3", "stored_samples <= ", "3 <= stored_samples", 7]
)
def test_another_form_is_refused_with_what_is_allowed(text: object) -> None:
    with pytest.raises(RequestError, match="NAME <= NUMBER with NAME one of stored_samples, stored_bytes, inner_steps"):
        parse_constraint(text)


@pytest.mark.parametrize("bound", ["1e999", "-1e999"])
def test_an_infinite_bound_is_refused(bound: str) -> None:
    with pytest.raises(RequestError, match="a finite bound"):
        parse_constraint(f"inner_steps <= {bound}")


@pytest.mark.parametrize(
    ("quantity", "amount"), [("stored_samples", 18), ("inner_steps", 10), ("stored_bytes", 4 * (18 * (16 + 3) + 10))]
)
def test_quantities_are_what_the_file_holds(quantity: str, amount: int) -> None:
    assert QUANTITIES[quantity](CONFIG, PROBLEM) == amount
    assert Constraint(quantity, amount).violation(CONFIG, PROBLEM) == 0
    assert Constraint(quantity, amount - 1).violation(CONFIG, PROBLEM) == pytest.approx(1 / (amount - 1))
    assert Constraint(quantity, amount + 1).violation(CONFIG, PROBLEM) < 0


@pytest.mark.parametrize(
    ("settings", "shape"),
    [({}, 3 * 100), ({"embedding_dim": 7, "max_length": 5}, 5 * 7), ({"vectors": "{file}"}, 3 * 2),
     ({"vectors": "learned+{file}", "embedding_dim": 7}, 3 * 9)],
)  # fmt: skip
def test_bytes_of_sentences_are_those_of_their_own_vectors(
    settings: dict[str, object], shape: int, tmp_path: Path
) -> None:
    file = tmp_path / "v.txt"
    file.write_text("film 1 0\n", encoding="utf-8")
    texts = Sentences(("a fine film", "a dull film") * 20, ("good", "bad") * 20)
    problem = Problem.of(corpus("films", texts, None, texts))
    said = {f"data.{k}": v.format(file=file) if isinstance(v, str) else v for k, v in settings.items()}
    config = DistillConfig.from_flat({"synthetic.steps": 1, "synthetic.epochs": 5, **said})
    assert stored_bytes(config, problem) == 4 * (2 * (shape + 1) + 5)
    file.unlink()  # what a suggestion costs is not asked of files again
    assert stored_bytes(config, problem) == 4 * (2 * (shape + 1) + 5)


def test_a_violation_of_a_bound_of_zero_is_finite() -> None:
    assert Constraint("inner_steps", 0).violation(CONFIG, PROBLEM) == 10

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddray.distillation.config import DistillConfig
from ddray.distillation.keys import flatten, nest, parse_assignment
from ddray.errors import RequestError


def test_flat_and_back() -> None:
    config = DistillConfig.from_flat({"synthetic.steps": 4, "labels.softmax": True, "network.args": {"width": 8}})
    assert DistillConfig.from_flat(config.flat()) == config
    assert config.flat()["synthetic.steps"] == 4


def test_derived_quantities() -> None:
    config = DistillConfig.from_flat({"synthetic.steps": 2, "synthetic.epochs": 3, "synthetic.classes": [1, 4]})
    assert config.inner_steps == 6
    assert config.step_order() == [0, 1, 0, 1, 0, 1]
    assert config.stored_samples(10) == 4


@pytest.mark.parametrize(("chosen", "ids"), [(None, (0, 1, 2)), (2, (0, 1)), ([2, 0], (2, 0))])
def test_class_ids(chosen: object, ids: tuple[int, ...]) -> None:
    assert DistillConfig.from_flat({"synthetic.classes": chosen}).class_ids(3) == ids


@pytest.mark.parametrize("chosen", [0, 4, [], [0, 0], [3], [-1]])
def test_classes_that_the_dataset_lacks(chosen: object) -> None:
    with pytest.raises(RequestError, match=r"synthetic\.classes"):
        DistillConfig.from_flat({"synthetic.classes": chosen}).class_ids(3)


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("synthetic.stepz", 1, "known: synthetic.steps"),
        ("synthetics.steps", 1, "groups: data, network"),
        ("steps", 1, "groups:"),
        ("synthetic.steps.more", 1, "no such key"),
        ("synthetic.steps", 0, "at least 1"),
        ("synthetic.steps", 1.5, "a whole number"),
        ("synthetic.lr", 0.0, "above 0"),
        ("synthetic.lr", float("nan"), "a finite number"),
        ("outer.lr", float("inf"), ""),
        ("labels.init", "onehot", "'one_hot', 'smoothed'"),
        ("network.law", "he", "'xavier'"),
        ("inner.optimiser", "lbfgs", "'sgd'"),
        ("network.starts", 3, "for network.source 'fixed'"),
    ],
)
def test_refusals_name_key_value_and_what_is_allowed(key: str, value: object, part: str) -> None:
    with pytest.raises(RequestError) as refusal:
        DistillConfig.from_flat({key: value})
    line = str(refusal.value)
    assert key.split(".")[0] in line and part in line and "\n" not in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a.b=1", ("a.b", 1)), ("a.b=0.5", ("a.b", 0.5)), ("a.b=true", ("a.b", True)), ("a.b=one_hot", ("a.b", "one_hot")),
     ("a.b=[0, 3]", ("a.b", [0, 3])), ("a.b=", ("a.b", "")), ("a.b=x=y", ("a.b", "x=y")),
     ("a.b=.5", ("a.b", 0.5)), ("a.b=5.", ("a.b", 5.0)), ("a.b=-1.e-3", ("a.b", -0.001)), ("a.b=1e-3", ("a.b", 0.001)),
     ("a.b=1.5.2", ("a.b", "1.5.2")), ("a.b=007", ("a.b", "007")), ("a.b=.", ("a.b", ".")), ("a.b=e5", ("a.b", "e5"))],
)  # fmt: skip
def test_assignments(text: str, expected: tuple[str, object]) -> None:
    assert parse_assignment(text) == expected


@given(st.text())
def test_any_text_is_an_assignment_or_refused(text: str) -> None:
    try:
        key, _ = parse_assignment(text)
    except RequestError:
        assert "=" not in text or not text.partition("=")[0].strip()
    else:
        assert text.partition("=")[0].strip() == key


KEYS = sorted(DistillConfig().flat())


@given(st.dictionaries(st.sampled_from(KEYS), st.none() | st.booleans() | st.integers() | st.floats() | st.text()))
def test_any_values_make_a_configuration_or_one_line(values: dict[str, object]) -> None:
    try:
        config = DistillConfig.from_flat(values)
    except RequestError as refusal:
        assert "\n" not in str(refusal).replace("\\n", "")
    else:
        assert DistillConfig.from_flat(config.flat()) == config


def test_nest_and_flatten_are_inverse() -> None:
    flat = DistillConfig().flat()
    assert flatten(DistillConfig.model_validate(nest(flat, DistillConfig))) == flat

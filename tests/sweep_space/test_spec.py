"""A search space's file: read strictly, told line and column where it is wrong."""

from __future__ import annotations

import pickle
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddray.data import Dataset, TextOptions
from ddray.data.sentences import Sentences
from ddray.data.text import corpus
from ddray.errors import RequestError
from ddray.sweep.space_yaml import parse_yaml
from ddray.sweep.spec import SPACES, SweepSpec, build, read

GOOD = {"dataset": "toy", "arch": "LeNet", "fixed": {"outer.batch": 9}, "search": {"outer.lr": {"float": [0.01, 0.1]}}}


@pytest.fixture(scope="module")
def toy() -> Dataset:
    x, y = np.random.default_rng(0).integers(0, 255, (60, 28, 28), dtype=np.uint8), np.arange(60) % 3
    return Dataset(x, y, x, y, name="toy")


def with_search(**search: object) -> SweepSpec:
    return build("toy", {**GOOD, "search": {key.replace("__", "."): rule for key, rule in search.items()}})


@pytest.mark.parametrize(
    ("key", "alike"),
    [
        ("outer.lr", True),
        ("synthetic.lr", True),
        ("network.gain", True),
        ("inner.momentum", False),
        ("synthetic.samples_per_class", False),
    ],
)
def test_steps_are_alike_unless_what_shapes_them_is_searched(key: str, alike: bool) -> None:
    rule = {"int": [1, 2]} if key == "synthetic.samples_per_class" else {"float": [0.1, 0.5]}
    assert with_search(**{key.replace(".", "__"): rule}).steps_alike == alike


@pytest.mark.parametrize("path", sorted(SPACES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_space_that_is_shipped_reads_and_opens_with_its_command(path: Path) -> None:
    assert read(path.stem).name == path.stem
    assert path.read_text(encoding="utf-8").startswith(f"# python run_search.py {path.stem}")


@given(st.text(max_size=200) | st.text(alphabet="ab:,[]{}&*!|>-?'\"# \n\t019e.", max_size=60))
def test_any_text_reads_or_is_refused_in_one_line(text: str) -> None:
    try:
        assert isinstance(parse_yaml(text, "space.yaml"), dict)
    except RequestError as error:
        assert error.value == "space.yaml" and len(str(error).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("a: [1\nb: 2", "line 2, column 2"), ("a: 1\nb: 2\na: 3", "line 3, column 1: 'a' stands twice"),
        ("a:\n  b: 1\n  b: 1", "line 3, column 3: 'b' stands twice"), ("a: 1\n\tb: 2", "line 2, column 1"),
        ("a: 1\n\nb: \x07", "line 3"), ("a: *b", "line 1, column 4"), ("a: !!python/name:os.system", "line 1, column 4"),
    ],
)  # fmt: skip
def test_where_it_does_not_parse_is_said(text: str, where: str) -> None:
    with pytest.raises(RequestError) as refusal:
        parse_yaml(text, "space.yaml")
    assert where in refusal.value.allowed


@pytest.mark.parametrize(
    "text", ["a: 2001-01-01", "a: 2001-13-01", "a: &x [*x]", "a: " + 5000 * "9", "a: " + 3000 * "["]
)
def test_what_is_no_plain_value_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="numbers, words, lists and mappings only"):
        parse_yaml(text, "space.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 0.001), ("-2E+4", -20000.0), ("1.5e-3", 0.0015), ("1.5e3", 1500.0), (".5e1", 5.0), (".5", 0.5), ("e3", "e3")],
)
def test_powers_of_ten_are_numbers(text: str, value: object) -> None:
    assert parse_yaml(f"lr: {text}", "space.yaml") == {"lr": value}


@pytest.mark.parametrize("keys", ["a: 1\n<<: {a: 2}", "x: &x {a: 1}\ny: {<<: *x, a: 2}"])
def test_a_merged_key_may_be_overridden(keys: str) -> None:
    assert parse_yaml(keys, "space.yaml")


def test_an_assigned_key_is_no_longer_searched() -> None:
    spec = build("toy", GOOD, ["outer.lr=0.5"])
    assert spec.parameters == () and spec.fixed["outer.lr"] == 0.5


def test_an_assignment_takes_away_what_it_rules_out() -> None:
    search = {
        "labels.learn": {"choice": [True, False]},
        "labels.softmax": {"choice": [True, False], "when": {"labels.learn": True}},
        "labels.scale": {"float": [1, 2], "when": {"labels.softmax": True}},
        "labels.shift": {"float": [0, 1], "when": {"labels.learn": False}},
    }
    assert [p.key for p in build("toy", {**GOOD, "search": search}, ["labels.learn=false"]).parameters] == [
        "labels.shift"
    ]
    kept = build("toy", {**GOOD, "search": search}, ["labels.learn=true"])
    assert [p.key for p in kept.parameters] == ["labels.softmax", "labels.scale"]


def test_fixed_settings_are_kept_as_they_are_understood() -> None:
    spec = build("toy", {**GOOD, "fixed": {"outer.steps": 1e2, "synthetic.classes": [0, 1]}})
    assert spec.fixed == {"outer.steps": 100, "synthetic.classes": [0, 1]}
    assert isinstance(spec.fixed["outer.steps"], int)


def test_a_space_is_rebuilt_from_what_a_study_keeps_of_it() -> None:
    spec = build("toy", {**GOOD, "scheduler": {"asha": {"grace_steps": 5}}}, ["outer.steps=50", "engine.threads=2"])
    again = build("toy", spec.identity())
    assert again.identity() == spec.identity() and again.parameters == spec.parameters
    assert again.file.engine.threads == 2


def test_size_and_resources_are_no_part_of_a_spaces_identity() -> None:
    larger = {**GOOD, "trials": 99, "resources": {"cpu": 3}}
    assert build("toy", larger).identity() == build("toy", GOOD).identity()


def test_looks_are_taken_at_the_grace_period_where_nothing_else_is_said() -> None:
    assert build("toy", {**GOOD, "scheduler": {"asha": {"grace_steps": 7}}}).fixed["outer.score_every"] == 7


def test_a_space_that_its_data_and_network_can_take_passes(toy: Dataset) -> None:
    with_search(synthetic__classes={"choice": [2, [0, 2]]}, synthetic__steps={"int": [1, 3]}).check(toy)


@pytest.mark.parametrize(
    ("key", "rule", "given"),
    [
        ("synthetic.classes", {"choice": [2, 4]}, 4),
        ("outer.batch", {"int": [8, 1000]}, 1000),
        ("outer.batch", {"choice": [1000, 8]}, 1000),
        ("network.args", {"choice": [{}, {"depth": 3}]}, {"depth": 3}),
    ],
)
def test_every_end_and_choice_is_held_against_the_data(key: str, rule: object, given: object, toy: Dataset) -> None:
    content = {**GOOD, "fixed": {}, "search": {"outer.batch": {"int": [8, 9]}, key: rule}}
    with pytest.raises(RequestError) as refusal:
        build("toy", content).check(toy)
    assert (refusal.value.key, refusal.value.value) == (f"search.{key}", given)


def test_a_searched_key_is_not_held_to_its_default(toy: Dataset) -> None:
    build(
        "toy", {**GOOD, "fixed": {}, "search": {"outer.batch": {"int": [8, 9]}, "outer.lr": {"float": [1, 2]}}}
    ).check(toy)


@pytest.mark.parametrize(
    ("constraint", "least"),
    [("stored_samples <= 5", "6"), ("inner_steps <= 3", "4"), ("stored_bytes <= 18903", "18904")],
)
def test_a_constraint_that_nothing_satisfies_says_the_least_there_is(constraint: str, least: str, toy: Dataset) -> None:
    search = {"synthetic.steps": {"int": [2, 9]}, "synthetic.epochs": {"choice": [5, 2]}}
    with pytest.raises(RequestError, match=f"the least is {least}$"):
        build("toy", {**GOOD, "search": search, "constraints": [constraint]}).check(toy)
    quantity = constraint.split()[0]
    build("toy", {**GOOD, "search": search, "constraints": [f"{quantity} <= {least}"]}).check(toy)


def test_the_fewest_classes_count_for_the_least(toy: Dataset) -> None:
    search = {"synthetic.classes": {"choice": [3, [1]]}}
    content = {**GOOD, "fixed": {"synthetic.steps": 1, "outer.batch": 9}, "search": search}
    build("toy", {**content, "constraints": ["stored_samples <= 1"]}).check(toy)


@pytest.mark.parametrize(
    ("search", "fixed"),
    [
        ({"outer__window": {"int": [1, 5]}}, {}),
        ({}, {"outer.window": 5}),
        ({"outer__window": {"choice": [None, 5]}}, {}),
    ],
)
def test_a_window_longer_than_the_shortest_unroll_is_refused(
    search: dict[str, object], fixed: dict[str, object], toy: Dataset
) -> None:
    rules = {"synthetic.steps": {"choice": [4, 2]}, **{key.replace("__", "."): rule for key, rule in search.items()}}
    good = {**GOOD, "fixed": {"outer.batch": 9, **fixed}, "search": rules}
    build("toy", good, ["synthetic.epochs=3"]).check(toy)
    with pytest.raises(RequestError, match=r"outer\.window: 5 .* at most the 4 inner steps"):
        build("toy", good, ["synthetic.epochs=2"]).check(toy)


def test_the_vectors_of_every_trial_are_found_before_any_runs(tmp_path: Path) -> None:
    files = [tmp_path / f"{dimension}d.txt" for dimension in (2, 3)]
    for dimension, file in zip((2, 3), files, strict=True):
        file.write_text("film " + " ".join(["1"] * dimension) + "\n", encoding="utf-8")
    texts = Sentences(("a fine film", "a dull film") * 20, ("good", "bad") * 20)
    films = corpus("films", texts, None, texts)
    search = {"data.vectors": {"choice": [str(file) for file in files]}, "data.vocab_size": {"choice": [4, 6]}}
    content = {"dataset": "films", "arch": "TextRNN2", "fixed": {"outer.batch": 9, "data.max_length": 3}, "search": search}
    spec = build("films", content)
    spec.check(films)
    digests = spec.vectors(films)
    assert len(digests) == 4 == len(set(digests.values()))
    for file in files:
        file.unlink()
    travelled = pickle.loads(pickle.dumps(films))
    for file, size in product(files, (4, 6)):
        assert travelled.table(TextOptions(vectors=str(file), vocab_size=size)).dimension == int(file.name[0])


@pytest.mark.parametrize(("when", "least"), [({}, 4 * (2 * (2 * 3 + 1) + 1)), ({"labels.learn": True}, 4 * (2 * (3 * 3 + 1) + 1))])
def test_the_shortest_sentences_and_narrowest_vectors_count_for_the_least(
    when: dict[str, object], least: int, tmp_path: Path
) -> None:
    for dimension in (3, 4):
        (tmp_path / f"{dimension}d.txt").write_text("film " + "1 " * dimension + "\n", encoding="utf-8")
    texts = Sentences(("a fine film", "a dull film") * 20, ("good", "bad") * 20)
    films = corpus("films", texts, None, texts)
    search = {
        "labels.learn": {"choice": [True, False]},
        "data.vectors": {"choice": [str(tmp_path / f"{dimension}d.txt") for dimension in (4, 3)]},
        "data.max_length": {"int": [2, 9], **({"when": when} if when else {})},
    }
    content = {"dataset": "films", "arch": "TextRNN1", "search": search}
    fixed = {"outer.batch": 9, "synthetic.steps": 1, "synthetic.epochs": 1}
    if when:  # where it is not searched, it is the three words that the texts have
        search["data.max_length"]["int"] = [5, 9]
    build("films", {**content, "fixed": fixed, "constraints": [f"stored_bytes <= {least}"]}).check(films)
    with pytest.raises(RequestError, match=f"the least is {least}$"):
        build("films", {**content, "fixed": fixed, "constraints": [f"stored_bytes <= {least - 1}"]}).check(films)

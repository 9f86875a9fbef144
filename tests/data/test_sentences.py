"""Texts and labels from SST's lines and trees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ddray.data.sentences import Sentences, read_lines_or_trees
from ddray.errors import RequestError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples of a property, each of which writes its file anew."""
    return tmp_path_factory.mktemp("sentences")


def sst(path: Path, content: str) -> Sentences:
    path.write_bytes(content.encode())
    return read_lines_or_trees(path)


def test_trees_and_lines(tmp_path: Path) -> None:
    content = "(3 (2 It) (4 (2 's) (3 (2 -LRB-) (2 8\u00a01\\/2))))\n4 a 'film , \u2028 b\r\n\n(0 bad)"
    expected = Sentences(("It 's ( 8\u00a01\\/2", "a 'film , \u2028 b", "bad"), ("3", "4", "0"))
    assert sst(tmp_path / "train.txt", content) == expected


@pytest.mark.parametrize("depth", [1, 100_000])
def test_a_deep_tree(tmp_path: Path, depth: int) -> None:
    deep = "(1 " * depth + "(2 word)" + ")" * depth
    assert sst(tmp_path / "t.txt", f"{deep}\n2 b\n") == Sentences(("word", "b"), ("1", "2"))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("(3", "1 bracket"),
        ("(3 (2 a)", "1 bracket"),
        ("(3 a))", "follows the tree's end"),
        ("(3 a) b", "follows the tree's end"),
        ("(3 a) (2 b)", "follows the tree's end"),
        ("()", "neither words nor nodes"),
        ("(3)", "neither words nor nodes"),
        ("((2 a) (2 b))", "no label"),
        ("(3 (2 a) b)", "'b' follows a node"),
        ("(3 a (2 b))", "a node follows a word"),
        ("3", "line 2 has no sentence"),
        ("3 ", "line 2 has no sentence"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as refused:
        sst(tmp_path / "t.txt", f"1 a\n{line}\n")
    assert "line 2" in str(refused.value) and "t.txt" in str(refused.value)


def test_sst_bytes_in_another_encoding_are_named(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes("1 a\n2 é\n".encode("latin-1"))
    with pytest.raises(RequestError, match="line 2 is not utf-8"):
        read_lines_or_trees(tmp_path / "t.txt")


Tree = tuple[str, Any]
tree_words = st.text(st.characters(codec="utf-8", exclude_categories=["Z", "C"], exclude_characters="()"), min_size=1)
leaves = st.tuples(tree_words, tree_words)
trees = st.recursive(leaves, lambda nodes: st.tuples(tree_words, st.lists(nodes, min_size=1, max_size=3)), max_leaves=8)


def shown(tree: Tree) -> str:
    label, inside = tree
    return f"({label} {inside if isinstance(inside, str) else ' '.join(map(shown, inside))})"


def words(tree: Tree) -> list[str]:
    return [tree[1]] if isinstance(tree[1], str) else [word for node in tree[1] for word in words(node)]


@given(st.lists(trees, min_size=2, max_size=4))
def test_trees_come_back(folder: Path, given_trees: list[Tree]) -> None:
    labels = tuple(label for label, _ in given_trees)
    assume(len(set(labels)) > 1)
    brackets = {"-LRB-": "(", "-RRB-": ")"}
    texts = tuple(" ".join(brackets.get(word, word) for word in words(tree)) for tree in given_trees)
    assert sst(folder / "trees.txt", "\n".join(map(shown, given_trees))) == Sentences(texts, labels)


@given(st.binary(max_size=60) | st.text("()12 a\n", max_size=40).map(str.encode))
def test_any_lines_are_read_or_refused(folder: Path, alien: bytes) -> None:
    (folder / "any.txt").write_bytes(alien)
    try:
        read_lines_or_trees(folder / "any.txt")
    except RequestError as refused:
        assert "any.txt" in str(refused) and "\n" not in str(refused)

"""Texts with a label each, and how a file of them is read: SST's here, a user's own table in `tables`."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ddray.errors import RequestError

_KEY = "dataset file"
# The ASCII white space alone: SST has words with a no-break space inside.
_TREE_TOKEN = re.compile(r"[()]|[^() \t\r\f\v]+")
_NO_TEXT = re.compile("[\0\ud800-\udfff]")  # halves of surrogate pairs come out of UTF-7, and fit into no file
_BRACKETS = {"-LRB-": "(", "-RRB-": ")"}


@dataclass(frozen=True)
class Sentences:
    """Texts as they were written, and the label of each as a word."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]


def read_lines_or_trees(path: Path) -> Sentences:
    """The sentences of a file in UTF-8 that has one a line, as SST has them; blank lines are passed over.

    A line is either `LABEL sentence`, or a tree in the Penn Treebank's brackets, `(3 (2 It) (4 works))`: the label is
    its root's, and the text its leaves with a space between, `-LRB-` and `-RRB-` being brackets.

    Raises:
        RequestError: a file that is not there, damaged or in another encoding, a malformed line, no sentences, or one
            label throughout; it names the file and, where there is one, the line, counted from 1.

    """
    lines = decoded(file_content(path), str(path)).split("\n")
    return collected(_sentence_lines(lines, str(path)), str(path), "line")


def file_content(path: Path) -> bytes:
    """The bytes of a file, unpacked if it is a `.gz`; a RequestError where it cannot be read."""
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix.lower() == ".gz" else data
    # A path with a NUL in it is a ValueError.
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise RequestError(_KEY, str(path), f"a file that can be read: {error}") from None


def decoded(data: bytes, source: str, encoding: str = "utf-8", advice: str = "") -> str:
    """Bytes as text without a byte order mark; a RequestError names `source` and the line that is not text."""
    try:
        content = data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = _line_of(data[: error.start].decode(encoding, errors="ignore"))
        raise RequestError(_KEY, source, f"line {line} is not {encoding}{advice}") from None
    alien = _NO_TEXT.search(content)
    if alien is not None:
        line, what = _line_of(content[: alien.start()]), "a NUL byte" if alien[0] == "\0" else "half a character"
        raise RequestError(_KEY, source, f"a file of text: line {line} has {what}, as {encoding} reads it")
    return content


def collected(rows: Iterable[tuple[int, str, str]], source: str, unit: str) -> Sentences:
    """Rows of a number, a text and a label, none of them empty; a RequestError calls the row by `unit` and number."""
    texts, labels = [], []
    for number, text, label in rows:
        for what, value in (("text", text), ("label", label)):
            if not value.strip():
                raise RequestError(_KEY, source, f"a {what} in every {unit}: that of {unit} {number} is empty")
        texts.append(text)
        labels.append(label)
    if not texts:
        raise RequestError(_KEY, source, "at least one example: it has none")
    if len(set(labels)) < 2:
        raise RequestError(_KEY, source, f"at least two classes: every label is {labels[0]!r}")
    return Sentences(tuple(texts), tuple(labels))


def _line_of(before: str) -> int:
    return 1 + before.replace("\r\n", "\n").replace("\r", "\n").count("\n")


def _sentence_lines(lines: Sequence[str], source: str) -> Iterator[tuple[int, str, str]]:
    for number, line in enumerate(lines, 1):
        stripped = line.strip(" \t\r\f\v")
        if not stripped:
            continue
        if stripped.startswith("("):
            try:
                label, words = _tree(stripped)
            except ValueError as error:
                allowed = f"a sentence or one whole tree a line: in line {number}, {error}"
                raise RequestError(_KEY, source, allowed) from None
            yield number, " ".join(words), label
            continue
        label, _, text = stripped.partition(" ")
        if not text.strip():
            raise RequestError(_KEY, source, f"lines `LABEL sentence` or trees: line {number} has no sentence")
        yield number, text.strip(" \t\r\f\v"), label


def _tree(line: str) -> tuple[str, list[str]]:
    """The root's label and the leaves of one tree; a ValueError says what is wrong with it.

    A loop over its brackets, not a recursion, which a deep tree would exhaust.
    """
    words: list[str] = []
    # What each open node has had so far: its label first, then either words or nodes.
    open_nodes: list[str] = []
    root, closed = "", False
    for token in _TREE_TOKEN.findall(line):
        if closed:
            raise ValueError(f"{token!r} follows the tree's end")
        if token == "(":
            if open_nodes and open_nodes[-1] not in ("label", "nodes"):
                raise ValueError("a node has no label" if open_nodes[-1] == "nothing" else "a node follows a word")
            open_nodes[-1:] = ["nodes"] if open_nodes else []
            open_nodes.append("nothing")
        elif token == ")":
            if open_nodes.pop() not in ("words", "nodes"):
                raise ValueError("a node has neither words nor nodes")
            closed = not open_nodes
        elif open_nodes[-1] == "nothing":
            root = root or token
            open_nodes[-1] = "label"
        elif open_nodes[-1] == "nodes":
            raise ValueError(f"the word {token!r} follows a node")
        else:
            open_nodes[-1] = "words"
            words.append(_BRACKETS.get(token, token))
    if not closed:
        raise ValueError(f"{len(open_nodes)} bracket(s) are not closed")
    return root, words

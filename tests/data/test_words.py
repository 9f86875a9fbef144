"""Texts cut into words, numbered by frequency, padded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddray.data.words import PADDING, UNKNOWN, Lines, WordTable, number_words, words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's a so-so film, isn't it?", ["it", "'s", "a", "so-so", "film", ",", "is", "n't", "it", "?"]),
        ("do n't -- `` it 's ''", ["do", "n't", "-", "-", "`", "`", "it", "'s", "'", "'"]),
        ("bad.<br /><br />Worse<BR>", ["bad", ".", "worse"]),
        ("1 < 2 in the U.S. 3.5", ["1", "<", "2", "in", "the", "u.s", ".", "3.5"]),
        ("Sjön är djup", ["sjön", "är", "djup"]),
        ("Sjo\u0308n e\u0301tait-il", ["sjön", "était-il"]),
        ("यह हिन्दी है, q\u0307's", ["यह", "हिन्दी", "है", ",", "q\u0307", "'s"]),
        ("... mr. `` ''70s -lrb- 1,000 don’t", [*"...", "mr", *".``''", "70s", "-", "lrb", "-", "1", ",", "000", "don", "’", "t"]),
        (" \n", []),
    ],
)
def test_how_a_text_is_cut(text: str, words: list[str]) -> None:
    assert words_of(text) == words


@given(st.text())
def test_cutting_what_was_cut_comes_to_an_end(text: str) -> None:
    words = words_of(text)
    assert all(words) and not any(character.isspace() for word in words for character in word)
    again = words_of(" ".join(words))
    assert words_of(" ".join(again)) == again


def test_words_are_numbered_by_frequency_in_the_training_examples_alone() -> None:
    splits = [("b a a", "held out out out"), ("a new b",)]
    words, numbered = number_words(splits, np.array([True, False]))
    assert words == ("<pad>", "<unk>", "a", "b")
    assert [(ids.tolist(), ends.tolist()) for ids, ends in numbered] == [
        ([3, 2, 2, 1, 1, 1, 1], [3, 7]),
        ([2, 1, 3], [3]),
    ]


def test_of_words_as_frequent_the_first_by_the_alphabet_comes_first() -> None:
    assert number_words([("b a", "c")], np.array([True, True]))[0] == ("<pad>", "<unk>", "a", "b", "c")


@given(st.lists(st.lists(st.integers(2, 9), max_size=6), min_size=1, max_size=5), st.integers(1, 8), st.integers(2, 12))
def test_padding_keeps_the_first_words(sentences: list[list[int]], length: int, words: int) -> None:
    ends = np.cumsum([len(s) for s in sentences])
    lines = Lines(
        np.array([word for sentence in sentences for word in sentence], np.int32),
        ends,
        np.zeros(len(sentences), np.int64),
    )
    padded = lines.padded(length, words)
    assert padded.dtype == np.int32 and padded.shape == (len(sentences), length)
    for row, sentence in zip(padded.tolist(), sentences, strict=True):
        kept = [word if word < words else UNKNOWN for word in sentence[:length]]
        assert row == kept + [PADDING] * (length - len(kept))
    assert [s.tolist() for s in lines.sentences()] == sentences


def test_a_table_is_known_by_its_words_and_its_vectors() -> None:
    vectors = np.eye(3, 2, dtype=np.float32)
    table = WordTable(("<pad>", "<unk>", "a"), vectors, "learned")
    assert table.dimension == 2
    assert table.digest() == WordTable(table.words, vectors.copy(), "elsewhere").digest()
    assert table.digest() != WordTable(("<pad>", "<unk>", "b"), vectors, "learned").digest()
    assert table.digest() != WordTable(table.words, vectors + 1, "learned").digest()

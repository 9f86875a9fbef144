"""Word vectors learned from texts."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddray.data import learned_vectors as module
from ddray.data.learned_vectors import learn_vectors
from ddray.errors import MissingExtra

Sentence = npt.NDArray[np.int32]
WORDS = 9
sentences = st.lists(
    st.lists(st.integers(0, WORDS - 1), max_size=8).map(lambda ids: np.array(ids, np.int32)), max_size=6
)


def plain_ppmi(corpus: Sequence[Sentence], window: int) -> npt.NDArray[np.float64]:
    """The definition, word by word."""
    counts = np.zeros((WORDS, WORDS))
    for sentence in corpus:
        for i, word in enumerate(sentence):
            for j, other in enumerate(sentence):
                if i != j and abs(i - j) <= window and word > 1 and other > 1:
                    counts[word, other] += 1
    total = counts.sum(1)
    smoothed = total**0.75
    ppmi = np.zeros((WORDS, WORDS))
    for w, c in zip(*counts.nonzero(), strict=True):
        joint, word, context = counts[w, c] / counts.sum(), total[w] / counts.sum(), smoothed[c] / smoothed.sum()
        ppmi[w, c] = max(0.0, math.log(joint / (word * context)))
    return ppmi


@given(sentences, st.integers(1, 4))
def test_ppmi_is_that_of_the_definition(corpus: list[Sentence], window: int) -> None:
    ppmi = module._ppmi(module._counts(corpus, WORDS, window)).toarray()
    assert np.allclose(ppmi, plain_ppmi(corpus, window)[2:, 2:], atol=1e-12)


@given(sentences, st.integers(1, 12), st.integers(1, 4))
def test_learned_vectors_have_their_shape_and_scale(corpus: list[Sentence], dimension: int, window: int) -> None:
    vectors = learn_vectors(corpus, WORDS, dimension, window=window)
    assert vectors.shape == (WORDS, dimension) and vectors.dtype == np.float32 and np.isfinite(vectors).all()
    assert not vectors[:2].any() and np.array_equal(vectors, learn_vectors(corpus, WORDS, dimension, window=window))
    running = np.concatenate([*corpus, np.zeros(0, np.int32)])
    components = vectors[running[running > 1]].astype(float)
    if vectors.any():
        assert np.sqrt((components**2).mean()) == pytest.approx(1, rel=1e-5)


@given(sentences)
def test_learned_vectors_are_the_root_of_the_ppmi(corpus: list[Sentence]) -> None:
    ppmi = plain_ppmi(corpus, 10)[2:, 2:]
    vectors = learn_vectors(corpus, WORDS, WORDS)[2:].astype(float)
    left, values, _ = np.linalg.svd(ppmi)
    expected = left * values @ left.T  # U S U', which no sign or order of the columns alters
    if ppmi.any():
        scale = np.trace(vectors @ vectors.T) / np.trace(expected)
        assert np.allclose(vectors @ vectors.T, scale * expected, atol=1e-4 * scale * np.trace(expected))


def zipf(size: int) -> list[Sentence]:
    draw = np.random.default_rng(0)
    ids = np.minimum(draw.zipf(1.2, (400, 40)) + 1, size - 1 - draw.integers(0, size // 2, (400, 40)))
    return list(ids.astype(np.int32))


def test_a_large_vocabulary_is_decomposed_as_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = zipf(600)
    dense = learn_vectors(corpus, 600, 20)
    monkeypatch.setattr(module, "_SMALL", 0)
    sparse = learn_vectors(corpus, 600, 20)
    assert np.array_equal(sparse, learn_vectors(corpus, 600, 20)) and np.allclose(sparse, dense, atol=1e-3)


def test_neighbours_of_the_same_words_are_alike() -> None:
    # 2 and 3 are both found between 4 and 5; 6 between 7 and 8.
    corpus = [np.array(ids, np.int32) for ids in ([4, 2, 5], [4, 3, 5], [7, 6, 8])]
    two, three, six = learn_vectors(corpus, WORDS, 7)[[2, 3, 6]]
    assert two @ three > 0.99 * two @ two > 0 and abs(two @ six) < 1e-5


def test_words_in_two_sentences_are_no_neighbours() -> None:
    assert not learn_vectors([np.array([word], np.int32) for word in (2, 3, 4, 2, 3)], WORDS, 3).any()


@pytest.mark.parametrize("words", [2, 3])
def test_a_vocabulary_of_nothing(words: int) -> None:
    assert learn_vectors([np.array([0, 1], np.int32)], words, 4).shape == (words, 4)


def test_learning_needs_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    with pytest.raises(MissingExtra, match="scipy"):
        learn_vectors([np.array([2, 3], np.int32)], WORDS, 3)

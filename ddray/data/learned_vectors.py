"""Word vectors learned from the training texts."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ddray.errors import MissingExtra

_FIRST_WORD = 2  # the numbers before it stand for padding and for an unknown word
_SMOOTHING = 0.75
_SMALL = 1000  # words up to which a dense decomposition takes a second, and works at any rank

Matrix = npt.NDArray[np.float64]


def learn_vectors(
    sentences: Sequence[npt.NDArray[np.int32]], words: int, dimension: int, *, window: int = 10
) -> npt.NDArray[np.float32]:
    """Word vectors from the texts alone: the singular vectors of the positive pointwise mutual information of word pairs.

    After Levy, Goldberg and Dagan, "Improving Distributional Similarity with Lessons Learned from Word Embeddings" (TACL
    2015): contexts smoothed by 0.75, no shift, U·S^0.5. The same texts give the same vectors on the same machine.

    Args:
        sentences: numbers of words, [length] each: 0 is padding, 1 an unknown word, which takes its place in the sentence
            but counts as nobody's neighbour.
        words: V, the size of the table; every number is below it.
        dimension: D; a vocabulary that does not yield so many has zeros in the columns that are left.
        window: two words count as neighbours up to this many positions apart, whatever the distance.

    Returns:
        [V, D], rows 0 and 1 zero, as are those of words without a neighbour; scaled by one constant so that over the
        running words a component has a root mean square of 1.

    Raises:
        MissingExtra: scipy is not installed.

    """
    counts = _counts(sentences, words, window)
    vectors = np.zeros((words, dimension), np.float32)
    ppmi = _ppmi(counts)
    # Without a pair of words that are neighbours more often than by chance, there is nothing to learn.
    if ppmi.nnz:
        rows = _decomposed(ppmi, dimension)
        vectors[_FIRST_WORD:] = rows / _root_mean_square(rows, sentences)
    return vectors


def _counts(sentences: Sequence[npt.NDArray[np.int32]], words: int, window: int) -> Any:
    """How often two words are neighbours, a symmetric sparse matrix [V - 2, V - 2] of the words from the first on."""
    sparse = _scipy("sparse")
    # As many places of padding between two sentences as keep them from being each other's neighbours.
    gap = np.zeros(window, np.int32)
    ids = np.concatenate([part for sentence in sentences for part in (sentence, gap)] or [gap])
    size = words - _FIRST_WORD
    one_way = sparse.csr_array((size, size), dtype=np.float64)
    for distance in range(1, window + 1):
        left, right = ids[:-distance], ids[distance:]
        both = (left >= _FIRST_WORD) & (right >= _FIRST_WORD)
        places = (left[both] - _FIRST_WORD, right[both] - _FIRST_WORD)
        weights = np.ones(len(places[0]))
        one_way = one_way + sparse.coo_array((weights, places), shape=(size, size)).tocsr()
    return (one_way + one_way.T).tocsr()


def _ppmi(counts: Any) -> Any:
    """max(0, log(P(w, c) / (P(w) P'(c)))) with P'(c) in proportion to the 0.75th power of the context's count."""
    total = np.asarray(counts.sum(axis=1)).ravel()
    smoothed = total**_SMOOTHING
    rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    ppmi = counts.copy()
    ppmi.data = np.maximum(0, np.log(counts.data * smoothed.sum() / (total[rows] * smoothed[counts.indices])))
    ppmi.eliminate_zeros()
    return ppmi


def _decomposed(matrix: Any, dimension: int) -> Matrix:
    """U·S^0.5 of a truncated singular value decomposition [n, D], the largest first, with zeros beyond the rank."""
    size = matrix.shape[0]
    if size <= max(dimension, _SMALL):
        left, values, _ = np.linalg.svd(matrix.toarray())
    else:
        start = np.random.default_rng(0).standard_normal(size)
        left, values, _ = _scipy("sparse.linalg").svds(matrix, k=dimension, v0=start, return_singular_vectors="u")
    order = np.argsort(-values, kind="stable")[:dimension]
    left, values = left[:, order], values[order]
    # Beyond the rank, a singular vector is any vector.
    left = left * (values > values.max(initial=0) * size * np.finfo(np.float64).eps)
    # Which way a singular vector points is arbitrary: its largest component is to be positive.
    signs = np.where(left[np.abs(left).argmax(axis=0), np.arange(left.shape[1])] < 0, -1.0, 1.0)
    scaled = left * signs * np.sqrt(np.abs(values))
    return cast(Matrix, np.pad(scaled, ((0, 0), (0, dimension - scaled.shape[1]))))


def _root_mean_square(rows: Matrix, sentences: Sequence[npt.NDArray[np.int32]]) -> float:
    """Of a component, over the words in the sentences that have a row."""
    often = np.bincount(np.concatenate(sentences), minlength=len(rows) + _FIRST_WORD)[_FIRST_WORD:]
    return float(np.sqrt(often @ (rows**2).mean(axis=1) / often.sum()))


def _scipy(module: str) -> Any:
    try:
        return importlib.import_module(f"scipy.{module}")
    except ImportError as error:
        raise MissingExtra("scipy", "learning word vectors") from error

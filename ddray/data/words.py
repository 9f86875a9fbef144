"""Words: how a text is cut into them, and the vectors that they are shown as."""

from __future__ import annotations

import hashlib
import re
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import numpy.typing as npt

PADDING, UNKNOWN = 0, 1
"""Word numbers of what fills a short sentence up, and of a word that the vocabulary lacks."""
SPECIAL = ("<pad>", "<unk>")

_LINE_BREAK = re.compile(r"<br\s*/?>")
# Before an apostrophe as the Penn treebank cuts: do n't, it 's; words with hyphens or dots inside stay whole; signs stand alone.
_WORD = r"\w+(?=n't\b)|n't\b|'(?:s|re|ve|ll|d|m)\b|\w+(?:[-.]\w+)*|[^\w\s]"
_ASCII_WORD = re.compile(_WORD)


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case, accents composed (NFC).

    `n't`, `'s`, `'re`, `'ve`, `'ll`, `'d` and `'m` are cut off as words of their own; hyphens and dots stay inside a word; every
    other sign is a word by itself. So are the signs of what a treebank keeps together: `...`, `--`, "``", `-lrb-`, the
    last dot of `u.s.`, the comma of `1,000`.
    """
    text = _LINE_BREAK.sub(" ", text.lower())
    return _ASCII_WORD.findall(text) if text.isascii() else _any_word().findall(unicodedata.normalize("NFC", text))


@cache
def _any_word() -> re.Pattern[str]:
    """The same, with a letter's combining marks, which are no letters to `re`, beside it."""
    marks = "".join(sign for sign in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(sign).startswith("M"))
    return re.compile(_WORD.replace(r"\w+", rf"\w[\w{marks}]*"))


@dataclass(frozen=True, eq=False)
class WordTable:
    """The vocabulary, and a frozen vector for each word.

    Attributes:
        words: V words, the most frequent first, after `<pad>` and `<unk>`.
        vectors: float32 [V, D]; zeros for those two and for a word that has none.
        source: where the vectors come from: "learned", or the name of the file.

    """

    words: tuple[str, ...]
    vectors: npt.NDArray[np.float32]
    source: str
    _digest: list[str] = field(default_factory=list, repr=False)

    @property
    def dimension(self) -> int:
        """D."""
        return int(self.vectors.shape[1])

    def digest(self) -> str:
        """SHA-256 over words and vectors."""
        if not self._digest:
            sha = hashlib.sha256("\n".join(self.words).encode())
            sha.update(np.ascontiguousarray(self.vectors).tobytes())
            self._digest.append(sha.hexdigest())
        return self._digest[0]


def side_by_side(parts: Sequence[WordTable], ids: npt.NDArray[np.int32]) -> WordTable:
    """Tables of the same words as one, each scaled so that over the running words `ids` a component has a root mean square of 1."""
    vectors = np.concatenate([part.vectors / _root_mean_square(part.vectors, ids) for part in parts], axis=1)
    return WordTable(parts[0].words, vectors, "+".join(part.source for part in parts))


def _root_mean_square(vectors: npt.NDArray[np.float32], ids: npt.NDArray[np.int32]) -> np.float32:
    often = np.bincount(ids[ids < len(vectors)], minlength=len(vectors)).astype(np.float64)
    often[~vectors.any(axis=1)] = 0
    if not often.any():  # texts too short to learn anything from: zeros stay zeros
        return np.float32(1)
    return np.float32(np.sqrt(often @ (vectors.astype(np.float64) ** 2).mean(axis=1) / often.sum()))


@dataclass(frozen=True, eq=False)
class Lines:
    """Sentences of a split as numbers of words.

    Attributes:
        ids: int32, the words of all sentences one after another, as places in the vocabulary.
        ends: int64 [N], where each sentence ends in `ids`.
        y: int64 [N], their classes.

    """

    ids: npt.NDArray[np.int32]
    ends: npt.NDArray[np.int64]
    y: npt.NDArray[np.int64]

    def lengths(self) -> npt.NDArray[np.int64]:
        """Words of each sentence, [N]."""
        return np.diff(self.ends, prepend=0)

    def sentences(self) -> list[npt.NDArray[np.int32]]:
        """Every sentence by itself."""
        return np.split(self.ids, self.ends[:-1])

    def padded(self, length: int, words: int) -> npt.NDArray[np.int32]:
        """Sentences [N, length], cut or filled up with padding on the right; a word from number `words` on is unknown."""
        places = (self.ends - self.lengths())[:, None] + np.arange(length)
        inside = places < self.ends[:, None]
        ids = self.ids[np.minimum(places, max(len(self.ids) - 1, 0))] if len(self.ids) else np.zeros_like(places)
        return np.where(inside, np.where(ids < words, ids, UNKNOWN), PADDING).astype(np.int32)


def number_words(
    splits: Sequence[Sequence[str]], training: npt.NDArray[np.bool_]
) -> tuple[tuple[str, ...], list[tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]]]:
    """Cut texts into words, and number these by how often they are in the training examples.

    Args:
        splits: texts; the first split holds the training examples.
        training: bool [N], which of the first split they are.

    Returns:
        The vocabulary, `<pad>` and `<unk>` first, then the most frequent word (of equals, the first by the alphabet); and for
        each split its word numbers and where each text ends. Words that no training example has are unknown.

    """
    provisional: dict[str, int] = {}
    numbered = [_provisional(texts, provisional) for texts in splits]
    ids, ends = numbered[0]
    counts = np.bincount(ids[np.repeat(training, np.diff(ends, prepend=0))], minlength=len(provisional))
    words = list(provisional)
    order = sorted(np.flatnonzero(counts).tolist(), key=lambda number: (-counts[number], words[number]))
    final = np.full(len(words), UNKNOWN, dtype=np.int32)
    final[order] = np.arange(len(SPECIAL), len(SPECIAL) + len(order))
    return (*SPECIAL, *(words[number] for number in order)), [(final[ids], ends) for ids, ends in numbered]


def _provisional(texts: Sequence[str], known: dict[str, int]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    parts = [np.array([known.setdefault(word, len(known)) for word in words_of(text)], np.int32) for text in texts]
    ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
    return np.concatenate(parts) if parts else np.zeros(0, np.int32), ends

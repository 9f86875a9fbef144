"""Text datasets: sentences kept as word numbers, and shown to a network as the vectors of their words.

A `Corpus` is what is loaded. How many words it knows, how long a sentence is and where the vectors come from are settings of a
distillation, so a corpus is not a dataset yet: `presented` makes it one. An input is then a matrix [length, dimension], for a
real sentence looked up in a frozen table, for a distilled one learned outright: no network holds the table.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ddray.data.dataset import Dataset, Split, TextOptions, held_out, share
from ddray.data.learned_vectors import learn_vectors
from ddray.data.sentences import Sentences
from ddray.data.vectors import find_vectors, glove_file, is_file, read_vectors
from ddray.data.words import PADDING, SPECIAL, UNKNOWN, Lines, WordTable, number_words, side_by_side
from ddray.errors import RequestError

WORDS, DIMENSION, LONGEST = 10_000, 100, 400
"""Where options are left open: the most words, the vectors' dimension, the most words of a sentence."""
_WHOLE = re.compile(r"-?\d{1,640}")  # longer ones Python need not read
_PRESENTED = 2  # datasets of other options to remember: a sweep's driver asks for the same one again and again


class TextDataset(Dataset):
    """A corpus as a distillation sees it: a `Dataset` of sentences int32 [N, L], shown as their vectors [N, L, D]."""

    expands = True

    def __init__(self, corpus: Corpus, table: WordTable, length: int, options: TextOptions) -> None:
        self.corpus, self.table, self.length, self.options = corpus, table, length, options
        self.name, self.class_names = corpus.name, corpus.class_names
        self.augmentation = "word_dropout" if options.word_dropout else "none"
        self.mean, self.std = (0.0,), (1.0,)
        self.train, self.validation, self.test = (
            Split(torch.from_numpy(lines.padded(length, len(table.words))), share(lines.y), [digest])
            for lines, digest in zip(corpus.lines, corpus.digests().values(), strict=True)
        )
        self.vectors = share(table.vectors)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Words of a sentence, and dimension of a vector."""
        return self.length, self.table.dimension

    def presented(self, options: TextOptions) -> Dataset:
        """Itself where it is presented so already."""
        return self if options == self.options else self.corpus.presented(options).to(self.train.x.device)

    def normalise(self, x: Tensor) -> Tensor:
        """Sentences int32 [..., L] as the vectors of their words, float32 [..., L, D]."""
        return torch.nn.functional.embedding(x, self.vectors)

    def augment(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Sentences int32 [N, L] with a share of their words, `word_dropout`, unknown; `generator` lives where x does."""
        if not self.options.word_dropout:
            return x
        dropped = torch.rand(x.shape, generator=generator, device=x.device) < self.options.word_dropout
        return torch.where(dropped & (x != PADDING), UNKNOWN, x)

    def to(self, device: torch.device | str) -> Dataset:
        """The dataset on a device; itself where it is there already."""
        moved = super().to(device)
        if isinstance(moved, TextDataset) and moved is not self:
            moved.vectors = self.vectors.to(device)
        return moved


@dataclass(frozen=True, eq=False)
class Corpus:
    """Sentences with their classes, as numbers of words.

    Attributes:
        name: what the dataset is called in records.
        class_names: K names.
        words: the whole vocabulary of the training split, `<pad>` and `<unk>` first, then the most frequent word.
        lines: the training, validation and test split.
        root: where word vectors are looked for first.

    """

    name: str
    class_names: tuple[str, ...]
    words: tuple[str, ...]
    lines: tuple[Lines, Lines, Lines]
    root: Path | None = None
    _tables: dict[tuple[Any, ...], WordTable] = field(default_factory=dict, repr=False)
    _sources: dict[tuple[str, int], list[str]] = field(default_factory=dict, repr=False)
    _presented: OrderedDict[TextOptions, TextDataset] = field(default_factory=OrderedDict, repr=False)
    _digests: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example where no option says otherwise."""
        return self.length(TextOptions()), DIMENSION

    def digests(self) -> dict[str, str]:
        """SHA-256 of every split: of its words and classes, whatever the options are."""
        if not self._digests:
            for name, lines in zip(("train", "validation", "test"), self.lines, strict=True):
                sha = hashlib.sha256("\n".join(self.words).encode())
                for array in (lines.ids, lines.ends, lines.y):
                    sha.update(np.ascontiguousarray(array).tobytes())
                self._digests[name] = sha.hexdigest()
        return self._digests

    def presented(self, options: TextOptions) -> TextDataset:
        """The dataset that the options ask for.

        Raises:
            RequestError: vectors that cannot be had, or of another dimension than was asked for.

        """
        if options not in self._presented:
            self._presented[options] = TextDataset(self, self.table(options), self.length(options), options)
            if len(self._presented) > _PRESENTED:
                self._presented.popitem(last=False)
        self._presented.move_to_end(options)
        return self._presented[options]

    def presented_with(self, table: WordTable, length: int, options: TextOptions) -> TextDataset:
        """The dataset by the words and vectors of a finished set, whatever could be had here."""
        place = {word: number for number, word in enumerate(table.words)}
        known = np.array([place.get(word, UNKNOWN) for word in self.words], np.int32)
        lines = [Lines(known[lines.ids], lines.ends, lines.y) for lines in self.lines]
        again = Corpus(self.name, self.class_names, table.words, (lines[0], lines[1], lines[2]), self.root)
        again._digests.update(self.digests())
        return TextDataset(again, table, length, options)

    def length(self, options: TextOptions) -> int:
        """Words of a sentence: as asked, else what 95 % of the training sentences fit in, at most 400."""
        if options.max_length is not None:
            return options.max_length
        return max(1, min(LONGEST, int(np.quantile(self.lines[0].lengths(), 0.95, method="higher"))))

    def shape(self, options: TextOptions) -> tuple[int, int]:
        """What `presented` would have as the shape of one example. Nothing is learned for it, and no file read twice."""
        names, size, dimension = self._asked(options)
        widths = (dimension if name == "learned" else self._part(name, size, dimension).dimension for name in names)
        return self.length(options), sum(widths)

    def table(self, options: TextOptions) -> WordTable:
        """The words and their vectors.

        `auto` takes GloVe's file of that dimension if it is on disk, else learns them. Several sources, joined by `+`, are
        laid side by side, each scaled so that over the running words a component has a root mean square of 1.
        """
        names, size, dimension = self._asked(options)
        parts = [self._part(name, size, dimension) for name in names]
        self._sources[options.vectors, dimension] = names
        source = "+".join(names)
        key = (source, size, tuple(part.dimension for part in parts))
        if len(parts) > 1 and key not in self._tables:
            self._tables[key] = side_by_side(parts, self.lines[0].ids)
        table = parts[0] if len(parts) == 1 else self._tables[key]
        if options.embedding_dim is not None and "learned" not in names and table.dimension != dimension:
            raise RequestError("data.embedding_dim", dimension, f"{table.dimension}, as the vectors in {source} have")
        return table

    def _asked(self, options: TextOptions) -> tuple[list[str], int, int]:
        """The sources that options name, of how many words and, where it is learned, of what dimension."""
        size, dimension = min(options.vocab_size or WORDS, len(self.words)), options.embedding_dim or DIMENSION
        vectors, glove = options.vectors, f"glove.6B.{dimension}d"
        if (vectors, dimension) in self._sources:  # where a corpus has travelled to, the files may not be
            return self._sources[vectors, dimension], size, dimension
        if vectors == "auto":
            vectors = "learned" if glove_file(glove, self.root) is None else glove
        return [vectors] if is_file(Path(vectors)) else vectors.split("+"), size, dimension  # a path may have a + in it

    def _part(self, source: str, size: int, dimension: int) -> WordTable:
        """The vectors of one source, found once: those from a file for fewer words are the first of those for more."""
        key = (source, size, dimension if source == "learned" else None)
        if key in self._tables:
            return self._tables[key]
        for (name, words, kind), table in self._tables.items():
            if name == source and kind is None and words > size and table.vectors[:size].any():
                return WordTable(self.words[:size], table.vectors[:size], table.source)
        self._tables[key] = self._learned(size, dimension) if source == "learned" else self._read(source, size)
        return self._tables[key]

    def _learned(self, size: int, dimension: int) -> WordTable:
        sentences = [np.where(ids < size, ids, UNKNOWN).astype(np.int32) for ids in self.lines[0].sentences()]
        return WordTable(self.words[:size], learn_vectors(sentences, size, dimension), "learned")

    def _read(self, source: str, size: int) -> WordTable:
        file = find_vectors(source, self.root)
        # A file may have rows of these names; padding and unknown words are zeros all the same.
        vectors, _ = read_vectors(file, self.words[len(SPECIAL) : size])
        return WordTable(self.words[:size], np.pad(vectors, ((len(SPECIAL), 0), (0, 0))), file.name)

    def __getstate__(self) -> dict[str, Any]:
        # Datasets are made again where they are needed; tables travel, so that all trials of a sweep have the same.
        return {**self.__dict__, "_presented": OrderedDict()}


RealData = Dataset | Corpus
"""What a distillation may be given."""


def corpus(
    name: str, train: Sentences, validation: Sentences | None, test: Sentences, *, root: Path | None = None,
    class_names: Sequence[str] = (),
) -> Corpus:  # fmt: skip
    """Number the words and classes of texts; without an official validation split, one is cut from training.

    Args:
        name: of the dataset.
        train: training texts; their labels are the classes.
        validation: the official validation split, if there is one.
        test: test texts.
        root: where word vectors are looked for first.
        class_names: the labels in their order; without them, that of numbers or of the alphabet.

    Raises:
        RequestError: a label that training lacks, a single class, or too few texts to cut a validation split from.

    """
    names = tuple(class_names) or in_order(train.labels)
    parts = [part for part in (train, validation, test) if part is not None]
    classes = [_classes(name, part, names) for part in parts]
    kept = np.ones(len(classes[0]), bool)
    if validation is None:
        kept = ~held_out(torch.from_numpy(classes[0]), "dataset", name).numpy()
    words, numbered = number_words([part.texts for part in parts], kept)
    lines = [Lines(ids, ends, y) for (ids, ends), y in zip(numbered, classes, strict=True)]
    if validation is None:
        lines[:1] = [_chosen(lines[0], kept), _chosen(lines[0], ~kept)]
    return Corpus(name, names, words, (lines[0], lines[1], lines[2]), root)


def in_order(labels: Sequence[str]) -> tuple[str, ...]:
    """Distinct labels: whole numbers by their size, words by the alphabet."""
    distinct = set(labels)
    if not all(map(_WHOLE.fullmatch, distinct)):
        return tuple(sorted(distinct))
    return tuple(sorted(distinct, key=lambda label: (int(label), label)))  # 1 and 01 are two labels


def _classes(name: str, part: Sentences, names: tuple[str, ...]) -> npt.NDArray[np.int64]:
    place = {label: number for number, label in enumerate(names)}
    if len(names) < 2:
        raise RequestError("dataset", name, f"two classes or more; every label is {names[0]!r}")
    unknown = sorted(set(part.labels) - set(names))
    if unknown:
        raise RequestError("dataset", name, f"labels that the training texts have; {unknown[0]!r} is not among them")
    return np.array([place[label] for label in part.labels], np.int64)


def _chosen(lines: Lines, members: npt.NDArray[np.bool_]) -> Lines:
    ids = lines.ids[np.repeat(members, lines.lengths())]
    return Lines(ids, np.cumsum(lines.lengths()[members]), lines.y[members])

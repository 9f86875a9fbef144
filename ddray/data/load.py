"""Datasets by name, and a user's own from a file."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from ddray.data.dataset import Dataset, DatasetInfo
from ddray.data.files import data_root
from ddray.data.images import IMAGES, read_npz
from ddray.data.sentences import Sentences
from ddray.data.splits import stratified_share
from ddray.data.tables import Source, parse_source, read_table
from ddray.data.text import Corpus, corpus, in_order
from ddray.data.text_sets import imdb, sst5, trec
from ddray.errors import RequestError

_SPLIT_SEED = 20181127
_TEST_SHARE = 0.2
_FEELINGS = ("0", "1", "2", "3", "4"), ("very negative", "negative", "neutral", "positive", "very positive")


def load(name: str | Path, root: Path | str | None = None) -> Dataset | Corpus:
    """Load a dataset by name, or a user's own from a file.

    Args:
        name: one of `available()`; or the path of an `.npz` with arrays train_x, train_y, test_x, test_y and, if wanted,
            val_x, val_y, class_names, mean, std (see `Dataset`); or `csv:PATH?text=COLUMN&label=COLUMN[&test=PATH]` for
            texts in a `.csv`, `.tsv` or `.parquet` file, of which a stratified 20 % is the test without a test file.
        root: where to look first, in torchvision's and torchtext's layout; never written to. Default: the environment
            variable `DDRAY_DATA`. What is not there is looked for in ddray's own cache, and downloaded into it.

    Returns:
        Images as a `Dataset`; texts as a `Corpus`, which the settings of a distillation make a dataset.

    Raises:
        RequestError: an unknown name, damaged files, or files that are neither on disk nor to be had.

    """
    name = str(name)
    if name.endswith(".npz"):
        return read_npz(Path(name))
    if name.startswith("csv:"):
        return _table(name, parse_source(name), data_root(root))
    if name not in _LOADERS:
        kinds = "the path of an .npz file, or csv:PATH?text=COLUMN&label=COLUMN"
        raise RequestError("dataset", name, f"choose one of {', '.join(_LOADERS)}, {kinds}")
    return _LOADERS[name][1](data_root(root))


def available() -> list[DatasetInfo]:
    """The datasets that have a name here, without looking at any file."""
    return [info for info, _ in _LOADERS.values()]


def _table(name: str, source: Source, root: Path | None) -> Corpus:
    train = read_table(source.path, source.text, source.label, source.encoding)
    if source.test is not None:
        return corpus(name, train, None, read_table(source.test, source.text, source.label, source.encoding), root=root)
    place = {label: number for number, label in enumerate(in_order(train.labels))}
    classes = torch.tensor([place[label] for label in train.labels])
    test = stratified_share(classes, _TEST_SHARE, torch.Generator().manual_seed(_SPLIT_SEED)).tolist()
    return corpus(name, _members(train, [not t for t in test]), None, _members(train, test), root=root)


def _members(sentences: Sentences, chosen: list[bool]) -> Sentences:
    kept = [index for index, inside in enumerate(chosen) if inside]
    return Sentences(tuple(sentences.texts[i] for i in kept), tuple(sentences.labels[i] for i in kept))


def _imdb(root: Path | None) -> Corpus:
    return corpus("IMDB", *imdb(root), root=root, class_names=("neg", "pos"))


def _sst5(root: Path | None) -> Corpus:
    numbers, names = _FEELINGS
    train, validation, test = (
        None if part is None else Sentences(part.texts, tuple(names[numbers.index(label)] for label in part.labels))
        for part in sst5(root)
    )
    assert train is not None and test is not None
    return corpus("SST5", train, validation, test, root=root, class_names=names)


def _trec(root: Path | None, *, fine: bool) -> Corpus:
    return corpus("TREC50" if fine else "TREC6", *trec(root, fine=fine), root=root)


_LOADERS: dict[str, tuple[DatasetInfo, Callable[[Path | None], Dataset | Corpus]]] = {
    **IMAGES,
    "IMDB": (DatasetInfo("IMDB", 2, (), 25_000, 25_000, "84 MB, downloaded once"), _imdb),
    "SST5": (DatasetInfo("SST5", 5, (), 9_645, 2_210, "0.8 MB, downloaded once"), _sst5),
    "TREC6": (DatasetInfo("TREC6", 6, (), 5_452, 500, "0.4 MB, downloaded once"), partial(_trec, fine=False)),
    "TREC50": (DatasetInfo("TREC50", 50, (), 5_452, 500, "the same file as TREC6"), partial(_trec, fine=True)),
}

"""The official text datasets: on disk in torchtext's layout, or downloaded through torchtext on first use."""

from __future__ import annotations

import contextlib
import re
import sys
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ddray.data.files import cache_directory
from ddray.data.sentences import Sentences, read_lines_or_trees
from ddray.errors import MissingExtra, RequestError

Splits = tuple[Sentences, Sentences | None, Sentences]

_KEY = "dataset file"
_GRADES = ("0", "1", "2", "3", "4")
_TREC_LINE = re.compile(rb"[A-Z]+:[A-Za-z]+ [^\n]*\S")
# The one byte of TREC's training file that is not ASCII; torchtext reads a space for it.
_TREC_BYTE = b"\xf0"
# What a server that is not there, an archive that is damaged or a disk that is full raises; requests' errors are OSError.
_DOWNLOAD_ERRORS = (
    OSError, RuntimeError, ValueError, EOFError, HTTPException, tarfile.TarError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


@dataclass(frozen=True)
class _Official:
    """A dataset's name here and in torchtext, what of it must be there, and how that is read.

    `layouts`: the paths below a root of a whole copy, in each form it may have; torchtext downloads the last of them.
    `whole`: what is moved from a download into the cache, each in one step.
    """

    name: str
    torchtext: str
    layouts: tuple[tuple[str, ...], ...]
    whole: tuple[str, ...]
    read: Callable[[list[Path]], Splits]


def imdb(root: Path | None) -> Splits:
    """IMDB's film reviews, `neg` and `pos` (Maas et al., ACL 2011): 25,000 to train with, 25,000 to test with.

    Sorted by label and text: torchtext reads them in the order of the file system, which differs from copy to copy.

    Args:
        root: where to look first for `imdb/aclImdb/{train,test}/{neg,pos}/*.txt`; never written to. What is not there
            is looked for in ddray's own cache, and downloaded into it.

    Returns:
        The training split, no official validation split, and the test split.

    Raises:
        RequestError: damaged files, or files that are neither on disk nor to be had.
        MissingExtra: torchtext is not installed.

    """
    folders = tuple(f"imdb/aclImdb/{split}/{label}" for split in ("train", "test") for label in ("neg", "pos"))
    return _load(_Official("IMDB", "IMDB", (folders,), ("imdb/aclImdb",), _read_imdb), root)


def trec(root: Path | None, *, fine: bool) -> Splits:
    """TREC's questions by what they ask for (Li and Roth, COLING 2002): 5,452 to train with, 500 to test with.

    Args:
        root: where to look first for `trec/{train_5500,TREC_10}.label`; as for `imdb`.
        fine: labels such as `DESC:manner`, of which the training split has 50, rather than the 6 such as `DESC`.

    Returns:
        The training split, no official validation split, and the test split, in the files' order.

    Raises:
        RequestError: damaged files (the line is named), or files that are neither on disk nor to be had.
        MissingExtra: torchtext is not installed.

    """
    files = ("trec/train_5500.label", "trec/TREC_10.label")

    def read(places: list[Path]) -> Splits:
        return _read_trec(places[0], fine), None, _read_trec(places[1], fine)

    return _load(_Official("TREC50" if fine else "TREC6", "TREC", (files,), files, read), root)


def sst5(root: Path | None) -> Splits:
    """SST's film review sentences (Socher et al., EMNLP 2013), labels `0` (very negative) to `4` (very positive).

    Args:
        root: where to look first for `sst5/{train,dev,test}.txt`, then for `sst/trees/{train,dev,test}.txt`, either of
            them in lines or in trees (see `read_lines_or_trees`); as for `imdb`.

    Returns:
        The official training, validation and test splits (8,544, 1,101 and 2,210), in the files' order.

    Raises:
        RequestError: damaged files (the line is named), or files that are neither on disk nor to be had.
        MissingExtra: torchtext is not installed, and the files have to be downloaded.

    """
    files = ("train.txt", "dev.txt", "test.txt")
    layouts = tuple(tuple(f"{place}/{file}" for file in files) for place in ("sst5", "sst/trees"))
    return _load(_Official("SST5", "SST", layouts, layouts[-1], _read_sst), root)


def _load(official: _Official, root: Path | None) -> Splits:
    cache = cache_directory()
    places = [cache] if root is None else [root, cache]
    for place in places:
        found = _found(official, place)
        if found is not None:
            return official.read(found)
    missing = next(path for path in official.layouts[0] if not (places[0] / path).exists())
    datasets = _torchtext(f"downloading {official.name}")[1]
    try:
        _download(official, datasets, cache)
    except _DOWNLOAD_ERRORS as error:
        looked, reason = " and ".join(map(str, places)), " ".join(str(error).split())
        allowed = f"{missing} is not in {looked}, and the download failed: {reason}"
        raise RequestError("dataset", official.name, allowed) from None
    return official.read([cache / path for path in official.layouts[-1]])


def _found(official: _Official, place: Path) -> list[Path] | None:
    layouts = ([place / path for path in layout] for layout in official.layouts)
    return next((paths for paths in layouts if all(path.exists() for path in paths)), None)


def _download(official: _Official, datasets: Any, cache: Path) -> None:
    for folder in (cache / path for path in official.whole):
        if folder.is_dir():
            raise FileExistsError(f"{folder} is in its way, of which something is missing")
    cache.mkdir(parents=True, exist_ok=True)
    # Moved into place whole: what an interrupted download leaves behind is never taken for data.
    with TemporaryDirectory(dir=cache, prefix=".download-") as scratch:
        # torchtext prints to standard output, which is for results.
        with contextlib.redirect_stdout(sys.stderr), _safe_unpacking():
            getattr(datasets, official.torchtext).download(scratch)
        # torchtext takes a server's page of regrets for the file that was asked for; reading it tells them apart.
        official.read([Path(scratch) / path for path in official.layouts[-1]])
        for path in official.whole:
            (cache / path).parent.mkdir(parents=True, exist_ok=True)
            try:
                (Path(scratch) / path).replace(cache / path)
            except OSError:
                # A folder, unlike a file, is not put over one that another process may have put there by now.
                if _found(official, cache) is None:
                    raise


@contextlib.contextmanager
def _safe_unpacking() -> Iterator[None]:
    """Keeps a tar archive, which torchtext fetches over plain http, from writing outside the folder it is unpacked in.

    From Python 3.12 on, unpacking without a filter is also warned of.
    """
    before = getattr(tarfile.TarFile, "extraction_filter", None)
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    try:
        yield
    finally:
        tarfile.TarFile.extraction_filter = before


def _read_imdb(folders: list[Path]) -> Splits:
    # The four folders are train/neg, train/pos, test/neg and test/pos; torchtext wants those above them.
    return _read_reviews(folders[0].parent), None, _read_reviews(folders[2].parent)


def _read_reviews(place: Path) -> Sentences:
    try:
        read = _raw("IMDB", place)
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(_KEY, str(_unreadable(place)), f"a review in UTF-8 that can be read: {error}") from None
    pairs = sorted(zip(read.labels, read.texts, strict=True))
    if not {"neg", "pos"} <= set(read.labels):
        raise RequestError(_KEY, str(place), "reviews in both neg/*.txt and pos/*.txt")
    if not all(text.strip() for _, text in pairs):
        allowed = "reviews that are not empty on their first line, the only one that is read"
        raise RequestError(_KEY, str(place), allowed)
    return Sentences(tuple(text for _, text in pairs), tuple(label for label, _ in pairs))


def _unreadable(place: Path) -> Path:
    """The first review that is at fault; torchtext's error does not name it."""
    for review in sorted(place.glob("*/*.txt")):
        try:
            review.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return review
    return place


def _read_trec(file: Path, fine: bool) -> Sentences:
    try:
        lines = file.read_bytes().removesuffix(b"\n").split(b"\n")
    except OSError as error:
        raise RequestError(_KEY, str(file), f"a file that can be read: {error}") from None
    for number, line in enumerate(lines, 1):
        try:
            line.replace(_TREC_BYTE, b" ").decode()
        except UnicodeDecodeError:
            allowed = f"TREC's own bytes: line {number} is not UTF-8, nor latin-1 where TREC's own file is"
            raise RequestError(_KEY, str(file), allowed) from None
        if not _TREC_LINE.fullmatch(line):
            raise RequestError(_KEY, str(file), f"lines `COARSE:fine question`: line {number} is another")
    return _raw("TREC", file, fine_grained=fine)


def _read_sst(files: list[Path]) -> Splits:
    train, validation, test = (_read_grades(file) for file in files)
    return train, validation, test


def _read_grades(file: Path) -> Sentences:
    sentences = read_lines_or_trees(file)
    unknown = sorted(set(sentences.labels) - set(_GRADES))
    if unknown:
        raise RequestError(_KEY, str(file), f"SST's labels, {', '.join(_GRADES)}: it has {unknown[0]!r}")
    return sentences


def _raw(name: str, place: Path, **options: Any) -> Sentences:
    """The texts and labels that torchtext's class of that name reads, as they are written."""
    data, datasets = _torchtext(f"reading {name}")
    text, label = (data.Field(sequential=False, use_vocab=False) for _ in range(2))
    with warnings.catch_warnings():
        # torchtext's TREC leaves its file for the interpreter to close.
        warnings.filterwarnings("ignore", "unclosed file", ResourceWarning)
        examples = getattr(datasets, name)(str(place), text, label, **options).examples
    return Sentences(tuple(example.text for example in examples), tuple(example.label for example in examples))


def _torchtext(needed_for: str) -> tuple[Any, Any]:
    try:
        from torchtext import data, datasets
    # A release that was built for another torch fails to load with an OSError.
    except (ImportError, OSError) as error:
        raise MissingExtra("torchtext", needed_for) from error
    return data, datasets

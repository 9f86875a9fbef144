"""Word vectors: read from a file in GloVe's or word2vec's text format, which is found or downloaded."""

from __future__ import annotations

import gzip
import shutil
import urllib.request
import zipfile
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.error import HTTPError

import numpy as np
import numpy.typing as npt

from ddray.data.files import cache_directory
from ddray.errors import MissingExtra, RequestError

_KEY = "data.vectors"
# The official names, by the name of their archive in torchtext's `GloVe.url`.
_GLOVE = {
    **{f"glove.6B.{dimension}d": "6B" for dimension in (50, 100, 200, 300)},
    "glove.42B.300d": "42B",
    "glove.840B.300d": "840B",
    **{f"glove.twitter.27B.{dimension}d": "twitter.27B" for dimension in (25, 50, 100, 200)},
}
_PATIENCE = 60  # seconds without a byte until a download is given up
_DOWNLOAD_ERRORS = (OSError, HTTPException, RuntimeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


def read_vectors(path: Path, words: Sequence[str]) -> tuple[npt.NDArray[np.float32], int]:
    """The vectors of `words` in a text file of vectors.

    Args:
        path: lines `word v1 … vD` (GloVe's format; a word may have spaces in it, as in glove.840B), before them perhaps a
            line `COUNT D` (word2vec's text format), in UTF-8, `.gz` or not. Of a word that is there twice, the first
            vector is taken. A byte order mark, blank lines at the end, and several spaces for one, are passed over. The
            file is read line by line, and nothing is kept beside it.
        words: V words.

    Returns:
        [V, D], with a row of zeros for a word that has no vector, and the number of words that have one.

    Raises:
        RequestError: a file that is not there, empty, damaged or not in UTF-8, a line with another number of components
            than the first, a component of a wanted word that is no finite number, fewer or more lines than were
            announced, or no vector for any of the words; it names the file and, where there is one, the line.

    """
    wanted = {word.encode("utf-8", "surrogatepass") for word in words}
    found: dict[bytes, npt.NDArray[np.float32]] = {}
    dimension = 0
    for number, word, line, dimension in _vector_lines(path):
        if word in wanted and word not in found:
            found[word] = _components(path, number, line, dimension)
    if not found:
        raise RequestError(_KEY, str(path), f"a file with a vector for at least one of the {len(words)} words")
    vectors = np.zeros((len(words), dimension), np.float32)
    known = [place for place, word in enumerate(words) if word.encode("utf-8", "surrogatepass") in found]
    for place in known:
        vectors[place] = found[words[place].encode("utf-8", "surrogatepass")]
    return vectors, len(known)


def find_vectors(name: str, root: Path | None) -> Path:
    """The file of the vectors called `name`.

    Args:
        name: a path, or a GloVe name such as `glove.6B.100d`: an official one is downloaded into ddray's own cache where
            it is not on disk, which `glove_file` tells.
        root: where to look first; never written to.

    Raises:
        RequestError: no file, and a name that is not to be had.
        MissingExtra: torchtext, which knows where GloVe is, is not installed.

    """
    if is_file(Path(name)):
        return Path(name)
    file = glove_file(name, root)
    if file is not None:
        return file
    looked = " and ".join(str(place) for place in (root, cache_directory()) if place is not None)
    missing = f"glove/{name}.txt is not in {looked}"
    if name not in _GLOVE:
        allowed = f"a file that exists, or one of {', '.join(_GLOVE)}, which are downloaded; {missing}"
        raise RequestError(_KEY, name, allowed)
    try:
        return _download(name, cache_directory() / "glove" / f"{name}.txt")
    except MissingExtra:
        raise
    except _DOWNLOAD_ERRORS as error:
        if isinstance(error, HTTPError):
            error.close()  # it is the server's answer, too, and holds the connection
        reason = " ".join(str(error).split())
        raise RequestError(_KEY, name, f"{missing}, and the download failed: {reason}") from None


def glove_file(name: str, root: Path | None) -> Path | None:
    """`glove/NAME.txt`, or `.txt.gz`, under `root` or else in ddray's own cache; None where it is in neither."""
    places = [cache_directory()] if root is None else [root, cache_directory()]
    files = [place / "glove" / f"{name}.txt{suffix}" for place in places for suffix in ("", ".gz")]
    return next((file for file in files if is_file(file)), None)


def is_file(path: Path) -> bool:
    """Whether it is one, for any text that somebody gave as a path."""
    try:
        return path.is_file()
    except OSError:  # a name too long, or a folder that may not be looked into
        return False


def _vector_lines(path: Path) -> Iterator[tuple[int, bytes, bytes, int]]:
    """Of every vector: the number of its line, its word, its line, and the dimension, which is that of all."""
    announced, dimension, read = None, 0, 0
    for number, line in _lines(path):
        if number == 1 and (announced := _announced(line)) is not None:
            dimension = announced[1]
            continue
        if not dimension:
            dimension = _first_dimension(path, number, line)
        yield number, _word(path, number, line, dimension), line, dimension
        read += 1
    if not read:
        raise RequestError(_KEY, str(path), "a file with vectors in it: it is empty")
    if announced is not None and announced[0] != read:
        raise RequestError(
            _KEY, str(path), f"a whole file: its first line announces {announced[0]} words, it has {read}"
        )


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    blank = 0
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                # Of the white space, only ASCII's: a word may be a no-break space.
                line = (line.removeprefix(BOM_UTF8) if number == 1 else line).rstrip(b" \t\r\n")
                if not line:
                    blank = blank or number
                elif blank:
                    raise RequestError(_KEY, str(path), f"lines of a word and its numbers: line {blank} is blank")
                else:
                    yield number, line
    except (OSError, EOFError, zlib.error) as error:
        raise RequestError(_KEY, str(path), f"a file that can be read: {error}") from None


def _announced(line: bytes) -> tuple[int, int] | None:
    fields = _fields(line)
    if len(fields) != 2 or not all(field.isdigit() and len(field) < 10 for field in fields) or not int(fields[1]):
        return None
    return int(fields[0]), int(fields[1])


def _first_dimension(path: Path, number: int, line: bytes) -> int:
    dimension = _trailing_numbers(_fields(line))
    if not dimension:
        raise RequestError(_KEY, str(path), f"lines of a word and its numbers: line {number} has no numbers")
    return dimension


def _word(path: Path, number: int, line: bytes, dimension: int) -> bytes:
    if line.count(b" ") == dimension and b"  " not in line:
        word = line[: line.index(b" ")]
    else:
        # The numbers are counted from the end, since there may be spaces in the word.
        fields = _fields(line)
        numbers = _trailing_numbers(fields)
        if len(fields) <= dimension or numbers > dimension:
            numbers = max(numbers, len(fields) - 1) if len(fields) <= dimension else numbers
            raise RequestError(_KEY, str(path), f"line {number} has {numbers} numbers where the first has {dimension}")
        word = b" ".join(fields[:-dimension])
    try:
        word.decode()
    except UnicodeDecodeError:
        raise RequestError(_KEY, str(path), f"a file in UTF-8: line {number} is not") from None
    return word


def _fields(line: bytes) -> list[bytes]:
    return [field for field in line.split(b" ") if field]


def _trailing_numbers(fields: list[bytes]) -> int:
    """How many fields at the end are numbers; the first is a word, whatever it looks like."""
    numbers = 0
    for field in reversed(fields[1:]):
        try:
            float(field)
        except ValueError:
            break
        numbers += 1
    return numbers


def _components(path: Path, number: int, line: bytes, dimension: int) -> npt.NDArray[np.float32]:
    try:
        components = np.array([float(field) for field in _fields(line)[-dimension:]])
    except ValueError:
        raise RequestError(_KEY, str(path), f"numbers behind a word: line {number} has something else") from None
    # Also what is finite in double precision only.
    if not (np.abs(components) <= np.finfo(np.float32).max).all():
        raise RequestError(_KEY, str(path), f"finite numbers: line {number} has others")
    return components.astype(np.float32)


def _download(name: str, target: Path) -> Path:
    try:
        from torchtext.vocab import GloVe
    except (ImportError, OSError) as error:
        raise MissingExtra("torchtext", f"downloading {name}") from error
    target.parent.mkdir(parents=True, exist_ok=True)
    # Moved into place whole: what an interrupted download leaves behind is never taken for vectors.
    with TemporaryDirectory(dir=target.parent, prefix=".download-") as scratch:
        archive, member = Path(scratch) / "archive.zip", Path(scratch) / target.name
        _fetch(GloVe.url[_GLOVE[name]], archive)
        with zipfile.ZipFile(archive) as packed, packed.open(target.name) as source, member.open("wb") as plain:
            shutil.copyfileobj(source, plain)
        return member.replace(target)


def _fetch(url: str, target: Path) -> None:
    from rich.console import Console
    from rich.progress import Progress

    with (
        urllib.request.urlopen(url, timeout=_PATIENCE) as response,
        target.open("wb") as file,
        Progress(console=Console(stderr=True)) as progress,
    ):
        size = int(response.headers.get("Content-Length") or 0)
        with progress.wrap_file(response, total=size, description=url.rpartition("/")[2]) as source:
            shutil.copyfileobj(source, file)

"""Where the files of a named dataset are: on disk in torchvision's layout, or downloaded on first use."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

from ddray.errors import MissingExtra, RequestError


def data_root(given: Path | str | None) -> Path | None:
    """The directory to look in before the cache: the one given, else that of `DDRAY_DATA`, else none.

    Raises:
        RequestError: it does not exist.

    """
    found = os.environ.get("DDRAY_DATA") if given is None else given
    if not found:
        return None
    key, root = "DDRAY_DATA" if given is None else "--data", Path(found)
    if not root.is_dir():
        raise RequestError(key, str(root), "a directory that exists")
    return root


def cache_directory() -> Path:
    """Where downloads are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddray"


def located(name: str, files: Sequence[str], root: Path | None) -> list[Path]:
    """The dataset's files, plain or `.gz`: all under `root`, else all in the cache, else downloaded into the cache.

    Args:
        name: of the class in `torchvision.datasets` that downloads them.
        files: paths below a root in torchvision's layout.
        root: never written to.

    Raises:
        RequestError: they are in neither place and cannot be downloaded; it names the first one missing.

    """
    cache = cache_directory()
    places = [cache] if root is None else [root, cache]
    for place in places:
        found = [_plain_or_packed(place / file) for file in files]
        if None not in found:
            return [path for path in found if path is not None]
    missing = next(file for file in files if _plain_or_packed(places[0] / file) is None)
    try:
        _download(name, files, cache)
    except (OSError, RuntimeError, HTTPException) as error:
        looked, reason = " and ".join(map(str, places)), " ".join(str(error).split())
        allowed = f"{missing} is not in {looked}, and the download failed: {reason}"
        raise RequestError("dataset", name, allowed) from None
    return [cache / file for file in files]


def read_idx(place: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """The array in an idx file, `.gz` or not; see `parse_idx`."""
    try:
        data = gzip.decompress(place.read_bytes()) if place.suffix == ".gz" else place.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise RequestError("dataset file", str(place), f"a file that can be read: {error}") from None
    return parse_idx(data, str(place), dimensions)


def parse_idx(data: bytes, source: str, dimensions: int) -> npt.NDArray[np.uint8]:
    """The array of unsigned bytes in an idx file's content (LeCun's format, as MNIST has it).

    Raises:
        RequestError: another type or number of dimensions, no examples, or a length that the header does not announce;
            `source` names the file.

    """
    header = 4 + 4 * dimensions
    if len(data) < header or data[:4] != bytes((0, 0, 8, dimensions)):
        raise RequestError("dataset file", source, f"an idx file of unsigned bytes in {dimensions} dimensions")
    shape = struct.unpack(f">{dimensions}I", data[4:header])
    expected = math.prod(shape)
    if not expected or len(data) - header != expected:
        allowed = f"a whole idx file: {expected} bytes for its shape {list(shape)}, where it has {len(data) - header}"
        raise RequestError("dataset file", source, allowed)
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _plain_or_packed(path: Path) -> Path | None:
    packed = path.with_name(f"{path.name}.gz")
    return path if path.is_file() else packed if packed.is_file() else None


def _download(name: str, files: Sequence[str], cache: Path) -> None:
    try:
        from torchvision import datasets
    except ImportError as error:
        raise MissingExtra("torchvision", f"downloading {name}") from error
    cache.mkdir(parents=True, exist_ok=True)
    # Each file is moved into place whole: what an interrupted download leaves behind is never taken for data.
    with TemporaryDirectory(dir=cache, prefix=".download-") as scratch:
        getattr(datasets, name)(scratch, download=True)
        for file in files:
            (cache / file).parent.mkdir(parents=True, exist_ok=True)
            (Path(scratch) / file).replace(cache / file)

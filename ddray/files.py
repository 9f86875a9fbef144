"""Where a result is to be written: made sure of before the work, unmade if there is no result."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ddray.errors import RequestError

_LONGEST_NAME = 200  # of 255, and our suffixes take up to 24

@contextmanager
def writable_folder(folder: Path, key: str) -> Iterator[None]:
    """Make `folder`, and see that files can be made in it; if the block fails, folders made and still empty go again.

    Raises:
        RequestError: it cannot be made or written in; `key` is what the user named it by.

    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise RequestError(key, str(folder), f"a directory that can be written to: {error.strerror}") from None
        yield
    except BaseException:
        for path in missing:
            with suppress(OSError):  # not empty: something in it was wanted
                path.rmdir()
        raise


def storable_name(path: Path, key: str) -> None:
    """Refuse a name that leaves no room for the names that are given beside it while it is written.

    Raises:
        RequestError: the last part of `path` is longer than any file system takes with a suffix of ours.

    """
    if len(os.fsencode(path.name)) > _LONGEST_NAME:
        raise RequestError(key, path.name, f"a name of at most {_LONGEST_NAME} bytes")


def write_whole(file: Path, text: str) -> None:
    """Write a text file, by way of a temporary name beside it."""
    handle, name = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as target:
        target.write(text)
    Path(name).chmod(0o644)
    Path(name).replace(file)

"""Where sweeps lie, and what each remembers of itself."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from sqlalchemy.exc import SQLAlchemyError

from ddray.errors import RequestError
from ddray.files import writable_folder
from ddray.tracking.sqlite import sqlite_uri

STUDY = "study.db"
_LOCK = "driver.lock"


def storage_directory(storage: str | Path) -> Path:
    """The directory that sweeps are kept in, which need not exist yet.

    Raises:
        RequestError: a file, a place that cannot be written to, or a URI of another kind than `file://`.

    """
    scheme, separator, rest = str(storage).partition("://")
    if separator and scheme != "file":
        raise RequestError("--storage", storage, "a directory that every node sees, or file://DIRECTORY")
    try:
        path = Path(rest if separator else storage).expanduser().resolve()
        nearest = next(p for p in (path, *path.parents) if p.exists())
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, an unknown ~user, a NUL
        raise RequestError("--storage", storage, f"a directory: {error}") from None
    if set(str(path)) & set("?#"):
        raise RequestError(
            "--storage", storage, "a directory without ? and # in its path, which a database URL reserves"
        )
    if not nearest.is_dir():
        raise RequestError("--storage", storage, f"a directory; {nearest} is a file")
    if not os.access(nearest, os.W_OK | os.X_OK) or _read_only(nearest):
        raise RequestError("--storage", storage, f"a directory that can be written to; {nearest} cannot")
    return path


def new_sweep(storage: Path, name: str | None, space: str) -> Path:
    """The place of a sweep that is not there yet, named `<space>-<date>-<4 hex>` if it is not named.

    Raises:
        RequestError: a name that cannot be a directory's, or that is in use.

    """
    name = check_name(name if name is not None else f"{Path(space).stem}-{date.today():%Y%m%d}-{secrets.token_hex(2)}")
    if (storage / name).exists():
        raise RequestError("--name", name, f"it is in use in {storage}; give --resume to go on with it")
    return storage / name


def earlier_sweep(storage: Path, name: str | None) -> Path:
    """The place of the sweep to resume: the one named, or the only unfinished one.

    Raises:
        RequestError: there is no such sweep, or no only one, or it cannot be written to.

    """
    if name is not None:
        if not (storage / check_name(name) / STUDY).is_file():
            raise RequestError("--resume", name, f"there is no such sweep in {storage}")
        return _writable(storage / name)
    unfinished = [p.parent for p in sorted(storage.glob(f"*/{STUDY}")) if _unfinished(p.parent)]
    if len(unfinished) != 1:
        found = ", ".join(p.name for p in unfinished) or "none"
        raise RequestError(
            "--resume", None, f"without --name, exactly one unfinished sweep in {storage}; found: {found}"
        )
    return _writable(unfinished[0])


def _unfinished(directory: Path) -> bool:
    """Whether a sweep has trials to run; one whose study cannot be read has none that could."""
    try:
        return not remembered(directory).get("finished")
    except RequestError:
        return False


def check_name(name: str) -> str:
    """A sweep's name, if a directory can have it.

    Raises:
        RequestError: it cannot.

    """
    plain = name.isprintable() and name == name.strip() and not set(name) & set("/\\:\"'?#*<>|")
    if not plain or not name.strip(".") or len(name.encode()) > 100:
        raise RequestError("--name", name, "up to 100 characters that can name a directory")
    return name


def remembered(directory: Path) -> dict[str, Any]:
    """What the study of an existing sweep says of itself: its user attributes.

    Raises:
        RequestError: the study is damaged, or not that of this directory.

    """
    try:
        study = optuna.load_study(study_name=directory.name, storage=study_uri(directory))
        return dict(study.user_attrs)
    except (KeyError, RuntimeError, SQLAlchemyError, optuna.exceptions.OptunaError) as error:
        reason = (str(error).strip(" '\"").splitlines() or ["?"])[0]
        raise RequestError("--resume", directory.name, f"its study cannot be read: {reason}") from None


def study_uri(directory: Path) -> str:
    """The database of a sweep's study, as Optuna is told of it."""
    return sqlite_uri(directory / STUDY)


@contextmanager
def sole_driver(directory: Path) -> Iterator[None]:
    """Keep every other process from running the sweep in `directory`; a process that dies lets go of it.

    Raises:
        RequestError: another process runs it.

    """
    lock = FileLock(directory / _LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise RequestError("--resume", directory.name, "a sweep that no other process is running") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def made(directory: Path) -> Iterator[None]:
    """Make a directory; if the block fails, it was never there.

    Raises:
        RequestError: it cannot be made.

    """
    with writable_folder(directory.parent, "--storage"):
        directory.mkdir()
        try:
            yield
        except BaseException:
            shutil.rmtree(directory)
            raise


def _writable(directory: Path) -> Path:
    """The directory of a sweep, if that can go on in it."""
    for place in (directory, directory / STUDY, directory / _LOCK):
        needed = os.W_OK | (os.X_OK if place == directory else os.R_OK)
        if place.exists() and not os.access(place, needed):
            raise RequestError("--resume", directory.name, f"a sweep that can be written to; {place} cannot")
    return directory


def _read_only(directory: Path) -> bool:
    # os.access tells root that all is allowed; a file system mounted read-only still is not.
    return bool(os.statvfs(directory).f_flag & os.ST_RDONLY)

"""A record in a SQLite file: what its URI says, and how the file comes to be."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit

_PATIENCE = 120.0  # seconds for another process that is making the same file; it takes some
_URI = re.compile(r"(sqlite(?:\+\w+)?):///([^?]+)(\?.*)?")


def sqlite_file(uri: str) -> Path | None:
    """The database file of a SQLite URI (three slashes: relative, four: absolute), None for other URIs."""
    found = _URI.fullmatch(uri)
    return Path(unquote(found[2])) if found else None


def sqlite_uri(file: Path | str) -> str:
    """The SQLite URI of a database file, as SQLAlchemy, MLflow and Optuna read it.

    SQLAlchemy takes `%20` for a space, and Optuna fills in what stands between braces.
    """
    plain = str(file)
    quoted = re.sub("[%{}]", lambda found: f"%{ord(found[0]):02X}", plain)
    # MLflow makes the folder that a URI names, as it stands there; with a driver in the scheme, it makes none.
    return f"sqlite:///{plain}" if quoted == plain else f"sqlite+pysqlite:///{quoted}"


def anchored(uri: str) -> str:
    """A SQLite URI with an absolute path, so that it means the same from everywhere; another URI as it is."""
    file = sqlite_file(uri)
    return uri if file is None else _elsewhere(uri, file.absolute())


def portable(uri: str, storage: Path) -> str:
    """The URI as it can be kept inside `storage`: a database in there is named from there, for the storage may be moved."""
    file = sqlite_file(uri)
    return _elsewhere(uri, file.relative_to(storage)) if file is not None and file.is_relative_to(storage) else uri


def placed(uri: str, storage: Path) -> str:
    """The URI that was kept inside `storage`, with the storage where it is now."""
    file = sqlite_file(uri)
    if file is None:
        return uri
    here = storage / (file.name if file.is_absolute() else file)
    # Before URIs were made portable, that of the storage's own record was absolute: it is the one whose file is gone.
    return uri if file.is_absolute() and (file.exists() or not here.exists()) else _elsewhere(uri, here)


def make_database(file: Path) -> None:
    """See that there is a database with MLflow's tables: one that is not there is made under another name and renamed.

    MLflow makes its tables in many steps and each is kept at once, so that a process that is killed between two, or another
    that begins meanwhile, leaves a database that nobody can open any more.
    """
    from filelock import FileLock
    from mlflow import MlflowClient

    file = file.resolve()
    lock = file.with_name(f".{file.name}.lock")
    with FileLock(lock, timeout=_PATIENCE):
        try:
            if _is_there(file):
                return
            for stale in file.parent.glob(f".{file.name}-*"):  # of a process that was killed: nobody else is here now
                shutil.rmtree(stale)
            with TemporaryDirectory(prefix=f".{file.name}-", dir=file.parent) as folder:
                draft = Path(folder) / file.name
                uri = sqlite_uri(draft)
                MlflowClient(tracking_uri=uri, registry_uri=uri).search_experiments(max_results=1)
                draft.replace(file)
        finally:
            lock.unlink(missing_ok=True)  # while it is held: whoever waits for it looks at the file first


def artefacts_beside(file: Path) -> str:
    """Where the artefacts of a database go: beside it, not into the current folder."""
    return (file.parent / "mlartifacts").resolve().as_uri()


def follow_artefacts(file: Path) -> None:
    """Tell a database whose folder was moved where its artefacts are now.

    MLflow keeps absolute places, and has no call that changes them. Only those change that a sweep wrote, that are gone from
    where they were, and that lie beside the database.
    """
    here = artefacts_beside(file)
    if not (_folder(here).is_dir() and os.access(file, os.W_OK) and os.access(file.parent, os.W_OK)):
        return
    with closing(sqlite3.connect(file, timeout=30)) as connection, connection:
        if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone() is None:
            return
        known = connection.execute(
            "SELECT DISTINCT artifact_location FROM experiments WHERE name LIKE 'ddray/%'"
        ).fetchall()
        for (place,) in known:
            if place.startswith("file:") and place.endswith("/mlartifacts") and not _folder(place).exists():
                connection.execute(
                    "UPDATE experiments SET artifact_location = ? WHERE artifact_location = ?", (here, place)
                )
                moved = "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) WHERE instr(artifact_uri, ?) = 1"
                connection.execute(moved, (here, len(place) + 1, f"{place}/"))


def _folder(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path))


def _is_there(file: Path) -> bool:
    return file.exists() and (not file.is_file() or file.stat().st_size > 0)


def _elsewhere(uri: str, file: Path) -> str:
    """The same SQLite URI with another file."""
    found = _URI.fullmatch(uri)
    return sqlite_uri(file) + ((found and found[3]) or "")

"""A record in a SQLite file: what its URI says, and how the file comes to be."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

_PATIENCE = 120.0  # seconds for another process that is making the same file; it takes some


def sqlite_file(uri: str) -> Path | None:
    """The database file of a SQLite URI (three slashes: relative, four: absolute), None for other URIs."""
    found = re.fullmatch(r"sqlite(?:\+\w+)?:///([^?]+)(?:\?.*)?", uri)
    return Path(found[1]) if found else None


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
                uri = f"sqlite:///{draft}"
                MlflowClient(tracking_uri=uri, registry_uri=uri).search_experiments(max_results=1)
                draft.replace(file)
        finally:
            lock.unlink(missing_ok=True)  # while it is held: whoever waits for it looks at the file first


def _is_there(file: Path) -> bool:
    return file.exists() and (not file.is_file() or file.stat().st_size > 0)

"""A record in a SQLite file: its URI, and a file that is whole or not there."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import alembic.command
import pytest
from sqlalchemy.engine import make_url

from ddray.tracking.sqlite import anchored, placed, portable, sqlite_file, sqlite_uri
from ddray.tracking.store import open_client

OPEN = "import sys; from ddray.tracking.store import open_client; open_client(sys.argv[1], create=True)"


KILLED_HALF_WAY = """\
import os, signal
from sqlalchemy import event
from sqlalchemy.engine import Engine

@event.listens_for(Engine, "after_cursor_execute")
def kill(connection, cursor, statement, *_):
    if statement.strip().startswith("CREATE TABLE datasets "):
        os.kill(os.getpid(), signal.SIGKILL)

"""


def opening(file: Path, before: str = "") -> subprocess.Popen[bytes]:
    """Another process that opens a record."""
    return subprocess.Popen([sys.executable, "-c", before + OPEN, f"sqlite:///{file}"])


def test_three_slashes_are_relative_and_four_absolute() -> None:
    assert sqlite_file("sqlite:///sweeps/mlflow.db") == Path("sweeps/mlflow.db")
    assert sqlite_file("sqlite:////sweeps/mlflow.db") == Path("/sweeps/mlflow.db")
    assert sqlite_file("http://host") is None


@pytest.mark.parametrize("name", ["plain name", "100%", "a%20b", "{here}", "é"])
def test_a_uri_names_its_file_whatever_is_in_its_path(tmp_path: Path, name: str) -> None:
    file = tmp_path / name / "x.db"
    assert make_url(sqlite_uri(file)).database == str(file)
    assert sqlite_file(sqlite_uri(file)) == file


def test_a_relative_uri_is_anchored_where_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert anchored("sqlite:///x.db?timeout=9") == f"sqlite:///{tmp_path}/x.db?timeout=9"
    assert anchored("sqlite:///a%2520b/x.db") == f"sqlite+pysqlite:///{tmp_path}/a%2520b/x.db"
    assert anchored("http://host:5000") == "http://host:5000"


def test_a_record_in_a_storage_moves_with_it(tmp_path: Path) -> None:
    before, after = tmp_path / "st", tmp_path / "100%" / "moved"
    kept = portable(sqlite_uri(before / "mlflow.db") + "?timeout=9", before)
    assert kept == "sqlite:///mlflow.db?timeout=9"
    assert placed(kept, after) == sqlite_uri(after / "mlflow.db") + "?timeout=9"


@pytest.mark.parametrize("uri", ["sqlite:////elsewhere/mlflow.db", "http://host:5000"])
def test_a_record_elsewhere_stays_where_it_is(tmp_path: Path, uri: str) -> None:
    assert placed(portable(uri, tmp_path), tmp_path) == uri


def test_an_absolute_path_is_followed_where_the_file_went_with_its_storage(tmp_path: Path) -> None:
    before, after = tmp_path / "st", tmp_path / "moved"
    uri = f"sqlite:///{before}/mlflow.db"
    for folder in (before, after):
        folder.mkdir()
        (folder / "mlflow.db").touch()
    assert placed(uri, after) == uri, "a copy"
    (before / "mlflow.db").unlink()
    assert placed(uri, after) == f"sqlite:///{after}/mlflow.db"


def test_a_folder_with_percent_signs_has_its_own_record(migrated: Path, tmp_path: Path) -> None:
    (tmp_path / "a%20b").mkdir()
    file = shutil.copy(migrated, tmp_path / "a%20b" / "mlflow.db")
    assert open_client(sqlite_uri(file), create=True).search_experiments()
    assert [path.name for path in tmp_path.iterdir()] == ["a%20b"]


def test_a_record_whose_making_was_killed_is_made_anew(tmp_path: Path) -> None:
    assert opening(tmp_path / "mlflow.db", KILLED_HALF_WAY).wait(timeout=240) == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] != []
    open_client(f"sqlite:///{tmp_path / 'mlflow.db'}", create=True)
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def test_a_record_whose_making_was_interrupted_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(alembic.command, "upgrade", interrupted)
        open_client(f"sqlite:///{tmp_path / 'mlflow.db'}", create=True)
    assert list(tmp_path.iterdir()) == []


def test_two_may_open_a_new_record_at_once(tmp_path: Path) -> None:
    both = [opening(tmp_path / "mlflow.db") for _ in range(2)]
    assert [one.wait(timeout=240) for one in both] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def test_an_empty_file_is_no_record_yet(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    assert open_client(f"sqlite:///{tmp_path / 'mlflow.db'}", create=True).search_experiments()

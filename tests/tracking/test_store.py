"""Opening the record, and refusing what cannot be one."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from ddray.errors import RequestError
from ddray.tracking.store import default_tracking_uri, open_client


def test_the_default_is_a_file_in_the_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_tracking_uri() == "sqlite:///sweeps/mlflow.db"
    assert default_tracking_uri("/data/sweeps") == "sqlite:////data/sweeps/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert default_tracking_uri("/data/sweeps") == "http://host:5000"


def test_a_new_record_is_made_with_its_folders_and_in_silence(
    first_touch: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    file, done = first_touch
    assert file.is_file()
    assert (done.stdout, done.stderr) == ("", "")


def refused(uri: str, *, create: bool = True) -> str:
    with pytest.raises(RequestError) as error:
        open_client(uri, create=create)
    assert error.value.key == "--tracking-uri"
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("uri", ["", "mlruns", "ftp://host/x", "file:///tmp/mlruns", "nonsense://"])
def test_a_uri_of_another_kind_is_refused(uri: str) -> None:
    assert "sqlite:///FILE" in refused(uri)


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(uri: str) -> None:
    assert "name a file" in refused(uri)


def test_a_file_that_is_no_database_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("my notes, of more than a few words\n" * 10)
    refused(f"sqlite:///{tmp_path / 'notes.txt'}")
    assert (tmp_path / "notes.txt").read_text().startswith("my notes")


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sweeps").write_text("")
    refused(f"sqlite:///{tmp_path / 'sweeps' / 'mlflow.db'}")


def test_a_directory_is_refused(tmp_path: Path) -> None:
    refused(f"sqlite:///{tmp_path}")


@pytest.mark.parametrize("scheme", ["http", "https", "postgresql", "mysql+pymysql"])
def test_a_server_that_is_not_there_is_refused_at_once(scheme: str) -> None:
    with socket.socket() as unused:  # bound and not listening: connections are refused
        unused.bind(("127.0.0.1", 0))
        assert "refused" in refused(f"{scheme}://127.0.0.1:{unused.getsockname()[1]}").lower()


def test_a_password_is_not_repeated() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert "secret" not in refused(f"postgresql://me:secret@127.0.0.1:{unused.getsockname()[1]}/db")


class _Other(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(404)

    def do_POST(self) -> None:
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def other_server() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Other)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_server_that_is_not_mlflow_is_refused(other_server: str) -> None:
    assert "404" in refused(other_server)


def test_importing_the_room_loads_none_of_the_heavy_packages() -> None:
    heavy = ("torch", "mlflow", "matplotlib", "ray", "optuna")
    script = f"import sys, ddray.tracking; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_modules_load_without_mlflow_and_matplotlib() -> None:
    script = (
        "import sys; from pathlib import Path; sys.modules['mlflow'] = sys.modules['matplotlib'] = None\n"
        "from ddray.tracking import Recorder, fetch, leaderboard, sweep_figures\n"
        "from ddray.errors import MissingExtra\n"
        "for call in (lambda: Recorder('sqlite:///x.db', None), lambda: sweep_figures([], Path('.'))):\n"
        "    try: call()\n"
        "    except MissingExtra as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.count("pip install 'ddray[search]'") == 2

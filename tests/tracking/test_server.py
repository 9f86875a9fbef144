"""The record and the catalogue over HTTP, through a real MLflow server."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from ddray.distillation import load
from ddray.tracking import Recorder, SweepEntry, TrialEntry, fetch, leaderboard, register


@pytest.fixture
def server(migrated: Path, tmp_path: Path) -> Iterator[str]:
    shutil.copy(migrated, tmp_path / "server.db")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    stores = [
        "--backend-store-uri",
        f"sqlite:///{tmp_path / 'server.db'}",
        "--artifacts-destination",
        str(tmp_path / "art"),
    ]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (
        (tmp_path / "server.log").open("w") as log,
        subprocess.Popen(
            [*command, *stores], env=environment, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True
        ) as process,
    ):
        try:
            _wait(f"http://127.0.0.1:{port}/health")
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def _wait(address: str) -> None:
    for _ in range(600):
        try:
            urlopen(address, timeout=5).close()
            return
        except (URLError, OSError):
            time.sleep(0.1)
    raise TimeoutError(address)


def test_a_sweep_goes_to_a_server_and_its_set_comes_home_in_silence(
    server: str, make_set: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sweep, place = SweepEntry("s1", "toy", "LeNet", "random", 0, "/sweeps/s1", "a: 1", {}), make_set(0.8)
    trial = TrialEntry(0, "finished", {"a": 1}, ("a",), {1: {"val_accuracy": 0.5}}, 0.5, 1.0, 1e9, 1e9 + 1)
    for _ in range(2):  # the second time changes nothing
        recorder = Recorder(server, sweep)
        recorder.trial(trial)
        recorder.artefacts(0, place)
        register(server, recorder.run_id(0), place)
        recorder.finish("finished", {"best": 0.5})
    assert fetch(server, "toy", "LeNet", out=tmp_path / "home")[0].manifest == load(place).manifest
    assert [(row.version, row.is_best) for row in leaderboard(server)] == [("1", True)]
    assert capfd.readouterr() == ("", "")

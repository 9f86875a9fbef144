"""What more than one room's tests need: warnings of others, a quiet environment, and an empty MLflow record to copy."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

_IGNORED = (
    # MLflow's own use of SQLAlchemy, when it maps its tables.
    "ignore:The ``noload`` loader strategy is deprecated and will be removed in a future release:DeprecationWarning",
)


def pytest_configure(config: pytest.Config) -> None:
    for warning in _IGNORED:
        config.addinivalue_line("filterwarnings", warning)
    # The tensors of the tests are small: on a busy machine, threads wait for each other longer than they compute.
    torch.set_num_threads(1)
    os.environ.update(RAY_worker_niceness="0")  # as ddray starts Ray: niced workers starve beside any other program


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("needs_gpu"):
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(autouse=True)
def _own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "DDRAY_DATA"):
        monkeypatch.delenv(name, raising=False)
    return


@pytest.fixture(scope="session")
def first_touch(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A database that was not there before it was opened, and the process that opened it."""
    file = tmp_path_factory.mktemp("migrated") / "a" / "b" / "mlflow.db"
    script = "import sys; from ddray.tracking.store import open_client; open_client(sys.argv[1], create=True)"
    command = [sys.executable, "-c", script, f"sqlite:///{file}"]
    return file, subprocess.run(command, capture_output=True, text=True, check=True)


@pytest.fixture(scope="session")
def migrated(first_touch: tuple[Path, subprocess.CompletedProcess[str]]) -> Path:
    """A database with MLflow's tables and nothing in them: its first touch takes seconds."""
    return first_touch[0]

"""Running commands, and the small problem that they are run on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
SMALL = (
    "--set",
    "outer.steps=12",
    "--set",
    "outer.score_every=4",
    "--set",
    "outer.batch=32",
    "--set",
    "synthetic.steps=2",
)


class Ran(NamedTuple):
    """What a command came to."""

    status: int
    out: str
    err: str


Run = Callable[..., Ran]


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, with the content of files."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def write_npz(file: Path, *, classes: int = 3, size: int = 28, seed: int = 0) -> Path:
    """Images of `classes` easy classes: each has a bright row of its own."""
    draw = np.random.default_rng(seed)

    def part(n: int) -> tuple[np.ndarray, np.ndarray]:
        y = np.arange(n) % classes
        x = draw.integers(0, 120, (n, size, size), dtype=np.uint8)
        x[np.arange(n), 2 + y] += 120
        return x, y

    (train_x, train_y), (test_x, test_y) = part(40 * classes), part(10 * classes)
    np.savez(file, train_x=train_x, train_y=train_y, test_x=test_x, test_y=test_y)
    return file


def python(*arguments: object, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python in a directory; its outputs come back as text."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment(**env or {}), capture_output=True, text=True, timeout=240)


def environment(**more: str) -> dict[str, str]:
    """The environment of this process, with one thread for torch and none of the user's settings."""
    personal = ("DDRAY_DATA", "MLFLOW_TRACKING_URI", "RAY_ADDRESS", "COLUMNS")
    kept = {key: value for key, value in os.environ.items() if key not in personal}
    return kept | {"OMP_NUM_THREADS": "1"} | more


class Sweep(NamedTuple):
    """A finished sweep of two trials, `toy`, and what the command that ran it said."""

    home: Path
    ran: subprocess.CompletedProcess[str]


SPACE = """\
dataset: {npz}
arch: tiny_net:TinyNet
fixed: {{outer.steps: 4, outer.batch: 32, synthetic.epochs: 1}}
search:
  outer.lr: {{float: [1e-3, 0.1], log: true}}
  synthetic.steps: {{int: [1, 2]}}
constraints: [stored_samples <= 6]
trials: 5
scheduler: {{asha: {{grace_steps: 2}}}}
"""

"""Small files in torchvision's layout, and a cache that is nobody's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from mnist_files import idx, mnist_arrays

# How long one example takes depends on who else uses the machine.
settings.register_profile("data", deadline=None, max_examples=50)
settings.load_profile("data")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of this test alone, not made yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DDRAY_DATA", raising=False)
    return tmp_path / "cache" / "ddray"


@pytest.fixture
def make_mnist(tmp_path: Path) -> Callable[..., Path]:
    """Writes MNIST's four files below `root`, and gives `root` back."""

    def make(root: Path = tmp_path / "root", name: str = "MNIST", encode: Callable[[bytes], bytes] = bytes) -> Path:
        raw = root / name / "raw"
        raw.mkdir(parents=True)
        suffix = "" if encode is bytes else ".gz"
        for file, array in mnist_arrays().items():
            (raw / f"{file}{suffix}").write_bytes(encode(idx(array)))
        return root

    return make

"""What the C library is told to do with freed memory."""

import ctypes
import os
import platform
import subprocess
import sys

import pytest

from ddray.distillation import allocator

FAULTS = """
import resource, torch
from ddray.distillation.allocator import keep_freed_memory
torch.set_num_threads(1)
assert keep_freed_memory() is {told}
def step():
    kept = [torch.ones(500_000) for _ in range(20)]
    return [a + 1 for a in kept]
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")


def faults(*, told: bool, **environment: str) -> int:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", FAULTS.format(told=told)]
    return int(subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=True).stdout)


@GLIBC
def test_freed_memory_is_kept_and_not_fetched_anew() -> None:
    assert faults(told=True) < 500


@GLIBC
def test_settings_of_the_environment_win() -> None:
    assert faults(told=False, MALLOC_MMAP_THRESHOLD_="100000") > 5 * 20 * 400  # pages of 500,000 numbers, each time


def test_a_library_that_has_no_such_setting_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert allocator.keep_freed_memory.__wrapped__() is False
    monkeypatch.setattr(allocator.os, "name", "nt")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("it was opened"))
    assert allocator.keep_freed_memory.__wrapped__() is False

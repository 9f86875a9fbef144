"""A dataset in Ray's object store is read where it lies."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from ddray.data import Dataset

X = np.random.default_rng(0).integers(0, 256, (2000, 1, 28, 28), dtype=np.uint8)
Y = np.arange(2000) % 10


@pytest.fixture(scope="module")
def _ray() -> Iterator[None]:
    # Workers cannot import a test's module.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def mapped_from(tensor: torch.Tensor) -> str:
    """What the memory of a tensor is mapped from: permissions and file."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, permissions, _, _, _, *file = line.split(maxsplit=5)
        start, end = (int(bound, 16) for bound in span.split("-"))
        if start <= tensor.data_ptr() < end:
            assert tensor.data_ptr() + tensor.nbytes <= end
            return f"{permissions} {''.join(file)}"
    raise AssertionError("memory that is mapped nowhere")


def looked_at(references: list[ray.ObjectRef]) -> tuple[list[str], dict[str, str], float]:
    """Where the splits lie in this process, their digests, and one normalised value."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = ray.get(references[0])
    places = [mapped_from(dataset.split(name).x) for name in ("train", "validation", "test")]
    return places, dataset.digests(), float(dataset.normalise(dataset.test.x[:1]).sum())


@pytest.mark.usefixtures("_ray")
def test_a_worker_reads_the_shared_memory_itself() -> None:
    dataset = Dataset(X, Y, X, Y)
    reference = ray.put(dataset)
    places, digests, value = ray.get(ray.remote(looked_at).remote([reference]))
    assert all("s " in place and "plasma" in place for place in places), places
    assert digests == dataset.digests() and value == float(dataset.normalise(dataset.test.x[:1]).sum())


@pytest.mark.usefixtures("_ray")
def test_two_readers_in_one_process_have_one_memory() -> None:
    reference = ray.put(Dataset(X, Y, X, Y))
    first, second = ray.get(reference), ray.get(reference)
    assert first.train.x.data_ptr() == second.train.x.data_ptr()
    assert first.train.x.data_ptr() != X.ctypes.data

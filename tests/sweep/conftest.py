"""One Ray for all sweeps of these tests, and one finished sweep to look at from all sides."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray

from ddray.data import Dataset
from ddray.data import load as load_dataset
from ddray.sweep import Outcome, search
from tests.sweep import sweeps

NewRecord = Callable[[], str]


@dataclass(frozen=True)
class Finished:
    """A sweep that ran to its end, with trials of every kind."""

    outcome: Outcome
    directory: Path
    log: Path
    space: str
    uri: str


@pytest.fixture(scope="package")
def local_ray() -> Iterator[None]:
    # Workers cannot import the module of the tests.
    ray.cloudpickle.register_pickle_by_value(sweeps)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()
    ray.cloudpickle.unregister_pickle_by_value(sweeps)


@pytest.fixture(scope="package")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sweeps.save_blobs(tmp_path_factory.mktemp("data") / "blobs.npz")


@pytest.fixture(scope="package")
def dataset(data: Path) -> Dataset:
    return load_dataset(str(data))


@pytest.fixture(scope="package")
def new_record(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> NewRecord:
    """Makes the tracking URI of an empty record."""

    def make() -> str:
        return f"sqlite:///{shutil.copy(migrated, tmp_path_factory.mktemp('record') / 'mlflow.db')}"

    return make


@pytest.fixture(scope="package")
def finished(
    local_ray: None,
    data: Path,
    new_record: NewRecord,
    tmp_path_factory: pytest.TempPathFactory,
) -> Finished:
    """Ten trials, one after the other: some learn, some hardly do, some diverge, some are never started."""
    folder, uri = tmp_path_factory.mktemp("finished"), new_record()
    space = sweeps.save_space(
        folder / "blobs.yaml", data,
        fixed={"synthetic.epochs": 3},
        search={"synthetic.lr": {"choice": [0.2, 1e-6, 1e6]}, "synthetic.steps": {"int": [1, 6]}},
        constraints=["stored_samples <= 9"],
        scheduler={"asha": {"grace_steps": 4, "reduction_factor": 2}},
        trials=10,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ddray.sweep.execute.DistillTrial", sweeps.spied(folder / "log"))
        outcome = search(space, storage=str(folder / "sweeps"), name="kinds", tracking_uri=uri, max_concurrent=1)
    return Finished(outcome, folder / "sweeps" / "kinds", folder / "log", space, uri)

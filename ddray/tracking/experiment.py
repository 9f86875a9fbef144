"""The MLflow experiment that the sweeps of a dataset and an architecture share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddray.tracking.entries import SweepEntry
from ddray.tracking.sqlite import artefacts_beside, sqlite_file
from ddray.tracking.store import unless_there

if TYPE_CHECKING:
    from mlflow import MlflowClient


def experiment_of(client: MlflowClient, uri: str, sweep: SweepEntry) -> str:
    """The id of the one experiment of a sweep's dataset and architecture, made if it is not there."""
    name = f"ddray/{sweep.dataset}/{sweep.arch}"
    found = client.get_experiment_by_name(name)
    if found is None:
        database = sqlite_file(uri)
        location = None if database is None else artefacts_beside(database)  # a server knows where its artefacts go
        note = {"mlflow.note.content": _HOW_TO_READ.format(dataset=sweep.dataset, arch=sweep.arch)}
        with unless_there():
            client.create_experiment(name, artifact_location=location, tags=note)
        found = client.get_experiment_by_name(name)
        assert found is not None
    if found.lifecycle_stage == "deleted":  # its name cannot be used again in any other way
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


_HOW_TO_READ = """\
Distilled sets of **{dataset}** for **{arch}**, searched by ddray. A parent run is a sweep; its children are the trials.

- `val_accuracy` and `loss` are curves over outer steps: look at them by step (the times between points are made up).
- `value` is what the study was told, `seconds` what the trial cost.
- The tag `ddray.status` tells how a trial ended: finished, pruned (stopped early), diverged or failed; `ddray.note`
  says more. MLflow itself shows pruned and diverged trials as killed.
- `ddray.searched` names the parameters that the sweep searched.
- The best sets are models in the registry, `models:/{dataset}-{arch}-SOURCE@best`, and come home with `ddray best`.
"""

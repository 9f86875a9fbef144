"""A sweep's runs in MLflow: a parent run for the sweep, a child run for each trial, written by the driver alone.

The record is a projection of the study and of the trials' files. Every call may be repeated, by this process or by a
later one: what is already there stays as it is, what is missing is added.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddray.tracking.entries import End, Status, SweepEntry, TrialEntry, as_text
from ddray.tracking.experiment import experiment_of
from ddray.tracking.store import open_client, pages, quiet

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run

__all__ = ["End", "Recorder", "Status", "SweepEntry", "TrialEntry"]

_MLFLOW_STATUS = {
    "running": "RUNNING",
    "finished": "FINISHED",
    "pruned": "KILLED",
    "diverged": "KILLED",
    "interrupted": "KILLED",
    "failed": "FAILED",
}
# MLflow's limits, per call and per value.
_METRICS, _PARAMS, _TAGS = 800, 100, 100
_PARAM_LENGTH, _TAG_LENGTH = 6000, 8000


@dataclass
class _Child:
    """What the record already holds of a trial, so that only differences are sent."""

    run_id: str
    start: int  # milliseconds
    status: str
    tags: dict[str, str]
    params: set[str]
    sent: set[tuple[str, int]] = field(default_factory=set)

    @classmethod
    def of(cls, run: Run) -> _Child:
        return cls(run.info.run_id, run.info.start_time, run.info.status, dict(run.data.tags), set(run.data.params))


class Recorder:
    """Writes one sweep into MLflow; a sweep that is there already, by name and directory, is taken up again.

    Raises:
        RequestError: the tracking URI cannot be used.
        MissingExtra: MLflow is not installed.

    """

    def __init__(self, tracking_uri: str, sweep: SweepEntry) -> None:
        self._sweep = sweep
        self._client = open_client(tracking_uri, create=True)
        self._experiment = experiment_of(self._client, tracking_uri, sweep)
        self._children: dict[int, _Child] = {}
        self._parent = self._take_up() or self._begin()
        self._client.log_text(self._parent, sweep.space, "space.yaml")

    def run_id(self, number: int | None = None) -> str:
        """The MLflow run of a trial that was recorded, or of the sweep."""
        return self._parent if number is None else self._children[number].run_id

    def trial(self, entry: TrialEntry) -> None:
        """Bring a trial's run up to date; it is created if it is not there."""
        child = self._children.get(entry.number)
        if child is None:
            child = self._children[entry.number] = self._create(entry)
        self._send(child, entry)
        status = _MLFLOW_STATUS[entry.status]
        if status == child.status:
            return
        if status == "RUNNING":
            self._client.update_run(child.run_id, status=status)
        else:
            ended = entry.started + entry.seconds if entry.ended is None else entry.ended
            self._terminate(child.run_id, status, round(1000 * ended))
        child.status = status

    def artefacts(self, number: int, directory: Path) -> None:
        """Keep a recorded trial's distilled set, as `distilled_set`, and a preview: `preview.png` or, of text, `preview.txt`.

        Raises:
            RequestError: `directory` is not a distilled set.

        """
        from ddray.distillation.distilled_set import load

        child, distilled = self._children[number], load(directory)
        digest = distilled.manifest.sha256
        if child.tags.get("ddray.sha256") == digest:
            return
        with quiet():
            self._client.log_artifacts(child.run_id, str(directory), "distilled_set")
        if distilled.preview_suffix is not None:
            with tempfile.TemporaryDirectory() as folder:
                picture = distilled.preview(Path(folder) / f"preview{distilled.preview_suffix}")
                self._client.log_artifact(child.run_id, str(picture))
        # Last, so that an upload that was cut short is done again.
        self._client.set_tag(child.run_id, "ddray.sha256", digest)
        child.tags["ddray.sha256"] = digest

    def finish(self, status: End, metrics: Mapping[str, float], files: Sequence[Path] = ()) -> None:
        """End the sweep's own run with its figures; the same sweep may be taken up and finished again."""
        from mlflow.entities import Metric, RunTag

        known = self._client.get_run(self._parent).data.metrics
        now = round(1000 * time.time())
        fresh = [Metric(k, v, now, 0) for k, v in metrics.items() if math.isfinite(v) and known.get(k) != v]
        self._client.log_batch(self._parent, metrics=fresh, tags=[RunTag("ddray.status", status)])
        for file in files:
            self._client.log_artifact(self._parent, str(file))
        self._terminate(self._parent, _MLFLOW_STATUS[status], now)

    def discard(self) -> None:
        """Delete the sweep's own run: nothing came of it."""
        self._client.delete_run(self._parent)

    def _take_up(self) -> str | None:
        """The run of this sweep if there is one, running again, with what it holds of the trials."""
        runs = self._runs(f"tags.`ddray.kind` = 'sweep' and tags.`ddray.sweep` = {_quoted(self._sweep.name)}")
        places = {run.data.tags.get("ddray.directory"): str(run.info.run_id) for run in reversed(runs)}
        parent = places.get(self._sweep.directory) or places.get(self._sweep.formerly)
        if parent is None:
            return None
        for run in self._runs(f"tags.`mlflow.parentRunId` = '{parent}'"):
            if "ddray.trial" in run.data.tags:
                self._children[int(run.data.tags["ddray.trial"])] = _Child.of(run)
        self._client.update_run(parent, status="RUNNING")
        for key, value in (("status", "running"), ("directory", self._sweep.directory)):
            self._client.set_tag(parent, f"ddray.{key}", value)
        return parent

    def _begin(self) -> str:
        digests = {f"ddray.digest.{split}": digest for split, digest in self._sweep.digests.items()}
        own = {"ddray.kind": "sweep", "ddray.status": "running", "ddray.directory": self._sweep.directory}
        own["ddray.seed"] = str(self._sweep.seed)
        tags = {**self._common_tags(), **own, **digests}
        return str(self._client.create_run(self._experiment, run_name=self._sweep.name, tags=tags).info.run_id)

    def _create(self, entry: TrialEntry) -> _Child:
        tags = {
            **self._common_tags(),
            "ddray.kind": "trial",
            "ddray.trial": str(entry.number),
            "ddray.status": entry.status,
            "mlflow.parentRunId": self._parent,
        }
        start, name = round(1000 * entry.started), f"trial {entry.number} of {self._sweep.name}"  # the UI cuts the end off
        return _Child.of(self._client.create_run(self._experiment, start_time=start, tags=tags, run_name=name))

    def _common_tags(self) -> dict[str, str]:
        sweep = self._sweep
        facts = {"sweep": sweep.name, "dataset": sweep.dataset, "arch": sweep.arch, "source": sweep.source}
        return {f"ddray.{key}": value for key, value in facts.items()}

    def _send(self, child: _Child, entry: TrialEntry) -> None:
        from mlflow.entities import Param, RunTag

        metrics = _metrics(child, entry)
        params = {k: _capped(as_text(v), _PARAM_LENGTH) for k, v in entry.params.items() if k not in child.params}
        tags = {k: v for k, v in _tags(entry).items() if child.tags.get(k) != v}
        told = [Param(key, value) for key, value in params.items()]
        tagged = [RunTag(key, value) for key, value in tags.items()]
        for part in range(max(-(-len(metrics) // _METRICS), -(-len(told) // _PARAMS), -(-len(tagged) // _TAGS))):
            self._client.log_batch(
                child.run_id,
                metrics=metrics[part * _METRICS : (part + 1) * _METRICS],
                params=told[part * _PARAMS : (part + 1) * _PARAMS],
                tags=tagged[part * _TAGS : (part + 1) * _TAGS],
            )
        child.params.update(params)
        child.tags.update(tags)
        child.sent.update((metric.key, metric.step) for metric in metrics)

    def _terminate(self, run_id: str, status: str, end_time: int) -> None:
        with quiet():
            self._client.set_terminated(run_id, status, end_time)

    def _runs(self, condition: str) -> list[Run]:
        def search(token: str | None) -> Any:
            return self._client.search_runs([self._experiment], condition, page_token=token)

        return list(pages(search))


def _metrics(child: _Child, entry: TrialEntry) -> list[Metric]:
    """Points not yet sent, each stamped with a time that only depends on the run's start and the step.

    MLflow appends a point that differs in time or value and drops one that is there already, so that a second recorder,
    which knows nothing of what the first one sent, changes nothing by sending all again.
    """
    from mlflow.entities import Metric

    points = {(key, step): value for step, values in entry.curves.items() for key, value in values.items()}
    if entry.status != "running":
        last = max(entry.curves, default=0)
        points["seconds", last] = entry.seconds
        if entry.value is not None:
            points["value", last] = entry.value
    return [
        Metric(key, float(value), child.start + step, step)
        for (key, step), value in sorted(points.items())
        if math.isfinite(value) and (key, step) not in child.sent
    ]


def _tags(entry: TrialEntry) -> dict[str, str]:
    tags = {"ddray.status": entry.status, "ddray.searched": ", ".join(sorted(entry.searched))}
    if entry.note:
        tags["ddray.note"] = entry.note
    return {key: _capped(value, _TAG_LENGTH) for key, value in tags.items()}


def _capped(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _quoted(text: str) -> str:
    return f'"{text}"' if "'" in text else f"'{text}'"

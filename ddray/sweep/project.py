"""The study and the trials' files, projected into MLflow."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Literal

import yaml
from optuna.trial import FrozenTrial

from ddray.data import Dataset
from ddray.sweep.execute import checkpoints
from ddray.sweep.space import suggest
from ddray.sweep.spec import SweepSpec
from ddray.sweep.study import SweepStudy, end_of
from ddray.sweep.trial import SET
from ddray.tracking.figures import sweep_figures
from ddray.tracking.recorder import Recorder, Status, SweepEntry, TrialEntry


class Projection:
    """Writes what the study knows of a sweep into MLflow; writing it again changes nothing.

    Raises:
        RequestError: the tracking server or database cannot be used.

    """

    def __init__(
        self, tracking_uri: str, spec: SweepSpec, study: SweepStudy, directory: Path, dataset: Dataset
    ) -> None:
        self._spec, self._study, self._directory = spec, study, directory
        source = str(spec.fixed.get("network.source", "random"))
        if any(parameter.key == "network.source" for parameter in spec.parameters):
            source = "searched"
        self.recorder = Recorder(
            tracking_uri,
            SweepEntry(
                name=directory.name,
                dataset=dataset.name,
                arch=spec.file.arch,
                source=source,
                seed=study.seed,
                directory=str(directory),
                space=yaml.safe_dump(spec.file.model_dump(mode="json"), sort_keys=False),
                digests=dataset.digests(),
            ),
        )

    def record(self, number: int) -> None:
        """Write one trial as the study has it now; with its set and picture, once it has ended."""
        frozen = self._study.study.get_trials(deepcopy=False)[number]
        self.recorder.trial(self.entry(frozen))
        if frozen.state.is_finished():
            found = [path / SET for path in checkpoints(self._directory, number) if (path / SET).is_dir()]
            if found:
                self.recorder.artefacts(number, found[0])

    def record_all(self) -> None:
        """Write every trial that was ever started."""
        for frozen in self._study.counted():
            self.record(frozen.number)

    def close(
        self, status: Literal["finished", "interrupted", "failed"], metrics: dict[str, float] | None = None
    ) -> None:
        """End the sweep's own run, with figures of all its trials."""
        entries = [self.entry(frozen) for frozen in self._study.counted()]
        with tempfile.TemporaryDirectory() as directory:
            figures = sweep_figures(entries, Path(directory)) if entries else []
            self.recorder.finish(status, metrics or {}, figures)

    def entry(self, frozen: FrozenTrial) -> TrialEntry:
        """A trial of the study in the record's words."""
        end = end_of(frozen)
        status: Status = "pruned" if end == "rejected" else end
        started, ended = frozen.datetime_start, frozen.datetime_complete
        return TrialEntry(
            number=frozen.number,
            status=status,
            params=self._params(frozen),
            searched=tuple(sorted(frozen.params)),
            curves={step: {"val_accuracy": value} for step, value in frozen.intermediate_values.items()},
            value=frozen.value,
            seconds=float(frozen.user_attrs.get("seconds", 0.0)),
            started=started.timestamp() if started else 0.0,
            ended=ended.timestamp() if ended else None,
            note=frozen.user_attrs.get("note", ""),
        )

    def _params(self, frozen: FrozenTrial) -> dict[str, Any]:
        values = suggest(self._spec.parameters, self._spec.fixed, _Told(frozen))  # type: ignore[arg-type]
        return self._spec.config(values).flat()


class _Told:
    """Answers a space's questions from what a trial was told before."""

    def __init__(self, frozen: FrozenTrial) -> None:
        self._params = frozen.params

    def suggest_int(self, key: str, *_: object, **__: object) -> Any:
        return self._params[key]

    suggest_float = suggest_int
    suggest_categorical = suggest_int

"""The study and the trials' files, projected into MLflow."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from optuna.trial import FrozenTrial

from ddray.data import RealData
from ddray.distillation.distilled_set import load
from ddray.errors import RecordError, RequestError
from ddray.sweep.execute import checkpoints
from ddray.sweep.space import suggest
from ddray.sweep.spec import SweepSpec
from ddray.sweep.study import SweepStudy, end_of
from ddray.sweep.trial import SET
from ddray.tracking.catalog import Registered, register
from ddray.tracking.figures import sweep_figures
from ddray.tracking.recorder import Recorder, Status, SweepEntry, TrialEntry


class Projection:
    """Writes what the study knows of a sweep into MLflow; writing it again changes nothing.

    While trials run, a record that fails does not stop them: it is said once, and what is missing is written at the end.

    Raises:
        RequestError: the tracking server or database cannot be used.

    """

    def __init__(
        self, tracking_uri: str, spec: SweepSpec, study: SweepStudy, directory: Path, dataset: RealData
    ) -> None:
        self._uri, self._spec, self._study, self._directory = tracking_uri, spec, study, directory
        self._failed = self._over = False
        # By itself, MLflow tries a server again for four minutes, and the driver would wait.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
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
                formerly=_gone(study.study.user_attrs.get("directory", "")),
            ),
        )

    def record(self, number: int) -> None:
        """Write one trial as the study has it now; with its set and picture, once it has ended."""
        if self._failed:
            return
        logging.disable(logging.ERROR)  # MLflow logs a page for every failure; one line says it
        try:
            self._write(number)
        except Exception as error:  # drivers and servers fail in their own ways
            self._warn(error)
        finally:
            logging.disable(logging.NOTSET)

    def record_all(self) -> None:
        """Write every trial that was ever started, now that none runs.

        Raises:
            RecordError: not all could be written.

        """
        self._over = True
        try:
            for frozen in self._study.counted():
                self._write(frozen.number)
        except Exception as error:
            raise RecordError(_line(error), str(self._directory)) from error

    def close(
        self, status: Literal["finished", "interrupted", "failed"], metrics: dict[str, float] | None = None
    ) -> None:
        """End the sweep's own run; where it is finished, with figures of all its trials.

        Raises:
            RecordError: it could not be written, and the sweep is finished; otherwise that is only said.

        """
        try:
            if status == "finished":
                with tempfile.TemporaryDirectory() as directory:
                    entries = [self.entry(frozen) for frozen in self._study.counted()]
                    self.recorder.finish(status, metrics or {}, sweep_figures(entries, Path(directory)))
            elif not self._failed:
                self._over = True
                for frozen in self._study.counted():
                    if not frozen.state.is_finished():
                        self._write(frozen.number)
                self.recorder.finish(status, {})
        except Exception as error:
            if status == "finished":
                raise RecordError(_line(error), str(self._directory)) from error
            self._warn(error)

    def register(self, number: int, place: Path) -> Registered:
        """Put the confirmed set of a recorded trial, which lies in `place`, into the catalogue.

        Raises:
            RequestError: the record no longer answers.
            RecordError: it answers, and what it was told could not be written.

        """
        try:
            return register(self._uri, self.recorder.run_id(number), place)
        except RequestError:
            raise
        except Exception as error:
            raise RecordError(_line(error), str(self._directory)) from error

    def discard(self) -> None:
        """Take the sweep's run back, before there was any trial."""
        try:
            self.recorder.discard()
        except Exception as error:
            self._warn(error)

    def _write(self, number: int) -> None:
        frozen = self._study.study.get_trials(deepcopy=False)[number]
        self.recorder.trial(self.entry(frozen))
        if frozen.state.is_finished():
            place = next(filter(_is_whole, (path / SET for path in checkpoints(self._directory, number))), None)
            if place is not None:
                self.recorder.artefacts(number, place)

    def _warn(self, error: Exception) -> None:
        self._failed = True
        print(
            f"ddray: the record cannot be written ({_line(error)}); the study has all, and it is tried again at the end",
            file=sys.stderr,
        )

    def entry(self, frozen: FrozenTrial) -> TrialEntry:
        """A trial of the study in the record's words."""
        end = end_of(frozen)
        status: Status = "pruned" if end == "rejected" else "interrupted" if end == "running" and self._over else end
        started, ended = frozen.datetime_start, frozen.datetime_complete
        losses: Mapping[str, float] = frozen.user_attrs.get("losses", {})
        return TrialEntry(
            number=frozen.number,
            status=status,
            params=self._params(frozen),
            searched=tuple(sorted(frozen.params)),
            curves={
                step: {"val_accuracy": value, "loss": losses[str(step)]} if str(step) in losses else {"val_accuracy": value}
                for step, value in frozen.intermediate_values.items()
            },
            value=frozen.value,
            seconds=float(frozen.user_attrs.get("seconds", 0.0)),
            started=started.timestamp() if started else 0.0,
            ended=ended.timestamp() if ended else None,
            note=frozen.user_attrs.get("note", ""),
        )

    def _params(self, frozen: FrozenTrial) -> dict[str, Any]:
        try:
            values = suggest(self._spec.parameters, self._spec.fixed, _Told(frozen))  # type: ignore[arg-type]
        except KeyError:  # killed while it was suggested: a resume asks for the rest
            return dict(frozen.params)
        return self._spec.config(values).flat()


class _Told:
    """Answers a space's questions from what a trial was told before."""

    def __init__(self, frozen: FrozenTrial) -> None:
        self._params = frozen.params

    def suggest_int(self, key: str, *_: object, **__: object) -> Any:
        return self._params[key]

    suggest_float = suggest_int
    suggest_categorical = suggest_int


def _gone(directory: str) -> str:
    """Where a sweep lay, if it is there no more: a copy is another sweep."""
    return "" if Path(directory).exists() else directory


def _is_whole(place: Path) -> bool:
    """Whether a set can be read; if the driver was killed while this one was written, there is one before."""
    try:
        load(place)
    except RequestError:
        return False
    return True


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]

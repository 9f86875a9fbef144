"""What the driver shows and records while trials run: Tune's callback."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray.tune import Callback
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ddray.sweep.searcher import StudySearcher


@dataclass
class Tally:
    """Where a sweep stands."""

    target: int
    done: int
    running: int
    best: float
    left: float  # seconds; infinite while no trial has ended

    def line(self) -> str:
        """The state in words."""
        best = "–" if math.isinf(self.best) else f"{100 * self.best:.2f} %"
        left = "" if math.isinf(self.left) or self.done >= self.target else f", about {clock(self.left)} left"
        return f"{self.done} of {self.target} trials done, {self.running} running, best {best}{left}"


class Watch(Callback):
    """Shows live progress on standard error, and passes every trial that moved on to `record`.

    Args:
        searcher: knows the numbers of the running trials.
        target: trials that the sweep is to have.
        record: writes one trial to the record.
        quiet_seconds: the least time between two lines where the terminal cannot redraw.

    """

    def __init__(
        self, searcher: StudySearcher, target: int, record: Callable[[int], None], quiet_seconds: float = 10.0
    ) -> None:
        self._searcher, self._study, self._target, self._record = searcher, searcher.study, target, record
        self._console = Console(stderr=True)
        self._quiet, self._spoken = quiet_seconds, 0.0
        self._began = math.inf
        self._before = sum(t.state.is_finished() for t in self._study.counted())
        self._progress = Progress(
            TextColumn("[bold]sweep[/]"), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn(),
            console=self._console, disable=not self._console.is_terminal, transient=True,
        )  # fmt: skip
        self._task = self._progress.add_task("starting Ray", total=target, completed=self._before)

    def __enter__(self) -> Watch:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        self._console.print(self.tally().line(), highlight=False)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A worker begins a trial, or takes it up again."""
        self._began = min(self._began, time.monotonic())
        self._moved(trial)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A look at the validation split has been reported."""
        self._moved(trial)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The trial has ended, by itself or by successive halving."""
        self._moved(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The trial has crashed for the last time."""
        self._moved(trial)

    def tally(self) -> Tally:
        """Count the study."""
        trials = self._study.counted()
        done = sum(trial.state.is_finished() for trial in trials)
        best = self._study.best()
        ended = done - self._before
        pace = (time.monotonic() - self._began) / ended if ended else math.inf
        return Tally(
            target=self._target,
            done=done,
            running=len(trials) - done,
            best=-math.inf if best is None or best.value is None else best.value,
            left=pace * max(self._target - done, 1),
        )

    def _moved(self, trial: Any) -> None:
        number = self._searcher.numbers.get(trial.trial_id)
        if number is not None:
            self._record(number)
        self._show(self.tally())

    def _show(self, tally: Tally) -> None:
        self._progress.update(self._task, completed=tally.done, description=tally.line())
        if not self._console.is_terminal and time.monotonic() - self._spoken > self._quiet:
            self._spoken = time.monotonic()
            self._console.print(tally.line(), highlight=False)

    def __getstate__(self) -> dict[str, Any]:
        """Tune's snapshot is never read: leave consoles and studies out of it."""
        return {}


def clock(seconds: float) -> str:
    """A duration as people say it."""
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"

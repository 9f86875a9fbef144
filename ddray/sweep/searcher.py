"""The study behind Tune's two interfaces: what to run next, and what to stop."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from ddray.sweep.study import Assignment, SweepStudy


class StudySearcher(Searcher):
    """Hands out the study's unfinished trials, then new ones, and tells the study how each ends.

    Args:
        study: the sweep's study.
        unfinished: numbers of trials to take up again.
        checkpoints: finds the checkpoint directories of a trial number, the latest first.

    """

    def __init__(self, study: SweepStudy, unfinished: list[int], checkpoints: Callable[[int], list[Path]]) -> None:
        super().__init__(metric="val_accuracy", mode="max")
        self.study, self._checkpoints = study, checkpoints
        self._unfinished = deque(unfinished)
        self.numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """The next trial's configuration."""
        assignment = self._next()
        self.numbers[trial_id] = assignment.number
        return {
            "number": assignment.number,
            "seed": assignment.seed,
            "config": assignment.config.flat(),
            "checkpoints": [str(path) for path in self._checkpoints(assignment.number)],
        }

    def _next(self) -> Assignment:
        while self._unfinished:
            resumed = self.study.resume(self._unfinished.popleft())
            if resumed is not None:
                return resumed
        return self.study.assign()

    def observe(self, trial_id: str, result: dict[str, Any]) -> None:
        """Report a look at the validation split to the study."""
        if not result["diverged"]:
            self.study.report(self.numbers[trial_id], result["outer_step"], result["val_accuracy"], result["seconds"])

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Reports go through the scheduler, which needs them first."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """End the trial in the study: whatever stopped it, its last result says why."""
        number = self.numbers.get(trial_id)
        if number is None:
            return
        if error or result is None:
            self.study.end(
                number, "failed", note="the trial crashed, or its worker did, more often than it is tried again"
            )
        elif result["diverged"]:
            self.study.end(number, "diverged", note=result["diverged"])
        elif result["budget_reached"]:
            self.observe(trial_id, result)
            self.study.end(number, "finished", value=result["value"])
        else:
            self.study.end(number, "pruned", note=f"successive halving at outer step {result['outer_step']}")

    def save(self, checkpoint_path: str) -> None:
        """The study remembers: there is nothing to save."""

    def restore(self, checkpoint_path: str) -> None:
        """A sweep is resumed from its study, never from Tune's snapshot."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher into a snapshot that is never read again: leave the open study out of it."""
        return {}


class StudyScheduler(FIFOScheduler):
    """Stops a trial where the study's successive halving does."""

    def __init__(self, searcher: StudySearcher) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._searcher = searcher

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Report to the study, and ask it."""
        self._searcher.observe(trial.trial_id, result)
        stop = self._searcher.study.should_stop(self._searcher.numbers[trial.trial_id])
        decision: str = TrialScheduler.STOP if stop else TrialScheduler.CONTINUE
        return decision

    def __getstate__(self) -> dict[str, Any]:
        """As the searcher: the snapshot is never read."""
        return {}

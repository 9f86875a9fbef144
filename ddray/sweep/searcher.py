"""The study behind Tune's two interfaces: what to run next, and what to stop."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from ddray.sweep.study import Assignment, SweepStudy, halved_at


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
        self.crashes: dict[str, str] = {}  # the last words of trials that crashed

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
        number = self.numbers[trial_id]
        if self.study.is_live(number) and not result["diverged"]:
            step, value = result["outer_step"], result["val_accuracy"]
            self.study.report(number, step, value, loss=result["loss"], seconds=result["seconds"])

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Reports go through the scheduler, which needs them first."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """End the trial in the study: whatever stopped it, its last result says why."""
        number = self.numbers.get(trial_id)
        if number is None or (result is None and not error):  # Tune let go of it before it ran: it stays unfinished
            return
        if error or result is None:
            cause = self.crashes.get(trial_id, "its worker was lost")
            self.study.end(number, "failed", note=f"crashed more often than it is tried again; at last: {cause}")
        elif result["diverged"]:
            self.study.end(number, "diverged", note=result["diverged"])
        elif result["budget_reached"]:
            self.observe(trial_id, result)
            self.study.end(number, "finished", value=result["value"])
        else:
            self.study.end(number, "pruned", note=halved_at(result["outer_step"]))

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
        stop = self._searcher.study.should_stop(self._searcher.numbers[trial.trial_id], result["outer_step"])
        decision: str = TrialScheduler.STOP if stop else TrialScheduler.CONTINUE
        return decision

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Keep what a trial died of; Tune asks the scheduler before it tells the searcher."""
        self._searcher.crashes[trial.trial_id] = _last_words(trial.error_file)

    def __getstate__(self) -> dict[str, Any]:
        """As the searcher: the snapshot is never read."""
        return {}


def _last_words(error_file: str | None) -> str:
    """The last line of the traceback that Tune wrote, which names the exception."""
    try:
        lines = Path(error_file or "").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:  # a worker that died may leave none
        lines = []
    return lines[-1].strip()[:300] if lines else "its worker was lost"

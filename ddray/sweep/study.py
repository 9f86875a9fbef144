"""The Optuna study: the only memory of a sweep."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from ddray.distillation.config import DistillConfig, EngineConfig
from ddray.distillation.streams import seed_of
from ddray.errors import RequestError
from ddray.sweep.constraint import Problem
from ddray.sweep.space import suggest
from ddray.sweep.spec import SweepSpec
from ddray.sweep.storage import study_uri

End = Literal["finished", "pruned", "diverged", "failed", "rejected"]
_MOST_REJECTIONS = 1_000


@dataclass(frozen=True)
class Assignment:
    """A trial that is to run: its number in the study, its whole configuration and its seed."""

    number: int
    config: DistillConfig
    seed: int


class SweepStudy:
    """A study with the words of a sweep: assign, report, end.

    Ends in Optuna's words: finished is COMPLETE with the value of networks B; pruned is PRUNED; diverged is PRUNED with a
    violated constraint, because TPE learns from those and never looks at FAIL; failed (crashed) is FAIL; rejected (a
    suggestion that breaks a constraint, never started) is PRUNED with its violation.
    """

    def __init__(self, study: optuna.Study, spec: SweepSpec, problem: Problem, seed: int) -> None:
        self.study, self.spec, self.problem, self.seed = study, spec, problem, seed
        self._live: dict[int, Trial] = {}

    def unfinished(self) -> list[int]:
        """Numbers of trials that were started and not ended, and that this process does not run."""
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return [trial.number for trial in running if trial.number not in self._live]

    def counted(self) -> list[FrozenTrial]:
        """The trials that were ever started: all but rejected suggestions."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if end_of(trial) != "rejected"]

    def left(self, target: int) -> int:
        """How many trials have yet to end before the sweep has `target`."""
        trials = self.counted()
        return max(target, len(trials)) - sum(trial.state.is_finished() for trial in trials)

    def resume(self, number: int) -> Assignment | None:
        """Take up an unfinished trial; None if it was killed before its suggestion was found to be allowed."""
        frozen = self.study.get_trials(deepcopy=False)[number]
        self._seed_sampler(number)  # for what it was not asked before it was killed
        return self._assign(Trial(self.study, frozen._trial_id))

    def assign(self) -> Assignment:
        """Ask for the next trial. Suggestions that break a constraint are told as such and replaced.

        Raises:
            RequestError: so many suggestions in a row broke a constraint that the space as good as excludes itself.

        """
        for _ in range(_MOST_REJECTIONS):
            self._seed_sampler(len(self.study.get_trials(deepcopy=False)))
            assignment = self._assign(self.study.ask())
            if assignment is not None:
                return assignment
        raise RequestError(
            "constraints", list(self.spec.file.constraints), f"{_MOST_REJECTIONS} suggestions broke them"
        )

    def _seed_sampler(self, number: int) -> None:
        # A suggestion depends on the study and on (sweep seed, trial number) alone: a resumed sweep goes on alike.
        self.study.sampler = sampler(seed_of(self.seed, "suggestion", number))

    def _assign(self, trial: Trial) -> Assignment | None:
        config = self.spec.config(suggest(self.spec.parameters, self.spec.fixed, trial))
        violations = {str(c.quantity): c.violation(config, self.problem) for c in self.spec.constraints}
        for name, violation in violations.items():
            _set_constraint(trial, name, violation)
        if any(violation > 0 for violation in violations.values()):
            trial.set_user_attr("end", "rejected")
            self.study.tell(trial, state=TrialState.PRUNED)
            return None
        self._live[trial.number] = trial
        return Assignment(trial.number, config, seed_of(self.seed, "trial", trial.number) % 2**31)

    def report(self, number: int, step: int, value: float, *, loss: float, seconds: float) -> None:
        """Record a look at the validation split; one that is known already (a step done again) changes nothing."""
        trial = self._live[number]
        if step not in self.study.get_trials(deepcopy=False)[number].intermediate_values:
            trial.report(value, step)
            trial.set_user_attr("losses", {**trial.user_attrs.get("losses", {}), str(step): loss})
        trial.set_user_attr("seconds", seconds)

    def is_live(self, number: int) -> bool:
        """Whether this process runs the trial."""
        return number in self._live

    def should_stop(self, number: int, step: int) -> bool:
        """Whether successive halving ends the trial at its report of an outer step.

        The answer is written down, for Optuna gives it once: asked again about the same report, it lets the trial go on.
        """
        trial = self._live[number]
        if "stopped" not in trial.user_attrs and trial.should_prune():
            trial.set_user_attr("stopped", step)
        return "stopped" in trial.user_attrs

    def end_stopped(self) -> None:
        """End the trials that were to stop when an earlier driver was killed."""
        for number in self.unfinished():
            frozen = self.study.get_trials(deepcopy=False)[number]
            if "stopped" in frozen.user_attrs:
                self._live[number] = Trial(self.study, frozen._trial_id)
                self.end(number, "pruned", note=halved_at(frozen.user_attrs["stopped"]))

    def end(self, number: int, end: End, *, value: float | None = None, note: str = "") -> None:
        """End a trial; one that has ended stays as it is."""
        if number not in self._live:
            return
        trial = self._live[number]
        trial.set_user_attr("end", end)
        if note:
            trial.set_user_attr("note", note)
        if end == "diverged":
            _set_constraint(trial, "finite", 1.0)
        states = {"finished": TrialState.COMPLETE, "failed": TrialState.FAIL}
        self.study.tell(trial, value if end == "finished" else None, state=states.get(end, TrialState.PRUNED))
        del self._live[number]

    def best(self) -> FrozenTrial | None:
        """The finished trial with the highest value; of equals, the first."""
        finished = [trial for trial in self.counted() if trial.state == TrialState.COMPLETE]
        return max(finished, key=lambda trial: (_value(trial), -trial.number), default=None)


def open_study(
    directory: Path, spec: SweepSpec, problem: Problem, seed: int, digests: Mapping[str, str],
    vectors: Mapping[str, str] | None = None, *, resume: bool,
) -> SweepStudy:  # fmt: skip
    """Create the study of a new sweep in `directory`, or open that of an earlier one.

    `digests` are those of the splits, which of texts say nothing of how they are shown: `vectors` are of their word vectors.

    Raises:
        RequestError: the sweep to resume has another space, seed or data.

    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    identity = {"space": spec.identity(), "seed": seed, "data": dict(digests)} | ({"vectors": vectors} if vectors else {})
    study = optuna.create_study(
        storage=study_uri(directory),
        study_name=directory.name,
        direction="maximize",
        sampler=sampler(seed),
        pruner=pruner(spec),
        load_if_exists=resume,
    )
    known = study.user_attrs.get("identity")
    if known is None:
        study.set_user_attr("identity", json.loads(json.dumps(identity)))
        study.set_user_attr("created", time.time())
    else:
        _refuse_changes(known, json.loads(json.dumps(identity)))
    return SweepStudy(study, spec, problem, seed)


def halved_at(step: int) -> str:
    """Why a trial was pruned, in words."""
    return f"successive halving at outer step {step}"


def sampler(seed: int) -> optuna.samplers.BaseSampler:
    """Grouped multivariate TPE (Bergstra et al., 2011; Falkner et al., 2018), which conditional parameters need."""
    with warnings.catch_warnings():
        # `group` is marked experimental in Optuna 5.0; it is the documented way to search conditional spaces jointly.
        warnings.filterwarnings(
            "ignore", message=r".*is an experimental feature", category=optuna.exceptions.ExperimentalWarning
        )
        return optuna.samplers.TPESampler(seed=seed % 2**31, multivariate=True, group=True)


def pruner(spec: SweepSpec) -> optuna.pruners.BasePruner:
    """Asynchronous successive halving (Li et al., 2018) over the reports in the study; its rungs are kept there."""
    if spec.file.scheduler is None:
        return optuna.pruners.NopPruner()
    asha = spec.file.scheduler.asha
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=asha.grace_steps, reduction_factor=asha.reduction_factor)


def end_of(trial: FrozenTrial) -> End | Literal["running"]:
    """How a trial of the study ended."""
    end: End | None = trial.user_attrs.get("end")
    if trial.state.is_finished():
        return end or ("finished" if trial.state == TrialState.COMPLETE else "failed")
    return "running"


def _set_constraint(trial: Trial, name: str, violation: float) -> None:
    if name not in trial.constraints:  # set before the driver was killed: Optuna keeps the first and warns of a second
        trial.set_constraint(name, violation)


def _value(trial: FrozenTrial) -> float:
    return -math.inf if trial.value is None else trial.value


def _refuse_changes(known: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    if known["data"] != given["data"]:
        raise RequestError("--resume", "the dataset", "the data of the sweep; these splits have other digests")
    if known["seed"] != given["seed"]:
        raise RequestError("--seed", given["seed"], f"{known['seed']}, as the sweep began, or none")
    before, now = _settings(known["space"]), _settings(given["space"])
    for key in (*before, *now):
        if key not in before or key not in now or before[key] != now[key]:
            was = f"it is {before[key]!r}" if key in before else "it is not set"
            raise RequestError(key, now.get(key), f"a sweep is resumed with its own space, where {was}")
    if known.get("vectors", given.get("vectors")) != given.get("vectors"):  # a study from before they were recorded has none
        raise RequestError("--resume", "the word vectors", "those of the sweep; what data.vectors gives now are others")


def _settings(space: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a space, what it fixes and what it searches under their own keys."""
    parts = {key: value for key, value in space.items() if key not in ("fixed", "search", "engine")}
    # A study from before a setting existed had what is now its default.
    engine = EngineConfig.model_validate(space.get("engine", {})).model_dump(mode="json")
    engine = {f"engine.{key}": value for key, value in engine.items()}
    return {**space.get("search", {}), **space.get("fixed", {}), **parts, **engine}

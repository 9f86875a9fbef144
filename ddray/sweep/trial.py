"""One trial: Tune's Trainable around a Distiller."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune

from ddray.data import RealData
from ddray.distillation import state
from ddray.distillation.config import DistillConfig, EngineConfig
from ddray.distillation.distiller import Distiller
from ddray.distillation.run import artefact, finished_set, interval
from ddray.errors import Diverged, RequestError

CHECKPOINT = "distiller.safetensors"
SET = "distilled_set"


@dataclass(frozen=True)
class TrialContext:
    """What all trials of a sweep share beside the data."""

    arch: str
    engine: EngineConfig
    import_paths: tuple[str, ...]  # where the driver finds a user's network


class DistillTrial(tune.Trainable):
    """One `step` is one rung interval: outer steps up to the next look at the validation split.

    The configuration given by the searcher has `number`, `seed`, `config` (dotted keys) and `checkpoints`, directories of
    an earlier run of the sweep to take the trial up from, the latest first.
    """

    def setup(self, config: dict[str, Any], *, dataset: RealData, context: TrialContext) -> None:  # type: ignore[override]
        """Build the distiller, and take up the latest earlier checkpoint that can be read."""
        sys.path.extend(path for path in context.import_paths if path not in sys.path)
        self._dataset, self._context = dataset, context
        self._begin(config)

    def _begin(self, config: dict[str, Any]) -> None:
        self._seconds = 0.0
        settings = DistillConfig.from_flat(config["config"])
        self._distiller = self._new(settings, config["seed"])
        for directory in config["checkpoints"]:
            try:
                self._restore(Path(directory))
                break
            except (
                RequestError,
                OSError,
                ValueError,
            ) as unreadable:  # killed while it was written: there is one before
                print(f"trial {config['number']}: {unreadable}", file=sys.stderr)
                self._distiller = self._new(settings, config["seed"])

    def _new(self, settings: DistillConfig, seed: int) -> Distiller:
        return Distiller(self._dataset, self._context.arch, settings, seed=seed, engine=self._context.engine)

    def step(self) -> dict[str, Any]:
        """Advance to the next look and report it; at the last, score the chosen step anew with networks B."""
        began, distiller = time.perf_counter(), self._distiller
        self._finished = None
        result: dict[str, Any] = {"diverged": "", "budget_reached": False, "value": None}
        try:
            distiller.advance(interval(distiller))
            result["val_accuracy"] = distiller.score().mean
            if distiller.step >= distiller.config.outer.steps:
                self._finished = finished_set(distiller)
                result |= {"budget_reached": True, "value": self._finished.manifest.scores[0].mean, "done": True}
        except Diverged as diverged:
            result |= {"diverged": str(diverged), "val_accuracy": 0.0, "done": True}
        self._seconds += time.perf_counter() - began
        return result | {"outer_step": distiller.step, "loss": distiller.loss, "seconds": self._seconds}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write the distiller, and the best set so far as an artefact of its own."""
        directory = Path(checkpoint_dir)
        (self._finished or artefact(self._distiller)).save(directory / SET)
        (directory / "seconds").write_text(repr(self._seconds), encoding="utf-8")
        state.save(self._distiller, directory / CHECKPOINT)

    def load_checkpoint(self, checkpoint: str) -> None:  # type: ignore[override]
        """Take up a checkpoint of this run, after a worker was lost."""
        self._restore(Path(checkpoint))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin another trial in the same process, with the imports and the data that it has."""
        self._begin(new_config)
        return True

    def _restore(self, directory: Path) -> None:
        seconds = float((directory / "seconds").read_text(encoding="utf-8"))
        state.load(self._distiller, directory / CHECKPOINT)
        self._seconds = seconds

"""Small real sweeps, and a trial that writes down what happens to it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
import yaml
from optuna.trial import FrozenTrial, TrialState

from ddray.data import Dataset
from ddray.distillation import distill
from ddray.distillation.config import DistillConfig, EngineConfig
from ddray.distillation.distilled_set import DistilledSet, load
from ddray.distillation.streams import seed_of
from ddray.sweep.execute import checkpoints
from ddray.sweep.trial import SET, DistillTrial, TrialContext

ROOT = Path(__file__).resolve().parents[2]
ARCH = "tests.distillation.problems:mlp"
QUICK = {
    "synthetic.steps": 2,
    "synthetic.epochs": 1,
    "synthetic.lr": 0.2,
    "outer.steps": 12,
    "outer.batch": 32,
    "outer.score_every": 4,
    "outer.lr": 0.05,
}


def save_blobs(file: Path, classes: int = 3, members: int = 80, shape: tuple[int, ...] = (1, 8, 8)) -> Path:
    """An .npz of images, a bright pattern of its own for each class."""
    draw = np.random.default_rng(0)
    patterns = draw.integers(0, 2, (classes, *shape)) * 120

    def split(count: int) -> tuple[Any, Any]:
        y = np.arange(classes * count) % classes
        return (patterns[y] + draw.integers(0, 136, (len(y), *shape))).astype(np.uint8), y

    (train_x, train_y), (test_x, test_y) = split(members), split(members // 4)
    np.savez(file, train_x=train_x, train_y=train_y, test_x=test_x, test_y=test_y)
    return file


def save_space(file: Path, data: Path, fixed: Mapping[str, Any], search: Mapping[str, Any], **more: Any) -> str:
    """A search space file over the blobs."""
    left = {key: value for key, value in (QUICK | dict(fixed)).items() if key not in search}
    content = {"dataset": str(data), "arch": ARCH, "fixed": left, "search": dict(search), **more}
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return str(file)


def told(directory: Path) -> list[FrozenTrial]:
    """The trials of a sweep as they are in its study, read by another connection than the sweep's own."""
    study = optuna.load_study(study_name=directory.name, storage=f"sqlite:///{directory / 'study.db'}")
    return study.get_trials()


def in_state(trials: Iterable[FrozenTrial], state: TrialState) -> list[int]:
    return [trial.number for trial in trials if trial.state == state]


def kept_set(directory: Path, number: int) -> DistilledSet:
    """What a trial left behind."""
    return load(checkpoints(directory, number)[0] / SET)


def same_tensors(one: DistilledSet, other: DistilledSet) -> bool:
    """Bit for bit."""
    pairs = ((one.inputs, other.inputs), (one.labels, other.labels), (one.rates, other.rates))
    return all(torch.equal(a, b) for a, b in pairs)


def uninterrupted(dataset: Dataset, config: DistillConfig, number: int, sweep_seed: int = 0) -> DistilledSet:
    """The set of a trial, distilled in one go without a sweep."""
    seed = seed_of(sweep_seed, "trial", number) % 2**31
    return distill(dataset, ARCH, config, seed=seed, engine=EngineConfig(device="cpu", threads=1))


def spied(log: Path, kill_once: int | None = None, always_crash: int | None = None) -> type[DistillTrial]:
    """A trial that appends what happens to it to `log`; the class travels to workers by value.

    Args:
        log: a file of JSON lines.
        kill_once: the trial whose worker is killed (SIGKILL) after its second look, the first time it comes there.
        always_crash: the trial that raises in its first step, every time.

    """

    class Spied(DistillTrial):
        def setup(self, config: dict[str, Any], *, dataset: Dataset, context: TrialContext) -> None:  # type: ignore[override]
            super().setup(config, dataset=dataset, context=context)
            self._number = config["number"]
            self._note("setup", memory=_mapped_from(dataset.train.x))

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self._number = new_config["number"]
            self._note("reset")
            return super().reset_config(new_config)

        def step(self) -> dict[str, Any]:
            before = self._distiller.step
            if self._number == always_crash:
                raise RuntimeError("no luck")
            result = super().step()
            marker = log.with_suffix(".killed")
            if self._number == kill_once and before > 0 and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            self._note("step", before=before, after=self._distiller.step)
            return result

        def _note(self, event: str, **more: Any) -> None:
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"event": event, "number": self._number, "pid": os.getpid(), **more}) + "\n")

    return Spied


def noted(log: Path, event: str, number: int | None = None) -> list[dict[str, Any]]:
    """What spied trials wrote down."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["event"] == event and number in (None, line["number"])]


def _mapped_from(tensor: torch.Tensor) -> str:
    """The file, if any, that the memory of a tensor is mapped from."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        span, _, _, _, _, *file = line.split(maxsplit=5)
        start, end = (int(bound, 16) for bound in span.split("-"))
        if start <= tensor.data_ptr() < end:
            return "".join(file)
    return ""

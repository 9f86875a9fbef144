"""An empty record, and distilled sets made by hand."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ddray.distillation.config import DistillConfig
from ddray.distillation.distilled_set import DistilledSet
from ddray.distillation.evaluate import Score, score_from
from ddray.distillation.manifest import DatasetRecord, Manifest, NetworkRecord
from ddray.distillation.streams import seed_of
from ddray.networks import build

MakeSet = Callable[..., Path]


@pytest.fixture
def uri(migrated: Path, tmp_path: Path) -> str:
    """The tracking URI of an empty record, in a folder whose name has a space."""
    folder = tmp_path / "my sweeps"
    folder.mkdir()
    shutil.copy(migrated, folder / "mlflow.db")
    return f"sqlite:///{folder / 'mlflow.db'}"


@pytest.fixture
def make_set(tmp_path: Path) -> MakeSet:
    """Saves a set of random tensors with the scores asked for; the same arguments give the same set."""

    def make(
        val: float | None = 0.8, *, test: float | None = None, samples: int = 2, arch: str = "LeNet", seed: int = 0
    ) -> Path:
        scores = [_score(val, "validation")] if val is not None else []
        scores += [_score(test, "test")] if test is not None else []
        made = _distilled(samples, arch, seed, tuple(scores))
        return made.save(tmp_path / f"set-{val}-{test}-{samples}-{arch.replace('/', '_')}-{seed}")

    return make


def _score(mean: float, split: str) -> Score:
    made = score_from([mean - 0.01, mean + 0.01], 100, "as-distilled", split)  # type: ignore[arg-type]
    return made.model_copy(update={"mean": mean, "date": "2026-01-01T00:00:00+00:00"})


def _distilled(samples: int, arch: str, seed: int, scores: tuple[Score, ...]) -> DistilledSet:
    shape, classes = (1, 28, 28), tuple(str(c) for c in range(10))
    draw = torch.Generator().manual_seed(seed_of(seed, str([score.mean for score in scores])))
    manifest = Manifest(
        dataset=DatasetRecord(
            name="toy", digests={}, input_shape=shape, class_names=classes, mean=(0.5,), std=(0.5,)
        ),
        network=NetworkRecord(
            arch=arch, args={}, shapes=build("LeNet", shape, 10).shapes, outputs=10, source="random", law="xavier",
            gain=1,
        ),
        step_order=(0,),
        sample_classes=tuple(i % 10 for i in range(samples)),
        loss="softmax",
        label_kind="soft",
        optimiser="sgd",
        config=DistillConfig().flat(),
        engine={},
        seed=seed,
        outer_step=10,
        outer_steps=10,
        scores=scores,
    )  # fmt: skip
    inputs = torch.randn(1, samples, *shape, generator=draw)
    labels = torch.randn(1, samples, 10, generator=draw)
    return DistilledSet(inputs, labels, torch.tensor([0.02]), None, manifest)

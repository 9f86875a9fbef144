"""What a distilled set says of itself: the manifest beside its tensors."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from typing import Any, Literal, get_args

from ddray.data import Dataset, TextDataset
from ddray.distillation.config import DistillConfig, Record
from ddray.distillation.evaluate import Protocol, Score, SplitName
from ddray.networks import Law

FORMAT = 3
"""2 knows text, 3 knows scores that were taken otherwise than the set records; sets of lower formats have none."""


class DatasetRecord(Record):
    """The real data behind a set: enough to know it again, and to normalise and name what a network is shown."""

    name: str
    digests: dict[str, str]  # SHA-256 of each split
    input_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]  # inputs are (x / 255 - mean) / std for uint8, (x - mean) / std for float data
    std: tuple[float, ...]

    @classmethod
    def of(cls, dataset: Dataset) -> DatasetRecord:
        """Describe a dataset."""
        return cls(
            name=dataset.name,
            digests=dataset.digests(),
            input_shape=dataset.input_shape,
            class_names=dataset.class_names,
            mean=dataset.mean,
            std=dataset.std,
        )


class TextRecord(Record):
    """How real sentences become what a network is shown: the vectors themselves are among the tensors."""

    words: tuple[str, ...]  # the first two stand for padding and for a word that is not among the others
    max_length: int
    vectors: str  # "learned", or the name of a file
    vectors_sha256: str  # over words and vectors

    @classmethod
    def of(cls, dataset: Dataset) -> TextRecord | None:
        """Describe a dataset, if it is text."""
        if not isinstance(dataset, TextDataset):
            return None
        table = dataset.table
        return cls(words=table.words, max_length=dataset.length, vectors=table.source, vectors_sha256=table.digest())


class NetworkRecord(Record):
    """The networks that a set was learned for, and may be trained with."""

    arch: str
    args: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]  # every weight tensor, in the order of the flat vector
    outputs: int
    source: Literal["random", "fixed"]
    law: Law
    gain: float


class Manifest(Record):
    """Everything about a distilled set that is not a tensor."""

    format: int = FORMAT
    dataset: DatasetRecord
    network: NetworkRecord
    step_order: tuple[int, ...]  # the minibatch that each inner step trains on
    sample_classes: tuple[int, ...]  # the class that each of a step's samples began as
    loss: Literal["softmax", "binary"]
    label_kind: Literal["hard", "soft", "softmax"]
    optimiser: Literal["sgd", "momentum", "adam"]  # its constants: `inner` in config
    config: dict[str, Any]
    engine: dict[str, Any]
    seed: int
    outer_step: int  # the outer step at which this set was chosen
    outer_steps: int  # outer steps done
    text: TextRecord | None = None
    scores: tuple[Score, ...] = ()
    baselines: dict[str, tuple[Score, ...]] = {}
    versions: dict[str, str] = {}
    sha256: str = ""

    @property
    def distill_config(self) -> DistillConfig:
        """The settings that made the set."""
        return DistillConfig.from_flat(self.config)

    def score(self, split: SplitName, protocol: Protocol = "as-distilled") -> Score | None:
        """The score that stands for the set, trained as it records: that by the most networks; of equals, the latest."""
        found = [s for s in self.scores if (s.split, s.protocol) == (split, protocol) and s.otherwise is None]
        return max(reversed(found), key=lambda score: score.n, default=None)

    def standing(self) -> list[Score]:
        """The scores that stand for the set, of every protocol and split that it has any of."""
        pairs = product(get_args(Protocol), get_args(SplitName))
        return [score for protocol, split in pairs if (score := self.score(split, protocol)) is not None]

    def test_looks(self) -> int:
        """How often the test split has been looked at for this set."""
        return sum(score.split == "test" and score.protocol == "as-distilled" for score in self.scores)


def label_kind(config: DistillConfig) -> Literal["hard", "soft", "softmax"]:
    """Hard labels are one-hot and stay so; soft ones are free numbers; softmax ones sum to one."""
    if config.labels.softmax:
        return "softmax"
    plain = config.labels.init == "one_hot" and config.labels.scale == 1.0 and config.labels.shift == 0.0
    return "hard" if plain and not config.labels.learn else "soft"


def seal(manifest: Manifest, tensors: bytes) -> Manifest:
    """The manifest with the SHA-256 over the tensor file and over everything else it says."""
    manifest = manifest.model_copy(update={"format": FORMAT})
    return manifest.model_copy(update={"sha256": checksum(manifest.model_dump(mode="json"), tensors)})


def checksum(fields: Mapping[str, Any], tensors: bytes) -> str:
    """SHA-256 over the tensor file's bytes and the manifest's fields other than `sha256`."""
    said = {key: value for key, value in fields.items() if key != "sha256"}
    canonical = json.dumps(said, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(tensors + canonical.encode()).hexdigest()


def installed_versions() -> dict[str, str]:
    """The versions that decide what numbers come out."""
    found = {"python": platform.python_version()}
    for package in ("ddray", "torch", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a source tree that was never installed
            found[package] = "unknown"
    return found

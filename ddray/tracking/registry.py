"""A distilled set as a version in MLflow's model registry: its name, its tags, and the row that they make."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ddray.distillation.distilled_set import DistilledSet
from ddray.distillation.evaluate import SplitName
from ddray.tracking.store import pages

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

ALIAS = "best"


@dataclass(frozen=True)
class Entry:
    """A row of the leaderboard. Accuracies are in [0, 1], as distilled; `std` is None for one known network."""

    dataset: str
    arch: str
    source: str
    name: str
    version: str
    is_best: bool
    stored_samples: int
    val_accuracy: float
    val_std: float | None
    val_n: int
    test_accuracy: float | None
    test_std: float | None
    test_n: int | None
    test_looks: int
    sweep: str
    trial: str
    run_id: str
    date: str
    sha256: str
    tensors: str = ""  # SHA-256 of inputs, labels and rates; empty for what was registered before this was written down


def model_name(dataset: str, arch: str, source: str) -> str:
    """The registry's name for the sets of a dataset, an architecture and a network source.

    Characters outside [A-Za-z0-9_-] become _, and if there were any, 8 hex digits of the original's SHA-256 follow.
    """
    original = f"{dataset}-{arch}-{source}"
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", original)
    if plain == original:
        return plain
    return f"{plain}-{hashlib.sha256(original.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def set_tags(distilled: DistilledSet) -> dict[str, str]:
    manifest = distilled.manifest
    values: dict[str, Any] = {
        "dataset": manifest.dataset.name,
        "arch": manifest.network.arch,
        "source": manifest.network.source,
        "stored_samples": distilled.stored_samples,
        "sha256": manifest.sha256,
        "tensors": tensors_digest(distilled),
        "test_looks": manifest.test_looks(),
    }
    splits: Sequence[tuple[str, SplitName]] = (("val", "validation"), ("test", "test"))
    for short, split in splits:
        score = manifest.score(split)
        if score is not None:
            values |= {f"{short}_accuracy": score.mean, f"{short}_std": score.std, f"{short}_n": score.n}
    return {f"ddray.{key}": str(value) for key, value in values.items() if value is not None}


def tensors_digest(distilled: DistilledSet) -> str:
    """SHA-256 of what is trained on: it stays the same when a set is scored again."""
    digest = hashlib.sha256()
    for tensor in (distilled.inputs, distilled.labels, distilled.rates):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def entries(client: MlflowClient) -> list[Entry]:
    """Every version of every model that is a distilled set."""
    versions = pages(lambda token: client.search_model_versions(page_token=token))
    ours = [version for version in versions if "ddray.sha256" in version.tags]
    aliases = {name: client.get_registered_model(name).aliases for name in {version.name for version in ours}}
    return [entry(version, aliases[version.name].get(ALIAS)) for version in ours]


def entry(version: ModelVersion, best_version: str | None) -> Entry:
    tags = {key.removeprefix("ddray."): value for key, value in version.tags.items()}

    def number(key: str) -> float | None:
        return float(tags[key]) if key in tags else None

    return Entry(
        dataset=tags["dataset"],
        arch=tags["arch"],
        source=tags["source"],
        name=version.name,
        version=str(version.version),
        is_best=str(version.version) == str(best_version),
        stored_samples=int(tags["stored_samples"]),
        val_accuracy=float(tags["val_accuracy"]),
        val_std=number("val_std"),
        val_n=int(tags["val_n"]),
        test_accuracy=number("test_accuracy"),
        test_std=number("test_std"),
        test_n=int(tags["test_n"]) if "test_n" in tags else None,
        test_looks=int(tags["test_looks"]),
        sweep=tags.get("sweep", ""),
        trial=tags.get("trial", ""),
        run_id=version.run_id or "",
        date=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
        sha256=tags["sha256"],
        tensors=tags.get("tensors", ""),
    )

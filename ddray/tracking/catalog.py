"""The best distilled set for each dataset, architecture and network source: versions in MLflow's model registry."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ddray.distillation.distilled_set import DistilledSet, load
from ddray.distillation.set_files import MANIFEST, TENSORS
from ddray.errors import RequestError
from ddray.tracking.registry import ALIAS, Entry, entries, entry, model_name, set_tags, tensors_digest
from ddray.tracking.served import write_model
from ddray.tracking.sqlite import sqlite_file
from ddray.tracking.store import default_tracking_uri, open_client, quiet, unless_there

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = [
    "Entry",
    "Registered",
    "best",
    "default_tracking_uri",
    "fetch",
    "leaderboard",
    "model_name",
    "register",
    "resolve",
]

_DATA = "data"  # the distilled set's folder inside a model


@dataclass(frozen=True)
class Registered:
    """A version of a model; `previous` is the version that was the best before this one was registered."""

    name: str
    version: str
    is_best: bool
    previous: str | None


def register(tracking_uri: str, run_id: str, directory: Path) -> Registered:
    """Make a confirmed set a version of its model, and the best one if its validation accuracy is strictly higher.

    The set is uploaded to the run `run_id`, under `model`, as an MLflow model. A set that is registered already keeps
    its version and what was said of it then.

    Raises:
        RequestError: not a distilled set, one without a validation score, or a tracking URI that cannot be used.

    """
    distilled = load(directory)
    manifest, tensors = distilled.manifest, tensors_digest(distilled)
    if manifest.score("validation") is None:
        raise RequestError("set", str(directory), "it has no as-distilled score on validation to be compared by")
    client = open_client(tracking_uri, create=False)
    name = model_name(manifest.dataset.name, manifest.network.arch, manifest.network.source)
    rows = [row for row in entries(client) if row.name == name]
    same = (row for row in rows if row.sha256 == manifest.sha256 or (row.tensors == tensors and row.run_id == run_id))
    row = next(same, None) or _add(client, name, run_id, directory)
    holder = next((other for other in rows if other.is_best), None)
    # Where the holder is gone, deleted or renamed, the best that is left is.
    rivals = [*rows, row] if holder is None else [holder, row]
    winner = max(rivals, key=lambda rival: (rival.val_accuracy, -int(rival.version)))
    if winner is not holder:
        client.set_registered_model_alias(name, ALIAS, winner.version)
    return Registered(name, row.version, winner.version == row.version, holder.version if holder else None)


def leaderboard(tracking_uri: str | None = None, dataset: str | None = None, arch: str | None = None) -> list[Entry]:
    """Every registered set, best first within each dataset, architecture and network source.

    Nothing is created: a SQLite record that does not exist is an empty leaderboard.

    Raises:
        RequestError: the tracking URI cannot be used.

    """
    uri = tracking_uri or default_tracking_uri()
    file = sqlite_file(uri)
    if file is not None and (not file.exists() or not file.stat().st_size):
        return []
    rows = entries(open_client(uri, create=False))
    chosen = [row for row in rows if dataset in (None, row.dataset) and arch in (None, row.arch)]
    return sorted(chosen, key=lambda row: (row.dataset, row.arch, row.source, -row.val_accuracy, int(row.version)))


def best(
    dataset: str,
    arch: str,
    source: str = "random",
    *,
    max_samples: int | None = None,
    out: Path | str | None = None,
    tracking_uri: str | None = None,
) -> DistilledSet:
    """The best registered set, as `fetch` finds it."""
    uri = tracking_uri or default_tracking_uri()
    return fetch(uri, dataset, arch, source, max_samples, None if out is None else Path(out))[0]


def fetch(
    tracking_uri: str,
    dataset: str,
    arch: str,
    source: str = "random",
    max_samples: int | None = None,
    out: Path | None = None,
) -> tuple[DistilledSet, Path]:
    """Bring the best registered set home, and say where it lies.

    Args:
        tracking_uri: where the record is.
        dataset: the name of the dataset that the set is for.
        arch: the architecture.
        source: the network source.
        max_samples: choose the highest validation accuracy among sets of at most so many stored samples, instead of
            the version with the alias `best`.
        out: the directory to write; a cache in the user's cache folder if not given.

    Raises:
        RequestError: nothing is registered for these, or nothing that small; the files are gone or were altered; another
            source than random or fixed.

    """
    if source not in ("random", "fixed"):
        raise RequestError("--source", source, "random or fixed")
    client = open_client(tracking_uri, create=False)
    rows = entries(client)
    name = model_name(dataset, arch, source)
    own = sorted((row for row in rows if row.name == name), key=lambda row: (-row.val_accuracy, int(row.version)))
    if not own:
        there = sorted({f"{row.dataset} × {row.arch} × {row.source}" for row in rows})
        what = f"there is {', '.join(there)}" if there else "nothing is registered at all"
        raise RequestError("set", f"{dataset} × {arch} × {source}", f"no set is registered for it; {what}")
    if max_samples is None:
        row = next((row for row in own if row.is_best), own[0])
    else:
        small = [row for row in own if row.stored_samples <= max_samples]
        if not small:
            least = min(row.stored_samples for row in own)
            raise RequestError("--max-samples", max_samples, f"the smallest set of {name} stores {least} samples")
        row = small[0]
    return _bring(client, row, out)


def resolve(set_: str, tracking_uri: str | None = None) -> Path:
    """The directory of a set: `set_` itself, or what models:/NAME@ALIAS or models:/NAME/VERSION names, downloaded.

    Raises:
        RequestError: no such model or version, or not one of ddray's.

    """
    if not set_.startswith("models:"):
        return Path(set_)
    found = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", set_)
    if found is None:
        raise RequestError("set", set_, "a directory, models:/NAME@best or models:/NAME/VERSION")
    client = open_client(tracking_uri or default_tracking_uri(), create=False)
    name, alias, number = found.groups()
    rows = [row for row in entries(client) if row.name == name]
    wanted = number or client.get_registered_model(name).aliases.get(alias) if rows else None
    row = next((row for row in rows if row.version == str(wanted)), None)
    if row is None:
        there = ", ".join(sorted({row.name for row in entries(client)})) or "none"
        raise RequestError("set", set_, f"no such version of a distilled set is registered; models: {there}")
    return _bring(client, row, None)[1]


def _add(client: MlflowClient, name: str, run_id: str, directory: Path) -> Entry:
    """Upload a set and make a version of it; the version comes last, so that it never names missing files."""
    distilled = load(directory)
    tags = {**set_tags(distilled), **_origin(client, run_id)}
    path = f"model/{distilled.manifest.sha256[:12]}"  # a run may register several sets; each keeps its own files
    with quiet(), tempfile.TemporaryDirectory() as folder:
        write_model(distilled, Path(folder), _DATA)
        client.log_artifacts(run_id, folder, path)
        if not client.search_registered_models(f"name = '{name}'"):
            about = {key: tags[key] for key in ("ddray.dataset", "ddray.arch", "ddray.source")}
            with unless_there():
                client.create_registered_model(name, tags=about, description=_DESCRIPTION)
        return entry(client.create_model_version(name, f"runs:/{run_id}/{path}", run_id, tags=tags), None)


def _origin(client: MlflowClient, run_id: str) -> dict[str, str]:
    """The sweep and the trial that a run belongs to, as tags."""
    tags = client.get_run(run_id).data.tags
    return {key: tags[key] for key in ("ddray.sweep", "ddray.trial") if key in tags}


def _bring(client: MlflowClient, row: Entry, out: Path | None) -> tuple[DistilledSet, Path]:
    """The set of a version, verified, and where it was put: `out`, or the cache, where it may lie already."""
    target = out or _cache() / row.sha256
    there = _kept(target, row)
    if there is not None:
        return there, target
    if out is None and target.exists():  # damaged since: fetched anew
        shutil.rmtree(target)
    with quiet(), tempfile.TemporaryDirectory() as folder:
        where = f"model/{row.sha256[:12]}/{_DATA}"
        try:
            for name in (TENSORS, MANIFEST):
                place = Path(client.download_artifacts(row.run_id, f"{where}/{name}", folder))
        except Exception as error:  # stores fail in their own ways; all mean that the files cannot be had
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise RequestError(
                "set", f"models:/{row.name}/{row.version}", f"its files cannot be read: {why}"
            ) from error
        distilled = _verified(place.parent, row)
        try:
            return distilled, distilled.save(target)
        except OSError as error:
            raise RequestError("--out", str(target), f"it cannot be written: {error.strerror or error}") from error


def _kept(target: Path, row: Entry) -> DistilledSet | None:
    """What was fetched before, if it is whole; scored again since, it knows of looks at test that the record does not."""
    try:
        there = load(target)
    except RequestError:
        return None
    return there if there.manifest.sha256 == row.sha256 or tensors_digest(there) == row.tensors else None


def _verified(directory: Path, row: Entry) -> DistilledSet:
    distilled = load(directory)
    if distilled.manifest.sha256 != row.sha256:
        raise RequestError("set", f"models:/{row.name}/{row.version}", "its files are not those that were registered")
    return distilled


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddray"


_DESCRIPTION = """\
Distilled sets, found by ddray. The alias `best` has the highest validation accuracy; `ddray best` brings it home, and
`mlflow.pyfunc.load_model` trains a network on it that takes normalised float32 inputs and gives logits.
"""

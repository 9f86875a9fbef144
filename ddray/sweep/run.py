"""Start, resume, extend: one operation."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from ddray.data import Dataset, load
from ddray.distillation.config import EngineConfig
from ddray.distillation.distiller import resolve_device
from ddray.errors import RequestError
from ddray.sweep import spec as spec_module
from ddray.sweep.constraint import Problem
from ddray.sweep.execute import Cluster, execute
from ddray.sweep.project import Projection
from ddray.sweep.spec import SweepSpec
from ddray.sweep.study import open_study, stored_identity
from ddray.sweep.winner import Outcome, confirm
from ddray.tracking import default_tracking_uri


@dataclass(frozen=True)
class SweepRequest:
    """What `ddray search` was asked for; the names are those of its flags."""

    space: str
    trials: int | None = None
    name: str | None = None
    seed: int | None = None
    storage: str = "sweeps"
    tracking_uri: str | None = None
    address: str | None = None
    cpus_per_trial: float | None = None
    gpus_per_trial: float | None = None
    max_concurrent: int | None = None
    time_budget: float | None = None  # seconds
    resume: bool = False
    assignments: Sequence[str] = ()
    data: Path | None = None


@dataclass(frozen=True)
class Prepared:
    """A request that has been checked: nothing has been written yet."""

    request: SweepRequest
    spec: SweepSpec
    dataset: Dataset
    engine: EngineConfig
    directory: Path
    seed: int
    trials: int

    @property
    def problem(self) -> Problem:
        """What costs depend on."""
        return Problem(self.dataset.classes, self.dataset.input_shape)


def search(space: str | SweepRequest, **options: Any) -> Outcome:
    """Run a sweep: `ddray.search("search_spaces/mnist_lenet.yaml", trials=64)`.

    Opens the sweep's study, takes its unfinished trials up from their last checkpoints, asks for those that are missing,
    and confirms the winner. The options are the fields of `SweepRequest`.

    Raises:
        RequestError: a request that cannot be carried out; nothing is left behind.

    """
    request = space if isinstance(space, SweepRequest) else SweepRequest(str(space), **options)
    return run(prepare(request))


def prepare(request: SweepRequest) -> Prepared:
    """Check a request against its space, its data and its storage."""
    storage = storage_directory(request.storage)
    directory = sweep_directory(storage, request)
    spec = spec_module.read(request.space, request.assignments)
    dataset = load(spec.file.dataset, request.data)
    spec.check(dataset)
    for key, number in (("--trials", request.trials), ("--max-concurrent", request.max_concurrent)):
        if number is not None and number < 1:
            raise RequestError(key, number, "at least 1")
    seed = request.seed
    if request.resume:
        known = stored_identity(directory).get("seed", 0)
        seed = known if seed is None else seed
    trials = request.trials or spec.file.trials
    return Prepared(request, spec, dataset, resolve_engine(spec, request), directory, seed or 0, trials)


def run(prepared: Prepared) -> Outcome:
    """Run what is missing of a prepared sweep, then confirm and register its winner."""
    request, directory = prepared.request, prepared.directory
    tracking_uri = request.tracking_uri or default_tracking_uri(str(directory.parent))
    created = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    try:
        study = open_study(
            directory, prepared.spec, prepared.problem, prepared.seed, prepared.dataset.digests(), resume=request.resume
        )
        projection = Projection(tracking_uri, prepared.spec, study, directory, prepared.dataset)
    except RequestError:
        if created:  # refused before anything ran: leave nothing behind
            for file in directory.iterdir():
                file.unlink()
            directory.rmdir()
        raise
    cluster = Cluster(request.address or os.environ.get("RAY_ADDRESS"), _resources(prepared), request.max_concurrent)
    try:
        execute(prepared.spec.file.arch, prepared.engine, prepared.dataset, study, directory, cluster,
                target=prepared.trials, time_budget=request.time_budget, record=projection.record,
                import_paths=(str(Path.cwd()), *(p for p in sys.path if p)))  # fmt: skip
    except KeyboardInterrupt:
        projection.close("interrupted")
        raise
    projection.record_all()
    outcome = confirm(study, directory, prepared.dataset, projection, tracking_uri)
    study.study.set_user_attr("finished", True)
    return outcome


def storage_directory(storage: str) -> Path:
    """The directory that sweeps are kept in, which need not exist yet.

    Raises:
        RequestError: a file, a place that cannot be written to, or a URI of another kind than `file://`.

    """
    scheme, separator, rest = storage.partition("://")
    if separator and scheme != "file":
        raise RequestError("--storage", storage, "a directory that every node sees, or file://DIRECTORY")
    path = Path(rest if separator else storage).expanduser().resolve()
    nearest = next(p for p in (path, *path.parents) if p.exists())
    if not nearest.is_dir():
        raise RequestError("--storage", storage, f"a directory; {nearest} is a file")
    if not os.access(nearest, os.W_OK | os.X_OK) or _read_only(nearest):
        raise RequestError("--storage", storage, f"a directory that can be written to; {nearest} cannot")
    return path


def sweep_directory(storage: Path, request: SweepRequest) -> Path:
    """Where the sweep lies: a new place, or with `--resume` that of the sweep named, or of the only unfinished one."""
    if not request.resume:
        stem = Path(request.space).stem
        name = request.name or f"{stem}-{date.today():%Y%m%d}-{secrets.token_hex(2)}"
        if not name.strip(".") or set(name) & set("/\\:\0\"'?*<>|") or len(name) > 100:
            raise RequestError("--name", name, "up to 100 characters that can name a directory")
        if (storage / name).exists():
            raise RequestError("--name", name, f"it is in use in {storage}; give --resume to go on with it")
        return storage / name
    if request.name is not None:
        if not (storage / request.name / "study.db").is_file():
            raise RequestError("--resume", request.name, f"there is no such sweep in {storage}")
        return storage / request.name
    open_sweeps = [p.parent for p in sorted(storage.glob("*/study.db")) if not stored_identity(p.parent)["finished"]]
    if len(open_sweeps) != 1:
        found = ", ".join(p.name for p in open_sweeps) or "none"
        raise RequestError(
            "--resume", request.name, f"without --name, exactly one unfinished sweep in {storage}; found: {found}"
        )
    return open_sweeps[0]


def resolve_engine(spec: SweepSpec, request: SweepRequest) -> EngineConfig:
    """The engine record with nothing left open: written down once, kept by every trial and resume."""
    resources, engine = _merge(spec, request), spec.file.engine
    device = engine.device
    if device == "auto":
        device = "cuda" if resources["GPU"] > 0 else "cpu"
    threads = engine.threads or max(1, int(resources["CPU"]))
    return engine.model_copy(
        update={"device": resolve_device(device) if request.address is None else device, "threads": threads}
    )


def _merge(spec: SweepSpec, request: SweepRequest) -> dict[str, float]:
    import torch

    cpu = spec.file.resources.cpu if request.cpus_per_trial is None else request.cpus_per_trial
    if cpu <= 0:
        raise RequestError("--cpus-per-trial", cpu, "a positive number")
    gpu = request.gpus_per_trial
    if gpu is not None and gpu < 0:
        raise RequestError("--gpus-per-trial", gpu, "zero, a fraction of a card, or a number of cards")
    if gpu is None:  # the space's wish, where there is a card; a cluster is asked for what the space says
        gpu = spec.file.resources.gpu if request.address or torch.cuda.is_available() else 0.0
    return {"CPU": cpu, "GPU": gpu}


def _resources(prepared: Prepared) -> Mapping[str, float]:
    return _merge(prepared.spec, prepared.request)


def _read_only(directory: Path) -> bool:
    # os.access tells root that all is allowed; a file system mounted read-only still is not.
    return bool(os.statvfs(directory).f_flag & os.ST_RDONLY)

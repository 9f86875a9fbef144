"""Start, resume, extend: one operation."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ddray.data import RealData, load
from ddray.distillation.choose import PLAIN, settle
from ddray.distillation.config import DistillConfig, EngineConfig
from ddray.distillation.engine import resolve_device
from ddray.distillation.keys import parse
from ddray.distillation.preflight import check_memory, check_share, needed
from ddray.errors import RequestError
from ddray.sweep import spec as spec_module
from ddray.sweep.constraint import Problem
from ddray.sweep.execute import Cluster, execute, knock
from ddray.sweep.extent import largest
from ddray.sweep.project import Projection
from ddray.sweep.request import SweepRequest, check_numbers, request_of
from ddray.sweep.space_file import Resources
from ddray.sweep.spec import SweepSpec
from ddray.sweep.storage import earlier_sweep, made, new_sweep, remembered, sole_driver, storage_directory
from ddray.sweep.study import SweepStudy, open_study
from ddray.sweep.winner import Outcome, confirm
from ddray.tracking.sqlite import anchored, placed, portable
from ddray.tracking.store import default_tracking_uri

DEFAULT_SPACE = "digits_lenet"


@dataclass(frozen=True)
class Prepared:
    """A request that has been checked: nothing has been written yet."""

    request: SweepRequest
    spec: SweepSpec
    dataset: RealData
    engine: EngineConfig
    resources: Resources
    memory: int  # bytes of the largest trial; 0: few enough not to count
    directory: Path
    tracking_uri: str
    seed: int
    trials: int

    @property
    def problem(self) -> Problem:
        """What costs depend on."""
        return Problem.of(self.dataset)


def search(space: str | Path | SweepRequest | None = None, **options: Any) -> Outcome:
    """Run a sweep: `ddray.search("search_spaces/mnist_lenet.yaml", trials=64)`.

    Opens the sweep's study, takes its unfinished trials up from their last checkpoints, asks for those that are missing,
    and confirms the winner.

    Args:
        space: a YAML file, or the stem of one in search_spaces/ (default `digits_lenet`; with `resume`, the sweep's own).
        **options: the other fields of `SweepRequest`; `time_budget` in seconds, or as "30m".

    Raises:
        RequestError: a request that cannot be carried out; nothing is left behind.

    """
    return run(prepare(space if isinstance(space, SweepRequest) else request_of(space, options)))


def prepare(request: SweepRequest) -> Prepared:
    """Check a request against its space, its data and its storage.

    Raises:
        RequestError: the first thing that is wrong.

    """
    check_numbers(request)
    storage = storage_directory(request.storage)
    known: Mapping[str, Any] = {}
    if request.resume:
        directory = earlier_sweep(storage, request.name)
        known = remembered(directory)
    else:
        directory = new_sweep(storage, request.name, request.space or DEFAULT_SPACE)
    spec = _spec(request, known)
    resources = _resources(spec, request, known)
    address = request.cluster
    if address is not None:
        knock(address)
    dataset = load(spec.file.dataset, request.data)
    spec.check(dataset)
    seed = request.seed if request.seed is not None else known.get("identity", {}).get("seed", 0)
    trials = request.trials or known.get("target") or spec.file.trials
    most = largest(spec, Problem.of(dataset))
    engine = _engine(spec, dataset, most, trials, resources, address, known)
    memory = check_memory(dataset, spec.file.arch, most, engine) if engine.device == "cpu" else 0
    if engine.device.startswith("cuda") and address is None:
        _check_card(dataset, spec.file.arch, most, engine, resources.gpu)
    kept = placed(known["tracking_uri"], storage) if "tracking_uri" in known else None
    tracking_uri = anchored(request.tracking_uri or kept or default_tracking_uri(storage))
    return Prepared(request, spec, dataset, engine, resources, memory, directory, tracking_uri, seed, trials)


def run(prepared: Prepared) -> Outcome:
    """Run what is missing of a prepared sweep, then confirm and register its winner.

    Raises:
        RequestError: the record or the cluster cannot be used, or the sweep to resume is another one.

    """
    directory, spec, dataset, request = prepared.directory, prepared.spec, prepared.dataset, prepared.request
    new = not directory.exists()
    if not new and not request.resume:  # since it was prepared, another process has made it
        raise RequestError("--name", directory.name, "it is in use; give --resume to go on with it")
    with ExitStack() as held:
        with made(directory) if new else nullcontext():
            held.enter_context(sole_driver(directory))
            study = open_study(
                directory, spec, prepared.problem, prepared.seed, dataset.digests(), spec.vectors(dataset),
                resume=request.resume,
            )  # fmt: skip
            projection = Projection(prepared.tracking_uri, spec, study, directory, dataset)
            _remember(study, prepared)
        print(f"ddray: sweep {directory.name} in {directory.parent}", file=sys.stderr)
        try:
            _execute(prepared, study, projection)
            projection.record_all()
            if study.best() is not None:
                print("ddray: confirming the winner with fresh networks", file=sys.stderr)
            outcome = confirm(study, directory, dataset, projection, prepared.tracking_uri, prepared.trials)
        except KeyboardInterrupt:
            projection.close("interrupted")
            raise
        except RequestError:  # no such cluster, or none that a trial fits in; a space that as good as excludes itself
            if new and not study.counted():
                projection.discard()
                shutil.rmtree(directory)
            else:
                projection.close("failed")
            raise
        except Exception:  # Ray or the record gave up: the sweep does not stay running there
            projection.close("failed")
            raise
        study.study.set_user_attr("finished", outcome.left == 0)
        return outcome


def _execute(prepared: Prepared, study: SweepStudy, projection: Projection) -> None:
    request, resources = prepared.request, prepared.resources
    cluster = Cluster(
        request.cluster,
        {"CPU": resources.cpu, "GPU": resources.gpu, "memory": prepared.memory},
        request.max_concurrent,
    )
    with redirect_stdout(sys.stderr):  # Tune prints what it is about to do; standard output is for results
        execute(prepared.spec.file.arch, prepared.engine, prepared.dataset, study, prepared.directory, cluster,
                target=prepared.trials, time_budget=request.time_budget, record=projection.record,
                import_paths=(str(Path.cwd()), *(p for p in sys.path if p)))  # fmt: skip


def _remember(study: SweepStudy, prepared: Prepared) -> None:
    """Write down what a resume goes on with, where it is not told otherwise."""
    said = {
        "target": prepared.trials,
        "engine": prepared.engine.model_dump(mode="json"),
        "resources": prepared.resources.model_dump(mode="json"),
        "finished": False,
        "directory": str(prepared.directory),
    }
    if "@" not in prepared.tracking_uri:  # a password stays out of files
        said["tracking_uri"] = portable(prepared.tracking_uri, prepared.directory.parent)
    for key, value in said.items():
        study.study.set_user_attr(key, value)


def _check_card(dataset: RealData, arch: str, most: DistillConfig, engine: EngineConfig, share: float) -> None:
    """That there is a card, and that the largest trial fits in it and in its share of it."""
    resolve_device(engine.device)
    check_memory(dataset, arch, most, engine)
    check_share(needed(dataset, arch, most, engine), torch.cuda.get_device_properties(engine.device).total_memory, share)


def _spec(request: SweepRequest, known: Mapping[str, Any]) -> SweepSpec:
    """The space that the request names; with `resume` and none named, the one that the sweep began with."""
    if request.space is not None or not request.resume:
        return spec_module.read(request.space or DEFAULT_SPACE, request.assignments)
    stored = known.get("identity", {}).get("space")
    if stored is None:  # killed before it was written down: nothing has run
        raise RequestError("space", None, "the sweep to resume never started and does not remember its space: name it")
    return spec_module.build(request.name or "space", stored, request.assignments)


def _resources(spec: SweepSpec, request: SweepRequest, known: Mapping[str, Any]) -> Resources:
    """What a trial occupies: what was asked for, else what the sweep had, else what the space says."""
    usual = spec.file.resources.model_dump()
    if request.cluster is None and not torch.cuda.is_available():
        usual["gpu"] = 0.0  # the space's wish, where there is a card; a cluster is asked for what the space says
    usual |= known.get("resources", {})
    flags = {"cpu": request.cpus_per_trial, "gpu": request.gpus_per_trial}
    for kind, amount in flags.items():
        if amount is not None:
            try:
                parse(Resources, {kind: amount})
            except RequestError as error:
                raise RequestError(f"--{kind}s-per-trial", amount, error.allowed) from None
    resources = parse(Resources, usual | {kind: amount for kind, amount in flags.items() if amount is not None})
    if resources.gpu > 1 and not resources.gpu.is_integer():
        raise RequestError("--gpus-per-trial", resources.gpu, "a share of a card up to 1, or a whole number of cards")
    if request.gpus_per_trial and request.cluster is None and not torch.cuda.is_available():
        raise RequestError("--gpus-per-trial", request.gpus_per_trial, "0: torch sees no GPU on this machine")
    return resources


def _engine(
    spec: SweepSpec, dataset: RealData, most: DistillConfig, trials: int, resources: Resources, address: str | None,
    known: Mapping[str, Any],
) -> EngineConfig:  # fmt: skip
    """The engine record with nothing left open: written down once, kept by every trial and resume."""
    if "engine" in known:
        return parse(EngineConfig, known["engine"], "engine.")
    engine = spec.file.engine
    device = engine.device if engine.device != "auto" else "cuda" if resources.gpu > 0 else "cpu"
    if address is None:
        device = resolve_device(device)
    engine = engine.model_copy(update={"device": device, "threads": engine.threads or max(1, int(resources.cpu))})
    if device != "cpu" and address is not None:
        left_open = {key: value for key, value in PLAIN.items() if getattr(engine, key) == "auto"}
        return engine.model_copy(update=left_open)  # the cluster's cards are not here to be tried
    if address is None and engine.adjoint == "auto":
        check_memory(dataset, spec.file.arch, most, engine)  # what fits in no way is not timed either
    # On a cluster, machines that compile are not this one.
    return settle(engine, dataset, spec.file.arch, most, trials=trials, alike=spec.steps_alike and address is None)

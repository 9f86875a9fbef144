"""A distiller on disk: one safetensors file, whole or not there."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as write_tensors

from ddray.data import TextDataset
from ddray.distillation.config import EngineConfig
from ddray.distillation.distiller import Distiller
from ddray.distillation.keys import parse
from ddray.errors import RequestError

_FORMAT = "1"


def save(distiller: Distiller, file: Path) -> None:
    """Write the distiller's state to `file`, by way of a temporary name beside it."""
    state = distiller.state_dict()
    tensors = {name: value.cpu().contiguous() for name, value in state.items() if isinstance(value, torch.Tensor)}
    numbers = {name: value for name, value in state.items() if not isinstance(value, torch.Tensor)}
    header = {"format": _FORMAT, "numbers": json.dumps(numbers), "problem": problem(distiller)}
    data = write_tensors(tensors, header | {"engine": distiller.engine.model_dump_json()})
    handle, name = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.parent)
    with os.fdopen(handle, "wb") as target:
        target.write(data)
    Path(name).replace(file)


def load(distiller: Distiller, file: Path) -> None:
    """Take up the state in `file`, which must be of the same problem.

    Raises:
        RequestError: the file is damaged, or belongs to another configuration, seed, architecture or dataset, or to
            sentences that were shown by other word vectors.

    """
    try:
        with safe_open(file, framework="pt") as source:
            header = source.metadata() or {}
            state: dict[str, Any] = {name: source.get_tensor(name) for name in source.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise RequestError("checkpoint", str(file), f"it cannot be read: {error}") from None
    if header.get("format") != _FORMAT or "numbers" not in header:
        raise RequestError("checkpoint", str(file), "not a distiller's checkpoint of this version")
    _refuse_changes(file, json.loads(header.get("problem", "{}")), json.loads(problem(distiller)))
    distiller.load_state_dict(state | json.loads(header["numbers"]))


def as_before(engine: EngineConfig, file: Path) -> EngineConfig:
    """The engine record with what it leaves open as in the checkpoint `file`: going on gives the same bits."""
    try:
        with safe_open(file, framework="pt") as source:
            recorded = json.loads((source.metadata() or {}).get("engine", "{}"))
    except (OSError, SafetensorError):
        return engine  # `load` says what is wrong with it
    left_open = {key for key, value in engine if value == "auto"}
    settings = engine.model_dump() | {key: value for key, value in recorded.items() if key in left_open}
    return parse(EngineConfig, settings, "engine.")


def problem(distiller: Distiller) -> str:
    """What a checkpoint belongs to, as canonical JSON."""
    said = {
        "config": distiller.config.flat(),
        "seed": distiller.seed,
        "arch": distiller.arch,
        "data": distiller.dataset.digests(),
    }
    if isinstance(distiller.dataset, TextDataset):  # its digests are of the texts, whatever shows them
        said["vectors"] = distiller.dataset.table.digest()
    return json.dumps(said, sort_keys=True)


def _refuse_changes(file: Path, known: dict[str, Any], here: dict[str, Any]) -> None:
    vectors = here.pop("vectors", None)
    before = known.pop("vectors", vectors)  # a checkpoint from before they were written down has none
    if known != here:
        raise RequestError("checkpoint", str(file), "it is of another configuration, seed, architecture or dataset")
    if before != vectors:
        raise RequestError("checkpoint", str(file), "it was made with other word vectors than data.vectors gives now")

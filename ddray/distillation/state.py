"""What a distiller needs to go on, in memory and on disk: one safetensors file, whole or not there.

A state is a flat dict. Its keys, for every raw tensor <name> (inputs, labels, rates):

    step, loss                                outer steps done, and the loss of the last
    raw.<name>                                what is learned
    average.<name>                            its average over outer steps, with outer.average
    adam.<name>.<moment>                      what Adam remembers of it
    norm.<group>                              running averages of gradient norms, with outer.clip_average
    best.step, best.score, best.raw.<name>    the best set seen, once there was a look
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as write_tensors
from torch import Tensor

from ddray.data import TextDataset
from ddray.distillation.config import EngineConfig
from ddray.distillation.keys import parse
from ddray.errors import RequestError

if TYPE_CHECKING:  # the distiller imports this module
    from ddray.distillation.distiller import Distiller

_FORMAT = "1"


@dataclass(frozen=True)
class Best:
    """The best set seen so far: the outer step it was seen after, its score on networks A, and its raw tensors."""

    step: int
    score: float
    raw: dict[str, Tensor]


def gathered(distiller: Distiller) -> dict[str, Any]:
    """The state of a distiller: tensors and plain numbers by the keys above."""
    state: dict[str, Any] = {"step": distiller.step, "loss": distiller.loss}
    state |= {f"norm.{group}": average for group, average in distiller.clip.averages.items()}
    state |= {f"raw.{name}": raw.detach() for name, raw in distiller.raw.items()}
    if distiller.config.outer.average:
        state |= {f"average.{name}": value for name, value in distiller.average.values.items()}
    for name, raw in distiller.raw.items():
        state |= {f"adam.{name}.{key}": value for key, value in distiller.optimiser.state[raw].items()}
    if distiller.best is not None:
        state |= {"best.step": distiller.best.step, "best.score": distiller.best.score}
        state |= {f"best.raw.{name}": raw for name, raw in distiller.best.raw.items()}
    return state


@torch.no_grad()
def take_up(distiller: Distiller, state: dict[str, Any]) -> None:
    """Set a distiller to the state of another of the same problem."""
    distiller.step, distiller.loss = int(state["step"]), float(state["loss"])
    for name, raw in distiller.raw.items():
        raw.copy_(state[f"raw.{name}"])
        if distiller.config.outer.average:
            distiller.average.values[name].copy_(state[f"average.{name}"])
        # Adam counts its steps on the CPU, unless it is one kernel of a GPU; the rest lies where the tensor does.
        counts_at = distiller.device if distiller.optimiser.defaults["fused"] else "cpu"
        distiller.optimiser.state[raw] = {
            key: value.to(counts_at if key == "step" else distiller.device, copy=True)
            for key, value in _under(f"adam.{name}.", state).items()
        }
    distiller.clip.averages = _under("norm.", state)
    distiller.best = None
    if "best.step" in state:
        raw_tensors = {name: state[f"best.raw.{name}"].to(distiller.device) for name in distiller.raw}
        distiller.best = Best(int(state["best.step"]), float(state["best.score"]), raw_tensors)


def _under(prefix: str, state: dict[str, Any]) -> dict[str, Any]:
    """The entries whose keys begin with a prefix, by the rest of their keys."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


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
        what = "it is of another configuration, seed, architecture or dataset: remove it, or save elsewhere"
        raise RequestError("checkpoint", str(file), what)
    if before != vectors:
        raise RequestError("checkpoint", str(file), "it was made with other word vectors than data.vectors gives now")

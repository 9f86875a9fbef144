"""What `auto` means here: measured once, before anything begins, then written down as ordinary values.

A choice is remembered on this machine (in the user's cache directory), so that the same distillation is computed in the same
way the next time, and gives the same set.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from ddray.data import RealData
from ddray.distillation.config import DistillConfig, EngineConfig
from ddray.distillation.engine import MIN_STEPS_TO_TRACE, resolve_device
from ddray.distillation.inner import carry_bytes
from ddray.distillation.problem import check_problem
from ddray.distillation.timing import Candidates, Choice
from ddray.distillation.unroll import segment_length

PLAIN: dict[str, str] = {
    "compile": "off", "layout": "blocked", "outer_layout": "blocked", "networks": "loop", "adjoint": "recompute",
}  # fmt: skip
MAX_GRAPH_BYTES = {"cpu": 2**28, "cuda": 2**31}
"""Bytes that the graphs of a whole unroll may take for the sake of speed: on a CPU, not many times what its caches hold."""


def settle(
    engine: EngineConfig, dataset: RealData, arch: str, config: DistillConfig, *, trials: int = 1, alike: bool = True
) -> EngineConfig:
    """The engine record with nothing left open.

    Args:
        engine: what was asked for.
        dataset: its shapes count.
        arch: the architecture.
        config: the largest problem that will be computed.
        trials: how many distillations of at most that size there will be.
        alike: whether all their inner steps have the same shapes and constants, so that one compilation serves them.

    Raises:
        RequestError: dataset, architecture and settings do not go together, or a device that is not here.

    """
    engine = engine.model_copy(update={"device": resolve_device(engine.device)})
    kind = "cuda" if engine.device.startswith("cuda") else "cpu"
    left_open = {key for key in PLAIN if getattr(engine, key) == "auto"}
    if not left_open:
        return engine
    dataset = dataset.presented(config.data.text)
    network, outputs = check_problem(dataset, arch, config)
    carry = carry_bytes(network.size, config.inner.optimiser)
    each = config.outer.steps * config.outer.networks * config.inner_steps
    if trials * each < MIN_STEPS_TO_TRACE and carry * config.seen_steps < MAX_GRAPH_BYTES[kind]:
        return engine.model_copy(update={key: PLAIN[key] for key in left_open})
    with _threads(engine.threads):
        network.to(engine.device)
        found = _remembered(
            Candidates(engine, network, arch, dataset, config, outputs, each=each, alike=trials if alike else 0)
        )
    chosen = {key: getattr(found, key) for key in PLAIN if key != "adjoint"}
    chosen["adjoint"] = cheapest_adjoint(config.seen_steps, carry, found.saved_bytes, MAX_GRAPH_BYTES[kind])
    return engine.model_copy(update={key: chosen[key] for key in left_open})


def cheapest_adjoint(steps: int, carry: int, graph: int, room: int = MAX_GRAPH_BYTES["cpu"]) -> str:
    """`full`, which takes no step twice, while its graphs fit in `room`; else whichever of the others needs less memory.

    Args:
        steps: how many the gradient goes through.
        carry: bytes of one.
        graph: bytes that one step's graph holds.
        room: bytes.

    """
    if steps * graph <= room:
        return "full"
    length = segment_length(steps, "checkpoint")
    recompute, checkpoint = steps * carry + graph, length * (carry + graph)
    return "recompute" if recompute <= checkpoint else "checkpoint"


def _remembered(candidates: Candidates) -> Choice:
    """The choice of an earlier time on this machine, or a new one."""
    file = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddray" / "engine.json"
    known: dict[str, Any] = {}
    with suppress(OSError, ValueError):  # none yet, or not ours to read: measured anew
        known = json.loads(file.read_text(encoding="utf-8"))
    with suppress(TypeError, KeyError):
        return Choice(**known[candidates.name])
    found = candidates.choose()
    with suppress(OSError, ValueError):  # others may have measured meanwhile
        known = json.loads(file.read_text(encoding="utf-8"))
    known = {**(known if isinstance(known, dict) else {}), candidates.name: vars(found)}
    with suppress(OSError):  # no place to remember: measured again the next time
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as target:
            json.dump(known, target, indent=1)
        Path(name).replace(file)
    return found


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)

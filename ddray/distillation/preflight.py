"""Whether a distillation fits into memory, asked before it begins."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ddray.data import Dataset, RealData
from ddray.distillation.config import DistillConfig, EngineConfig
from ddray.distillation.engine import make_engine
from ddray.distillation.evaluate import JUDGING_CHUNK
from ddray.distillation.inner import carry_bytes
from ddray.distillation.memory import (
    Footprint,
    footprint,
    networks_at_once,
    networks_scored_at_once,
    set_bytes,
    validation_bytes,
)
from ddray.distillation.problem import check_problem
from ddray.distillation.unroll import segment_count, segment_length
from ddray.errors import RequestError

PROCESS = 700 * 2**20
"""A process that has imported torch and ddray and taken a step."""
CUDA_CONTEXT = 800 * 2**20
"""What CUDA and its libraries take of a GPU's memory, besides tensors."""
GPU_OVERHEAD = 1.25
"""Bytes that torch's allocator reserves of a GPU for each byte predicted, as measured on an H200: cuDNN's workspaces, and gaps."""
ALWAYS_AVAILABLE = 2 * 2**30
"""Bytes that any machine has for a trial: work that clearly takes less is not looked at more closely."""


def needed(dataset: RealData, arch: str, config: DistillConfig, engine: EngineConfig) -> int:
    """Bytes of a process that distils: on a GPU it has data of its own, where processes share those of the main memory.

    Raises:
        RequestError: dataset, architecture and settings do not go together.

    """
    return _process_bytes(footprint(dataset, arch, config, engine), dataset.presented(config.data.text), engine)


def _process_bytes(found: Footprint, dataset: Dataset, engine: EngineConfig) -> int:
    if not engine.device.startswith("cuda"):
        return found.total + PROCESS
    splits = () if dataset.expands else (dataset.train, dataset.validation, dataset.test)  # texts are in the footprint
    return int(GPU_OVERHEAD * found.total) + sum(s.x.numel() * s.x.element_size() for s in splits) + CUDA_CONTEXT


def check_memory(dataset: RealData, arch: str, config: DistillConfig, engine: EngineConfig) -> int:
    """Refuse an unroll that cannot fit into this machine's memory; while the adjoint is open, one that fits by none.

    Returns:
        The bytes that it needs, process included; 0 where a rough bound says that they are few.

    Raises:
        RequestError: it needs more than there is; says how much, and what would need less.

    """
    dataset = dataset.presented(config.data.text)
    on_card = engine.device.startswith("cuda")
    if on_card:
        have, where = int(torch.cuda.get_device_properties(engine.device).total_memory), "this card"
    else:
        have, where = machine_memory(), "this machine"
    if 3 * _rough(dataset, arch, config, engine) < min(have, ALWAYS_AVAILABLE):
        return 0
    thrifty = [engine.model_copy(update={"adjoint": adjoint}) for adjoint in ("recompute", "checkpoint")]
    allowed = thrifty if engine.adjoint == "auto" else [engine]
    found = min((footprint(dataset, arch, config, one) for one in allowed), key=lambda one: one.total)
    wanted = _process_bytes(found, dataset, engine)
    if wanted > have:
        if found.weights + found.graphs < found.passing:
            raise RequestError(
                "outer.batch × outer.networks", config.outer.batch * config.outer.networks,
                f"one pass needs {gib(found.passing)} of {gib(wanted)}, and {where} has {gib(have)}: a smaller batch, fewer "
                "samples a step, or engine.networks=loop need less",
            )  # fmt: skip
        least = min(needed(dataset, arch, config, one) for one in thrifty)
        raise RequestError(
            "synthetic.steps × synthetic.epochs", config.inner_steps,
            f"with engine.adjoint={engine.adjoint} they need {gib(wanted)} and {where} has {gib(have)}; the thriftiest adjoint "
            f"needs {gib(least)}, fewer steps or a shorter outer.window less",
        )  # fmt: skip
    return wanted


def check_share(wanted: int, card: int, share: float) -> None:
    """Refuse a share of a GPU in which a trial would not fit; Ray counts shares, not bytes.

    Args:
        wanted: bytes that a trial may need, with all that CUDA takes.
        card: bytes of a card.
        share: how much of it is set aside for a trial; whole cards above 1.

    Raises:
        RequestError: it needs more than its share.

    """
    if wanted > min(share, 1.0) * card:
        least = math.ceil(100 * wanted / card) / 100
        raise RequestError(
            "--gpus-per-trial", share, f"{least} or more: a trial may need {gib(wanted)}, and this card has {gib(card)}"
        )


@torch.no_grad()
def _rough(dataset: Dataset, arch: str, config: DistillConfig, engine: EngineConfig) -> int:
    """Bytes by what the layers put out for one example, without a trace: right within a factor of three or so."""
    network, outputs = check_problem(dataset, arch, config)
    counts: list[int] = []


    def note(_layer: object, _given: object, out: object) -> None:
        counts.extend(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor))  # attention gives several

    hooks = [
        layer.register_forward_hook(note)
        for layer in network.module.modules()
        if not list(layer.children())
    ]
    network.module(torch.zeros((2, *dataset.input_shape)))
    for hook in hooks:
        hook.remove()
    samples = len(config.class_ids(dataset.classes)) * config.synthetic.samples_per_class
    made = make_engine(network, config.inner, engine)
    length, count = segment_length(config.seen_steps, made.adjoint), segment_count(config.seen_steps, made.adjoint)
    carries = carry_bytes(network.size, config.inner.optimiser) * (count + 3 * length + 4)
    together = max(networks_at_once(made, config), networks_scored_at_once(made, config))
    chunk = config.outer.batch if network.mixes_examples or engine.device != "cpu" else max(JUDGING_CHUNK, engine.chunk)
    each = carries + 4 * sum(counts) // 2 * (6 * samples * length + 2 * chunk)
    return together * each + set_bytes(dataset, config, outputs) + validation_bytes(dataset)


def gib(size: float) -> str:
    """Bytes for a reader."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def machine_memory() -> int:
    """Bytes of main memory, or of what a container may have of it."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text(encoding="ascii").strip() if limit.is_file() else "max"
    return min(physical, int(text)) if text.isdigit() else physical

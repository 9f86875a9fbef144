"""How much memory a distillation will take, before it does.

Nothing is allocated to find out: the inner step, its reverse and the outer loss are traced with tensors that have a shape and
no content, and the graphs are walked to see how many bytes are alive at once.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from ddray.data import Dataset, RealData
from ddray.distillation.config import DistillConfig, EngineConfig
from ddray.distillation.engine import SIDE_BY_SIDE, Engine, make_engine
from ddray.distillation.graphs import Graphs, alive_at_once, trace
from ddray.distillation.inner import CARRIES
from ddray.distillation.problem import check_problem
from ddray.distillation.streams import NETWORKS
from ddray.distillation.traced import TracedOuterLoss, TracedStep
from ddray.distillation.unroll import segment_length
from ddray.errors import RequestError

PROCESS = 700 * 2**20
"""A process that has imported torch and ddray and taken a step."""
CARD = 800 * 2**20
"""The same on a GPU: CUDA and its libraries."""
LIBRARIES = 1.25
"""What torch's allocator had reserved on an H200 over what its tensors were to take: cuDNN's workspaces and gaps."""
FEW = 2 * 2**30
"""Bytes that any machine has for a trial: work that clearly takes less is not looked at more closely."""
_SHOWN = 8  # bytes of a real batch for each of its numbers where they are looked up: float32, beside the batch before
JUDGED = 512  # real examples that a network is scored on at a time


@dataclass(frozen=True)
class Footprint:
    """Bytes of one distillation.

    Attributes:
        weights: carries kept from the forward walk.
        graphs: what recorded steps hold for their reverse.
        passing: the most that comes and goes beside these: inside a step, its reverse, the outer loss, or a score.
        set: the set with its gradient, moments and best copy, a real batch, known starts.

    """

    weights: int
    graphs: int
    passing: int
    set: int

    @property
    def total(self) -> int:
        """All of it, without the process itself and the real data."""
        return self.weights + self.graphs + self.passing + self.set


def footprint(dataset: RealData, arch: str, config: DistillConfig, engine: EngineConfig) -> Footprint:
    """Predict the memory of a distillation whose engine record is settled.

    Raises:
        RequestError: dataset, architecture and settings do not go together.

    """
    dataset = dataset.presented(config.data.text)
    network, outputs = check_problem(dataset, arch, config)
    made = make_engine(network, config.inner, engine)
    samples = len(config.class_ids(dataset.classes)) * config.synthetic.samples_per_class
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a step cannot be traced is said where it runs
        graphs = _graphs(made, (samples, *dataset.input_shape), (samples, outputs))
    saved = 0 if graphs is None else graphs.saved_bytes
    together = _together(made, config)
    longest = segment_length(config.seen_steps, made.adjoint)
    kept = math.ceil(config.seen_steps / longest)
    last = config.seen_steps - (kept - 1) * longest  # steps whose graphs are there when the outer loss is taken
    carry = 4 * network.size * CARRIES[config.inner.optimiser]
    stored = 4 * config.stored_samples(dataset.classes) * (torch.Size(dataset.input_shape).numel() + outputs)
    known = config.network.starts if config.network.source == "fixed" else 0
    batch = config.outer.batch * torch.Size(dataset.input_shape).numel()
    return Footprint(
        weights=together * carry * (kept + longest),
        graphs=together * longest * saved,
        passing=max(
            together * _passing(graphs),
            together * (_outer(made, dataset, config, engine.device.startswith("cuda")) - (longest - last) * saved),
            max(_judging(made, dataset), _scored(made, config) * (2 * carry + _forward(graphs))) - together * longest * saved,
        ),
        set=8 * stored + (_SHOWN if dataset.expands else 6) * batch + 4 * network.size * (1 + known) + _own(dataset)
        + _judged(dataset),
    )


def _together(made: Engine, config: DistillConfig) -> int:
    """Networks that an outer step's gradient goes through at once."""
    return 1 if made.several is None or config.outer.window else min(config.outer.networks, SIDE_BY_SIDE)


def _scored(made: Engine, config: DistillConfig) -> int:
    """Networks that are trained together for a score."""
    if made.several is None:
        return 1
    return min(SIDE_BY_SIDE, config.network.starts if config.network.source == "fixed" else NETWORKS["B"])


def needed(dataset: RealData, arch: str, config: DistillConfig, engine: EngineConfig) -> int:
    """Bytes of a process that distils: on a GPU it has data of its own, where processes share those of the main memory.

    Raises:
        RequestError: dataset, architecture and settings do not go together.

    """
    found = footprint(dataset, arch, config, engine).total
    if not engine.device.startswith("cuda"):
        return found + PROCESS
    shown = dataset.presented(config.data.text)
    splits = (shown.train, shown.validation, shown.test)
    return int(LIBRARIES * found) + sum(s.x.numel() * s.x.element_size() for s in splits) + CARD


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
    if 3 * _rough(dataset, arch, config, engine) < min(have, FEW):
        return 0

    def needs(one: EngineConfig) -> int:
        return needed(dataset, arch, config, one)

    thrifty = [engine.model_copy(update={"adjoint": adjoint}) for adjoint in ("recompute", "checkpoint")]
    allowed = thrifty if engine.adjoint == "auto" else [engine]
    best = min(allowed, key=needs)
    found, wanted = footprint(dataset, arch, config, best), needs(best)
    if wanted > have:
        if found.weights + found.graphs < found.passing:
            raise RequestError(
                "outer.batch × outer.networks", config.outer.batch * config.outer.networks,
                f"one pass needs {gib(found.passing)} of {gib(wanted)}, and {where} has {gib(have)}: a smaller batch, fewer "
                "samples a step, or engine.networks=loop need less",
            )  # fmt: skip
        least = min(map(needs, thrifty))
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
    hooks = [
        layer.register_forward_hook(lambda _layer, _given, out: counts.append(out.numel()))
        for layer in network.module.modules()
        if not list(layer.children())
    ]
    network.module(torch.zeros((2, *dataset.input_shape)))
    for hook in hooks:
        hook.remove()
    samples = len(config.class_ids(dataset.classes)) * config.synthetic.samples_per_class
    made = make_engine(network, config.inner, engine)
    longest = segment_length(config.seen_steps, made.adjoint)
    carry = 4 * network.size * CARRIES[config.inner.optimiser]
    carries = carry * (math.ceil(config.seen_steps / longest) + 3 * longest + 4)
    together = max(_together(made, config), _scored(made, config))
    chunk = config.outer.batch if network.mixes_examples or engine.device != "cpu" else max(JUDGED, engine.chunk)
    stored = 4 * config.stored_samples(dataset.classes) * (math.prod(dataset.input_shape) + outputs)
    each = carries + 4 * sum(counts) // 2 * (6 * samples * longest + 2 * chunk)
    return together * each + 8 * stored + _judged(dataset)


def gib(size: float) -> str:
    """Bytes for a reader."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def machine_memory() -> int:
    """Bytes of main memory, or of what a container may have of it."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text(encoding="ascii").strip() if limit.is_file() else "max"
    return min(physical, int(text)) if text.isdigit() else physical


def _own(dataset: Dataset) -> int:
    """Bytes of examples that a process keeps for itself: texts of the length asked for, where images are shared."""
    if not dataset.expands:
        return 0
    return sum(s.x.numel() * s.x.element_size() for s in (dataset.train, dataset.validation, dataset.test))


def _judged(dataset: Dataset) -> int:
    """Bytes of the validation split as it is judged on: images in order, and normalised; texts in order."""
    x = dataset.validation.x
    return x.numel() * (x.element_size() + (0 if dataset.expands else 4))


def _graphs(made: Engine, x: tuple[int, ...], y: tuple[int, ...]) -> Graphs | None:
    step = TracedStep(made.network, made.step.config, layout=made.step.layout)
    carry = step.begin(torch.empty(made.network.size))
    return step.sketch(carry, torch.empty(x), torch.empty(y), torch.empty(()))


def _passing(graphs: Graphs | None) -> int:
    if graphs is None:
        return 0
    record, reverse = graphs.record, graphs.reverse
    assert isinstance(record, fx.GraphModule) and isinstance(reverse, fx.GraphModule)
    outputs = list(record.graph.nodes)[-1].all_input_nodes
    return max(alive_at_once(record, outputs), alive_at_once(reverse))


def _forward(graphs: Graphs | None) -> int:
    """The most bytes alive in a step that keeps nothing for a reverse."""
    if graphs is None:
        return 0
    assert isinstance(graphs.forward, fx.GraphModule)
    return alive_at_once(graphs.forward)


def _outer(made: Engine, dataset: Dataset, config: DistillConfig, on_card: bool) -> int:
    size = made.outer.chunk_size(config.outer.batch, on_card=on_card)
    x, y = torch.empty(size, *dataset.input_shape), torch.zeros(size).long()
    return _sketched(TracedOuterLoss(made.network).function, made, x, y)


def _judging(made: Engine, dataset: Dataset) -> int:
    return _sketched(lambda weights, x: made.network(weights, x), made, torch.empty(JUDGED, *dataset.input_shape))


def _sketched(function: Callable[..., Any], made: Engine, *given: Tensor) -> int:
    return alive_at_once(trace(function, torch.empty(made.network.size), *given))

"""How much memory a distillation will take, before it does.

Nothing is allocated to find out: the inner step, its reverse and the outer loss are traced with tensors that have a shape and
no content, and the graphs are walked to see how many bytes are alive at once.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
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
    together = at_once(made, config)
    longest = segment_length(config.seen_steps, made.adjoint)
    kept = math.ceil(config.seen_steps / longest)
    last = config.seen_steps - (kept - 1) * longest  # steps whose graphs are there when the outer loss is taken
    carry = 4 * network.size * CARRIES[config.inner.optimiser]
    stored = 4 * config.stored_samples(dataset.classes) * (torch.Size(dataset.input_shape).numel() + outputs)
    known = config.network.starts if config.network.source == "fixed" else 0
    ahead = 2 * config.outer.networks if engine.device.startswith("cuda") and not known else 0  # of this step and the next
    batch = config.outer.batch * torch.Size(dataset.input_shape).numel()
    return Footprint(
        weights=together * carry * (kept + longest),
        graphs=together * longest * saved,
        passing=max(
            together * _passing(graphs),
            together * (_outer(made, dataset, config, engine.device.startswith("cuda")) - (longest - last) * saved),
            max(_judging(made, dataset), scored(made, config) * (2 * carry + _forward(graphs))) - together * longest * saved,
        ),
        set=8 * stored + (_SHOWN if dataset.expands else 6) * batch + 4 * network.size * (1 + known + ahead) + _own(dataset)
        + judged(dataset),
    )


def at_once(made: Engine, config: DistillConfig) -> int:
    """Networks that an outer step's gradient goes through at once."""
    return 1 if made.several is None or config.outer.window else min(config.outer.networks, SIDE_BY_SIDE)


def scored(made: Engine, config: DistillConfig) -> int:
    """Networks that are trained together for a score."""
    if made.several is None:
        return 1
    return min(SIDE_BY_SIDE, config.network.starts if config.network.source == "fixed" else NETWORKS["B"])


def _own(dataset: Dataset) -> int:
    """Bytes of examples that a process keeps for itself: texts of the length asked for, where images are shared."""
    if not dataset.expands:
        return 0
    return sum(s.x.numel() * s.x.element_size() for s in (dataset.train, dataset.validation, dataset.test))


def judged(dataset: Dataset) -> int:
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
    outer = TracedOuterLoss(made.network, layout=getattr(made.outer, "layout", "blocked"))
    return alive_at_once(outer.sketch(torch.empty(made.network.size), x, y))


def _judging(made: Engine, dataset: Dataset) -> int:
    return _sketched(lambda weights, x: made.network(weights, x), made, torch.empty(JUDGED, *dataset.input_shape))


def _sketched(function: Callable[..., Any], made: Engine, *given: Tensor) -> int:
    return alive_at_once(trace(function, torch.empty(made.network.size), *given))

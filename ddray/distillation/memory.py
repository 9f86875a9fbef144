"""How much memory a distillation will take, before it does.

Nothing is allocated to find out: the inner step, its reverse and the outer loss are traced with tensors that have a shape and
no content, and the graphs are walked to see how many bytes are alive at once.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import fx

from ddray.data import Dataset, RealData
from ddray.distillation.config import DistillConfig, EngineConfig
from ddray.distillation.engine import MAX_NETWORKS_AT_ONCE, Engine, make_engine
from ddray.distillation.evaluate import JUDGING_CHUNK
from ddray.distillation.graphs import Graphs, alive_at_once, trace
from ddray.distillation.inner import carry_bytes
from ddray.distillation.problem import check_problem
from ddray.distillation.streams import NETWORKS
from ddray.distillation.traced import TracedOuterLoss, TracedStep
from ddray.distillation.unroll import segment_count, segment_length
from ddray.networks import Network

# What is learned, its gradient, Adam's two moments, the best copy, the set as the inner loop sees it, and the gradients with
# respect to that: of the networks so far, and of the present one.
_SET_COPIES = 8
# Bytes of a real batch for each of its numbers. An image: uint8 as it is stored and as it is augmented, float32 as it is
# normalised. A word's vector: float32, beside the batch before.
_IMAGE_BATCH_BYTES, _TEXT_BATCH_BYTES = 1 + 1 + 4, 4 + 4


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
    on_card = engine.device.startswith("cuda")
    samples = len(config.class_ids(dataset.classes)) * config.synthetic.samples_per_class
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a step cannot be traced is said where it runs
        graphs = _graphs(made, (samples, *dataset.input_shape), (samples, outputs))
    carry, graph = carry_bytes(network.size, config.inner.optimiser), 0 if graphs is None else graphs.saved_bytes
    length, count = segment_length(config.seen_steps, made.adjoint), segment_count(config.seen_steps, made.adjoint)
    together = networks_at_once(made, config)
    recorded = together * length * graph
    # What passes comes on top of `recorded`, whose graphs are not all there when it does: at the outer loss those of the last
    # segment are, which may be shorter than the others, and at a score none.
    last = config.seen_steps - (count - 1) * length
    step_bytes = together * _peak_of_step(graphs)
    outer_bytes = together * (_peak_of_outer_loss(made, dataset, config, on_card) - (length - last) * graph)
    training_bytes = networks_scored_at_once(made, config) * (2 * carry + _peak_of_forward(graphs))
    score_bytes = max(_peak_of_judging(made, dataset), training_bytes) - recorded
    return Footprint(
        weights=together * carry * (count + length),  # one before each segment, and those inside the one that is recorded
        graphs=recorded,
        passing=max(step_bytes, outer_bytes, score_bytes),
        set=_standing_bytes(dataset, network, config, outputs, on_card),
    )


def _standing_bytes(dataset: Dataset, network: Network, config: DistillConfig, outputs: int, on_card: bool) -> int:
    """What is there from the first outer step to the last."""
    batch_numbers = config.outer.batch * math.prod(dataset.input_shape)
    batch_bytes = (_TEXT_BATCH_BYTES if dataset.expands else _IMAGE_BATCH_BYTES) * batch_numbers
    known = config.network.starts if config.network.source == "fixed" else 0
    ahead = 2 * config.outer.networks if on_card and not known else 0  # fresh networks of this step and the next
    network_bytes = 4 * network.size * (1 + known + ahead)
    data_bytes = _private_data_bytes(dataset) + validation_bytes(dataset)
    return set_bytes(dataset, config, outputs) + batch_bytes + network_bytes + data_bytes


def set_bytes(dataset: Dataset, config: DistillConfig, outputs: int) -> int:
    """The set, in all the copies that learning keeps of it."""
    copy = 4 * config.stored_samples(dataset.classes) * (math.prod(dataset.input_shape) + outputs)
    return _SET_COPIES * copy


def networks_at_once(made: Engine, config: DistillConfig) -> int:
    """Networks that an outer step's gradient goes through at once."""
    if made.batched_step is None or config.outer.window:
        return 1
    return min(config.outer.networks, MAX_NETWORKS_AT_ONCE)


def networks_scored_at_once(made: Engine, config: DistillConfig) -> int:
    """Networks that are trained together for a score."""
    if made.batched_step is None:
        return 1
    return min(MAX_NETWORKS_AT_ONCE, config.network.starts if config.network.source == "fixed" else NETWORKS["B"])


def _private_data_bytes(dataset: Dataset) -> int:
    """Examples that a process keeps for itself: texts of the length asked for, where images are shared."""
    if not dataset.expands:
        return 0
    return sum(s.x.numel() * s.x.element_size() for s in (dataset.train, dataset.validation, dataset.test))


def validation_bytes(dataset: Dataset) -> int:
    """The validation split as it is judged on: images in order, and normalised; texts in order."""
    x = dataset.validation.x
    return x.numel() * (x.element_size() + (0 if dataset.expands else 4))


def _graphs(made: Engine, x: tuple[int, ...], y: tuple[int, ...]) -> Graphs | None:
    step = TracedStep(made.network, made.step.config, layout=made.step.layout)
    carry = step.begin(torch.empty(made.network.size))
    return step.sketch(carry, torch.empty(x), torch.empty(y), torch.empty(()))


def _peak_of_step(graphs: Graphs | None) -> int:
    """The most bytes alive in a recorded step or its reverse, beside what the one leaves for the other."""
    if graphs is None:
        return 0
    record, reverse = graphs.record, graphs.reverse
    assert isinstance(record, fx.GraphModule) and isinstance(reverse, fx.GraphModule)
    outputs = list(record.graph.nodes)[-1].all_input_nodes
    return max(alive_at_once(record, outputs), alive_at_once(reverse))


def _peak_of_forward(graphs: Graphs | None) -> int:
    """The most bytes alive in a step that keeps nothing for a reverse."""
    if graphs is None:
        return 0
    assert isinstance(graphs.forward, fx.GraphModule)
    return alive_at_once(graphs.forward)


def _peak_of_outer_loss(made: Engine, dataset: Dataset, config: DistillConfig, on_card: bool) -> int:
    """The most bytes alive in the outer loss and its gradient, of one network."""
    size = made.outer.chunk_size(config.outer.batch, on_card=on_card)
    x, y = torch.empty(size, *dataset.input_shape), torch.zeros(size).long()
    outer = TracedOuterLoss(made.network, layout=getattr(made.outer, "layout", "blocked"))
    return alive_at_once(outer.sketch(torch.empty(made.network.size), x, y))


def _peak_of_judging(made: Engine, dataset: Dataset) -> int:
    """The most bytes alive while a network is scored on real examples."""
    weights, x = torch.empty(made.network.size), torch.empty(JUDGING_CHUNK, *dataset.input_shape)
    return alive_at_once(trace(lambda weights, x: made.network(weights, x), weights, x))

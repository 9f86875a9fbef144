"""Graphs of the inner step and its reverse, against the step as it is written."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from ddray.distillation import traced
from ddray.distillation.config import EngineConfig, InnerConfig
from ddray.distillation.engine import has_compiler
from ddray.distillation.inner import InnerStep
from ddray.distillation.layout import LAYOUTS
from ddray.distillation.reference import differentiate
from ddray.distillation.traced import TracedStep
from ddray.distillation.unroll import ADJOINTS, Adjoint, train_as_distilled
from ddray.networks import Network

from .unrolls import NETWORKS, ORDER, PARTS, check_equal, problem

OPTIMISERS = get_args(InnerConfig.model_fields["optimiser"].annotation)


@pytest.fixture(autouse=True)
def _no_graphs_before() -> Iterator[None]:
    traced._graphs.clear()
    yield
    traced._graphs.clear()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_traced_equals_plain(name: str, layout: str, dtype: torch.dtype, rtol: float) -> None:
    network, weights, synthetic, batch = problem(name, dtype)
    expected = differentiate(InnerStep(network), weights, synthetic, ORDER, batch, 7)
    found = differentiate(TracedStep(network, layout=layout), weights, synthetic, ORDER, batch, 7)
    check_equal(found, expected, rtol)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_every_optimiser_and_adjoint_is_traced(optimiser: str, adjoint: Adjoint) -> None:
    network, weights, synthetic, batch = problem("ConvNet3")
    config = InnerConfig(optimiser=optimiser)
    expected = differentiate(InnerStep(network, config), weights, synthetic, ORDER, batch, 7)
    found = differentiate(TracedStep(network, config), weights, synthetic, ORDER, batch, 7, adjoint=adjoint)
    check_equal(found, expected, 1e-10)


def test_several_networks_are_traced_together() -> None:
    network, weights, synthetic, batch = problem("LeNet")
    starts = torch.stack([weights, 1.1 * weights])
    expected = differentiate(InnerStep(network, batched=True), starts, synthetic, ORDER, batch)
    check_equal(differentiate(TracedStep(network, batched=True), starts, synthetic, ORDER, batch), expected)


def test_a_network_is_traced_once_per_shape_and_kept_for_the_next_of_its_kind() -> None:
    shapes = []
    for _ in range(2):
        network, weights, synthetic, _ = problem("LeNet")
        train_as_distilled(TracedStep(network), weights, synthetic, ORDER)
        shapes.append(len(traced._graphs))
    assert shapes == [1, 1]
    synthetic = type(synthetic)(synthetic.inputs[:, :3], synthetic.labels[:, :3], synthetic.rates)
    train_as_distilled(TracedStep(network), weights, synthetic, ORDER)
    assert len(traced._graphs) == 2


def test_a_network_with_buffers_keeps_its_graphs_to_itself() -> None:
    class Scaled(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 3, dtype=torch.float64)
            self.register_buffer("scale", torch.tensor(scale, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.flatten(1)) * self.scale

    _, _, synthetic, batch = problem("dropout")
    weights = torch.randn(51, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for scale in (1.0, 2.0):
        network = Network(Scaled(scale))
        expected = differentiate(InnerStep(network), weights, synthetic, ORDER, batch)
        check_equal(differentiate(TracedStep(network), weights, synthetic, ORDER, batch), expected)


class Fickle(nn.Module):
    """Looks at its values: no graph can hold it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 3, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x.flatten(1))
        return out if x.sum().item() > 0 else 2 * out


def test_what_cannot_be_traced_says_so_once_and_runs_plainly() -> None:
    network = Network(Fickle())
    _, _, synthetic, batch = problem("dropout")
    weights = torch.randn(51, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    step = TracedStep(network)
    with pytest.warns(UserWarning, match="Fickle cannot be traced .* it runs as written") as heard:
        found = differentiate(step, weights, synthetic, ORDER, batch)
    assert len(heard) == 1
    check_equal(found, differentiate(InnerStep(network), weights, synthetic, ORDER, batch))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        differentiate(step, weights, synthetic, ORDER, batch)


def test_the_reverse_takes_no_step_again() -> None:
    network, weights, synthetic, _ = problem("LeNet")
    step = TracedStep(network)
    graphs = step.graphs(step.begin(weights), synthetic.inputs[0], synthetic.labels[0], synthetic.rates[0])
    assert graphs is not None
    forward, record, reverse = (
        sum("convolution" in str(node.target) for node in graph.graph.nodes)  # type: ignore[attr-defined]
        for graph in (graphs.forward, graphs.record, graphs.reverse)
    )
    assert forward == record == 4  # two layers, and the derivative of each
    assert reverse < 3 * forward
    assert graphs.saved_bytes > 0


def test_a_graph_keeps_neither_zeros_nor_what_was_pooled() -> None:
    network, weights, synthetic, _ = problem("LeNet", torch.float32)
    step = TracedStep(network)
    graphs = step.graphs(step.begin(weights), synthetic.inputs[0], synthetic.labels[0], synthetic.rates[0])
    assert graphs is not None
    *_, output = graphs.record.graph.nodes  # type: ignore[attr-defined]
    kept = [str(node.target) for node in output.all_input_nodes]
    assert "aten.convolution.default" not in kept and "aten.zeros.default" not in kept
    assert "aten.max_pool2d_with_indices_backward.default" in kept  # the slope of what was pooled


def test_the_global_generator_plays_no_part_in_traced_masks() -> None:
    network, weights, synthetic, batch = problem("dropout")
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(differentiate(TracedStep(network), weights, synthetic, ORDER, batch, 7))
        assert torch.initial_seed() == seed
    assert all(torch.equal(getattr(found[0][1], part), getattr(found[1][1], part)) for part in PARTS)


def test_what_cannot_be_compiled_says_so_once_and_runs_as_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no disk space\nand a long story")

    monkeypatch.setattr(traced, "compiled", broken)
    network, weights, synthetic, batch = problem("batch norm", torch.float32)
    step = TracedStep(network, compiled=True)
    with pytest.warns(UserWarning, match=r"cannot be compiled \(no disk space\): its graphs run as traced") as heard:
        found = differentiate(step, weights, synthetic, ORDER, batch)
    assert len(heard) == 1
    check_equal(found, differentiate(TracedStep(network), weights, synthetic, ORDER, batch), 1e-6)


@pytest.mark.skipif(not has_compiler(EngineConfig(device="cpu")), reason="needs a C++ compiler ($CXX, else g++) and Python.h")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # inductor's own imports
def test_compiled_equals_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    network, weights, synthetic, batch = problem("batch norm", torch.float32)
    expected = differentiate(InnerStep(network), weights, synthetic, ORDER, batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # it would say that it runs as written
        found = differentiate(TracedStep(network, layout="PTXYZ/LLLL", compiled=True), weights, synthetic, ORDER, batch)
    check_equal(found, expected, 1e-5)

"""Memory, predicted and taken."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import fx, nn

from ddray.data import Dataset
from ddray.distillation.config import DistillConfig, EngineConfig
from ddray.distillation.graphs import alive_at_once
from ddray.distillation.memory import footprint
from ddray.distillation.preflight import PROCESS

from .problems import ARCH, blobs

ENGINE = EngineConfig(device="cpu", threads=1, compile="off", layout="blocked", networks="loop", adjoint="recompute")
TAKEN = """
import sys
from tests.distillation.test_memory import ENGINE, colours, wide
from ddray.distillation.distiller import Distiller
distiller = Distiller(colours(), "ConvNet3", wide(), engine=ENGINE.model_copy(update={"adjoint": sys.argv[1]}))
distiller.advance(2)
lines = open("/proc/self/status").read().splitlines()  # getrusage tells the peak of the process that started this one
print(1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))))
"""


def colours() -> Dataset:
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randint(256, (400, 3, 32, 32), generator=draw, dtype=torch.uint8), torch.arange(400) % 10
    return Dataset(x, y, x[:100], y[:100], name="colours")


def wide() -> DistillConfig:
    return DistillConfig.from_flat({"synthetic.steps": 1, "synthetic.epochs": 9, "outer.batch": 128})


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("adjoint", ["full", "recompute", "checkpoint"])
def test_the_prediction_is_within_a_fifth_of_what_is_taken(adjoint: str) -> None:
    engine = ENGINE.model_copy(update={"adjoint": adjoint})
    predicted = footprint(colours(), "ConvNet3", wide(), engine).total + PROCESS
    command = [sys.executable, "-W", "ignore", "-c", TAKEN, adjoint]
    taken = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert predicted == pytest.approx(taken, rel=0.2)


def test_adjoints_spend_memory_on_what_they_say() -> None:
    full, recompute, checkpoint = (
        footprint(colours(), "ConvNet3", wide(), ENGINE.model_copy(update={"adjoint": adjoint}))
        for adjoint in ("full", "recompute", "checkpoint")
    )
    assert full.graphs == 9 * recompute.graphs and checkpoint.graphs == 3 * recompute.graphs
    assert checkpoint.weights < recompute.weights


def test_networks_side_by_side_count_up_to_as_many_as_are_trained_together() -> None:
    side_by_side = ENGINE.model_copy(update={"networks": "batch"})

    def weights(engine: EngineConfig, networks: int, **settings: int) -> int:
        given = {"outer.networks": networks, "synthetic.steps": 4, "outer.batch": 32, **settings}
        return footprint(blobs(), ARCH, DistillConfig.from_flat(given), engine).weights

    one = weights(ENGINE, 60)
    assert weights(side_by_side, 1) == one
    assert weights(side_by_side, 7) == 7 * one
    assert weights(side_by_side, 60) == 20 * one
    assert weights(side_by_side, 60, **{"outer.window": 4, "synthetic.epochs": 1}) == weights(
        ENGINE, 1, **{"synthetic.epochs": 1}
    )


def test_a_batch_passes_whole_on_a_gpu() -> None:
    config = DistillConfig.from_flat({"synthetic.steps": 1, "synthetic.epochs": 1, "outer.batch": 256})
    cpu, card, whole = (
        footprint(colours(), "ConvNet3", config, ENGINE.model_copy(update=update)).passing
        for update in ({}, {"device": "cuda"}, {"chunk": 256})
    )
    assert cpu < card == whole


def test_what_is_trained_together_for_a_score_counts() -> None:
    config = DistillConfig.from_flat({"synthetic.steps": 1, "synthetic.epochs": 1, "outer.batch": 1})
    alone = footprint(blobs(), ARCH, config, ENGINE)
    together = footprint(blobs(), ARCH, config, ENGINE.model_copy(update={"networks": "batch"}))
    assert together.passing > alone.passing


def test_bytes_alive_at_once() -> None:
    class Chain(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.exp().sin().view(10, 10).cos()

    graph = fx.experimental.proxy_tensor.make_fx(Chain(), tracing_mode="fake")(torch.empty(100))
    assert alive_at_once(graph) == 2 * 400  # what an operation reads and what it writes; the input is not ours
    view = next(node for node in graph.graph.nodes if node.target is torch.ops.aten.view.default)
    assert alive_at_once(graph, [view]) == 400  # a view is kept with what it looks at
    single = fx.experimental.proxy_tensor.make_fx(torch.exp, tracing_mode="fake")(torch.empty(100))
    assert [alive_at_once(single, kept) for kept in ((), list(single.graph.nodes)[-1].all_input_nodes)] == [400, 0]

"""Memory, predicted and taken."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import fx, nn

from ddray.data import Dataset
from ddray.distillation import memory
from ddray.distillation.config import DistillConfig, EngineConfig
from ddray.distillation.memory import FEW, PROCESS, alive_at_once, check_memory, footprint, gib
from ddray.distillation.run import distill
from ddray.errors import RequestError

from .problems import ARCH, QUICK, blobs

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


def test_an_unroll_that_does_not_fit_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "machine_memory", lambda: 800 * 2**20)
    engine = ENGINE.model_copy(update={"adjoint": "full"})
    with pytest.raises(
        RequestError, match=r"synthetic\.steps × synthetic\.epochs: 9 .*adjoint=full .*this machine has 800 MiB"
    ):
        check_memory(colours(), "ConvNet3", wide(), engine)
    with pytest.raises(RequestError, match="fewer steps"):
        distill(colours(), "ConvNet3", wide(), engine=engine)


def test_small_work_is_not_looked_at_closely(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "footprint", lambda *_: pytest.fail("it was traced"))
    assert check_memory(blobs(), ARCH, DistillConfig.from_flat(QUICK), ENGINE) == 0


def test_a_set_that_does_not_fit_is_refused_before_anything_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddray.distillation.run.settle", lambda *_: pytest.fail("it was timed"))
    many = QUICK | {"synthetic.steps": 10_000, "synthetic.samples_per_class": 10_000}
    with pytest.raises(RequestError, match="the thriftiest adjoint needs"):
        distill(blobs(), ARCH, many)


def test_large_work_is_told_with_the_process() -> None:
    config = DistillConfig.from_flat({"synthetic.steps": 1, "synthetic.epochs": 30, "outer.batch": 128})
    engine = ENGINE.model_copy(update={"adjoint": "full"})
    needed = check_memory(colours(), "ConvNet3", config, engine)
    assert FEW < needed == footprint(colours(), "ConvNet3", config, engine).total + PROCESS


def test_bytes_alive_at_once() -> None:
    class Chain(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.exp().sin().view(10, 10).cos()

    graph = fx.experimental.proxy_tensor.make_fx(Chain(), tracing_mode="fake")(torch.empty(100))
    assert alive_at_once(graph) == 2 * 400  # what an operation reads and what it writes; the input is not ours
    last = list(graph.graph.nodes)[-1].all_input_nodes
    assert alive_at_once(graph, last) == 2 * 400


@pytest.mark.parametrize(("size", "text"), [(3 * 2**30, "3.0 GiB"), (800 * 2**20, "800 MiB")])
def test_bytes_for_a_reader(size: int, text: str) -> None:
    assert gib(size) == text

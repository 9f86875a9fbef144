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
from ddray.distillation.graphs import alive_at_once
from ddray.distillation.memory import CARD, FEW, LIBRARIES, PROCESS, check_memory, check_share, footprint, gib, needed
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


@pytest.mark.parametrize("share", [0.25, 1.0, 2.0])
def test_a_trial_fits_in_its_share_of_a_card_or_is_refused(share: float) -> None:
    card = 80 * 2**30
    check_share(int(min(share, 1.0) * card), card, share)
    with pytest.raises(RequestError, match="a trial may need") as refused:
        check_share(int(min(share, 1.0) * card) + 2**30, card, share)
    assert refused.value.key == "--gpus-per-trial" and f"{min(share, 1.0) + 0.02:.2f}" in str(refused.value)


def test_on_a_card_a_process_has_libraries_and_data_of_its_own() -> None:
    on_card, examples = ENGINE.model_copy(update={"device": "cuda"}), 500 * 3 * 32 * 32
    one, other = (footprint(colours(), "ConvNet3", wide(), engine).total for engine in (ENGINE, on_card))
    assert needed(colours(), "ConvNet3", wide(), ENGINE) == one + PROCESS
    assert needed(colours(), "ConvNet3", wide(), on_card) == int(LIBRARIES * other) + examples + CARD


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


def test_a_batch_that_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "machine_memory", lambda: 800 * 2**20)
    config = DistillConfig.from_flat({"synthetic.steps": 1, "synthetic.epochs": 1, "outer.batch": 256})
    with pytest.raises(RequestError, match=r"outer\.batch × outer\.networks: 256 .*one pass needs .*a smaller batch"):
        check_memory(colours(), "ConvNet3", config, ENGINE)


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

"""What `auto` is settled to."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from ddray.distillation import engine as engines
from ddray.distillation import state, timing
from ddray.distillation.choose import PLAIN, cheapest_adjoint, settle
from ddray.distillation.config import DistillConfig, EngineConfig
from ddray.distillation.distiller import Distiller
from ddray.distillation.engine import has_compiler, make_engine
from ddray.distillation.problem import check_problem
from ddray.distillation.run import distill
from ddray.distillation.timing import Candidates
from ddray.distillation.traced import TracedStep
from ddray.errors import RequestError
from ddray.networks import Network

from .problems import ARCH, QUICK, blobs

LONG = DistillConfig.from_flat(QUICK | {"outer.steps": 1000})


def remembered() -> Path:
    return Path(os.environ["XDG_CACHE_HOME"]) / "ddray" / "engine.json"


def test_short_work_is_computed_as_written_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing.Candidates, "choose", lambda _: pytest.fail("it was timed"))
    engine = settle(EngineConfig(), blobs(), ARCH, DistillConfig.from_flat(QUICK))
    assert engine.model_dump() | PLAIN == engine.model_dump()
    assert engine.device in ("cpu", "cuda")


def test_trials_count_together() -> None:
    settle(EngineConfig(), blobs(), ARCH, DistillConfig.from_flat(QUICK), trials=1)
    assert not remembered().exists()
    settle(EngineConfig(device="cpu"), blobs(), ARCH, DistillConfig.from_flat(QUICK), trials=1000)
    assert remembered().exists()


def test_nothing_is_left_open_and_the_choice_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    first = settle(EngineConfig(device="cpu"), blobs(), ARCH, LONG)
    assert "auto" not in first.model_dump().values()
    monkeypatch.setattr(timing.Candidates, "choose", lambda _: pytest.fail("it was timed again"))
    assert settle(EngineConfig(device="cpu"), blobs(), ARCH, LONG) == first


def test_what_was_asked_for_stays() -> None:
    asked = EngineConfig(device="cpu", compile="off", adjoint="checkpoint")
    settled = settle(asked, blobs(), ARCH, LONG)
    assert (settled.compile, settled.adjoint) == ("off", "checkpoint")
    assert "auto" not in settled.model_dump().values()
    whole = EngineConfig(
        device="cpu", compile="trace", adjoint="full", layout="plain", outer_layout="MMU", networks="batch"
    )
    assert settle(whole, blobs(), ARCH, LONG) == whole
    assert settle(EngineConfig(device="cpu", outer_layout="MMU"), blobs(), ARCH, LONG).outer_layout == "MMU"


def test_the_fastest_is_taken_unless_a_plainer_one_is_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {("off", "blocked"): 1.0, ("trace", "blocked"): 0.97}
    monkeypatch.setattr(timing.Candidates, "_seconds", lambda self, step, *_: times[self._way(step)])
    monkeypatch.setattr(
        timing.Candidates, "_way", lambda _, step: ("off" if type(step).__name__ == "InnerStep" else "trace", step.layout),
        raising=False,
    )  # fmt: skip
    assert settle(EngineConfig(device="cpu"), blobs(), ARCH, LONG).compile == "off"
    times["trace", "blocked"] = 0.5
    remembered().unlink()
    assert settle(EngineConfig(device="cpu"), blobs(), ARCH, LONG).compile == "trace"


def test_a_step_of_very_many_examples_is_timed_on_some(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[int] = []
    monkeypatch.setattr(timing, "_MAX_SAMPLES_TIMED", 2)
    monkeypatch.setattr(timing.Candidates, "_seconds", lambda self, *_: timed.append(len(self._samples()[0])) or 1.0)
    settle(EngineConfig(device="cpu"), blobs(), ARCH, LONG)
    assert timed and set(timed) == {2}


def test_a_gpu_compiles_with_a_c_compiler_and_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    on_card = EngineConfig(device="cuda", compile="max")
    assert has_compiler(on_card) or torch.cuda.is_available()  # of a cluster's cards, a machine without one says nothing
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(engines.shutil, "which", lambda _: None)
    with pytest.raises(RequestError, match=r"engine\.compile: .*no C compiler"):
        engines.check_compile(on_card)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"x": 1}', '"text"'])
def test_a_damaged_memory_is_measured_anew(content: str) -> None:
    remembered().parent.mkdir(parents=True)
    remembered().write_text(content)
    assert "auto" not in settle(EngineConfig(device="cpu"), blobs(), ARCH, LONG).model_dump().values()
    assert len(json.loads(remembered().read_text())) >= 1


@pytest.mark.parametrize(
    ("length", "carry", "graph", "expected"),
    [
        (30, 250_000, 2_000_000, "full"),
        (20, 250_000, 20_000_000, "recompute"),
        (300, 250_000, 2_000_000, "checkpoint"),
        (300, 7_000_000, 20_000_000, "checkpoint"),
        (1, 10**9, 10**9, "recompute"),
    ],
)
def test_the_adjoint_follows_from_memory(length: int, carry: int, graph: int, expected: str) -> None:
    assert cheapest_adjoint(length, carry, graph) == expected


def test_a_resumed_distillation_is_computed_as_it_began(tmp_path: Path) -> None:
    config, file = DistillConfig.from_flat(QUICK), tmp_path / "checkpoint"
    begun = EngineConfig(
        device="cpu", compile="trace", adjoint="full", layout="plain", outer_layout="MM", networks="loop"
    )
    half = Distiller(blobs(), ARCH, config, engine=begun)
    half.advance(4)
    half.score()
    state.save(half, file)
    assert state.as_before(EngineConfig(device="cpu"), file) == begun
    assert state.as_before(EngineConfig(device="cpu", adjoint="recompute"), file).adjoint == "recompute"
    resumed = distill(blobs(), ARCH, config, checkpoint=file, engine=EngineConfig(device="cpu"))
    straight = distill(blobs(), ARCH, config, engine=begun)
    assert resumed.inputs.equal(straight.inputs)
    assert resumed.manifest.engine == begun.model_dump(mode="json")


def test_a_compile_mode_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RequestError, match=r"engine\.compile: .max. .* no C\+\+ compiler"):
        Distiller(blobs(), ARCH, LONG, engine=EngineConfig(device="cpu", compile="max"))


def test_the_compiler_is_the_one_that_inductor_will_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not has_compiler(EngineConfig(device="cpu"))


@pytest.mark.parametrize(
    ("seconds", "trials", "alike", "expected"),
    [
        (0.25, 1, True, "max"),  # of a step: 1,000 outer steps of four inner ones take 1,000 seconds
        (0.075, 1, True, "trace"),
        (0.075, 2, True, "max"),
        (0.075, 2, False, "trace"),
        (0.004, 100, True, "trace"),  # enough in all, but too little in each
        (0.0075, 100, True, "max"),
    ],
)
def test_steps_are_compiled_where_one_compilation_saves_more_than_it_takes(
    seconds: float, trials: int, alike: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    factors = {"InnerStep": 2.0, "TracedStep": 1.0, "compiled": 0.8}

    def timed(_: object, step: object, *__: object) -> float:
        return seconds * factors["compiled" if getattr(step, "compiled", False) else type(step).__name__]

    monkeypatch.setattr(timing.Candidates, "_seconds", timed)
    monkeypatch.setattr(timing, "has_compiler", lambda _: True)
    monkeypatch.setattr(engines, "has_compiler", lambda _: True)
    assert LONG.outer.steps * LONG.inner_steps == 4000
    assert settle(EngineConfig(device="cpu"), blobs(), ARCH, LONG, trials=trials, alike=alike).compile == expected


def hidden_norm(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(torch.Size(input_shape).numel(), 8), nn.Linear(8, outputs)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden: torch.Tensor = self.last(nn.functional.layer_norm(self.first(x.flatten(1)), (8,)))
            return hidden

    return Hidden()


@pytest.mark.parametrize(("arch", "networks"), [(ARCH, "batch"), (f"{__name__}:hidden_norm", "loop")])
def test_faster_side_by_side_is_not_taken_where_gradients_differ(
    arch: str, networks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.vmap is wrong for layer norm, which a function may hide."""
    monkeypatch.setattr(timing.Candidates, "_seconds", lambda *_: 1.0)
    assert settle(EngineConfig(device="cpu"), blobs(), arch, LONG).networks == networks


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm2d(1), nn.Dropout2d(0.5), nn.LayerNorm(4), nn.InstanceNorm2d(1, affine=True)]
)
def test_networks_with_batch_statistics_or_masks_of_their_own_are_not_trained_side_by_side(layer: nn.Module) -> None:
    batch = EngineConfig(device="cpu", networks="batch")
    plain = Network(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)))
    assert make_engine(plain, config=batch).batched_step is not None
    assert make_engine(Network(nn.Sequential(layer, nn.Flatten(), nn.Linear(16, 3))), config=batch).batched_step is None


def test_the_time_of_compiling_is_not_a_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = [1.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]  # of the first run, longer than a step is waited for

    def run(*_: object) -> Callable[[], None]:
        return lambda: time.sleep(waits.pop(0))

    monkeypatch.setattr(timing, "_step_and_reverse", run)
    network, _ = check_problem(blobs(), ARCH, LONG)
    candidates = Candidates(EngineConfig(device="cpu"), network, ARCH, blobs(), LONG, 3, each=1, alike=1)
    assert candidates._seconds(TracedStep(network, compiled=True), 0.1) < 0.1
    assert waits == []


@pytest.mark.parametrize(("starts", "steps"), [(1, ["alone"]), (3, ["together"]), (21, ["together", "alone"])])
def test_a_network_alone_takes_its_own_step(starts: int, steps: list[str]) -> None:
    network, _ = check_problem(blobs(), ARCH, LONG)
    engine = make_engine(network, config=EngineConfig(device="cpu", networks="batch"))
    found = list(engine.groups(network.flatten() + i for i in range(starts)))
    assert ["together" if step is engine.batched_step else "alone" for step, _ in found] == steps
    assert [start.dim() for _, start in found] == [1 if step == "alone" else 2 for step in steps]

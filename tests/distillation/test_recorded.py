"""The logic of recorded steps, on a CPU: with a recording that runs its function again, and overwrites what it gave."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from ddray.distillation import captured, distiller
from ddray.distillation.captured import CapturedStep
from ddray.distillation.config import DistillConfig, EngineConfig, InnerConfig
from ddray.distillation.distiller import Distiller
from ddray.distillation.engine import Engine, make_engine
from ddray.distillation.inner import InnerStep
from ddray.distillation.outer import OuterLoss
from ddray.distillation.reference import differentiate
from ddray.distillation.traced import TracedOuterLoss
from ddray.distillation.unroll import ADJOINTS, Adjoint, train_as_distilled
from ddray.errors import Diverged
from ddray.networks import Network

from .problems import ARCH, QUICK, blobs
from .unrolls import ORDER, check_equal, problem

ENGINE = EngineConfig(device="cpu", compile="trace", adjoint="full", layout="blocked", networks="loop")


class Again:
    """A recording without a GPU."""

    def __init__(self, function: Callable[..., Sequence[Tensor]], given: Sequence[Tensor], *, device: torch.device) -> None:
        assert device.type == "cpu"
        self._function, self._given = function, [t.detach().clone() for t in given]
        self._found = tuple(torch.full_like(t, torch.nan) for t in function(*self._given))

    def __call__(self, *given: Tensor) -> tuple[Tensor, ...]:
        torch._foreach_copy_(self._given, list(given))
        for place, value in zip(self._found, self._function(*self._given), strict=True):
            place.copy_(value)
        return self._found


@pytest.fixture(autouse=True)
def _without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(captured, "Captured", Again)
    yield


@pytest.mark.parametrize("optimiser", get_args(InnerConfig.model_fields["optimiser"].annotation))
@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_one_recording_serves_windows_wherever_they_begin(optimiser: str, adjoint: Adjoint) -> None:
    network, weights, synthetic, batch = problem("ConvNet3")
    config = InnerConfig(optimiser=optimiser)
    step, outer = CapturedStep(network, config), OuterLoss(network)
    for window in (range(0, 4), range(0, 2), range(1, 3), range(2, 4)):
        expected = differentiate(InnerStep(network, config), weights, synthetic, ORDER, batch, window=window)
        _, *found = step.outer_gradient(weights, synthetic, ORDER, batch, adjoint=adjoint, window=window, outer=outer)
        check_equal((found[0], found[1]), expected)
        step.outer_gradient(1.1 * weights, synthetic, ORDER, batch, adjoint=adjoint, window=window, outer=outer)
        check_equal((found[0], found[1]), expected)  # what was given stays when the recording runs again
    assert len(step._captured) == 3  # the whole, any window of two steps, and the step that leads to it


def test_networks_are_trained_step_by_step_from_one_recording() -> None:
    network, weights, synthetic, _ = problem("LeNet")
    step = CapturedStep(network)
    for scale in (1.0, 0.9):
        expected = train_as_distilled(InnerStep(network), scale * weights, synthetic, ORDER)
        torch.testing.assert_close(train_as_distilled(step, scale * weights, synthetic, ORDER), expected)
    assert [key[0] for key in step._captured] == ["step"]


def test_what_cannot_be_recorded_is_launched_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(captured, "Captured", fails)
    network, weights, synthetic, batch = problem("LeNet")
    step = CapturedStep(network)
    with pytest.warns(UserWarning, match="cannot be captured"):
        _, *found = step.outer_gradient(
            weights, synthetic, ORDER, batch, adjoint="full", window=range(4), outer=OuterLoss(network)
        )
    check_equal((found[0], found[1]), differentiate(InnerStep(network), weights, synthetic, ORDER, batch))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step.outer_gradient(weights, synthetic, ORDER, batch, adjoint="full", window=range(4), outer=OuterLoss(network))


def recorded_engine(network: Network, inner: InnerConfig | None = None, config: EngineConfig | None = None) -> Engine:
    engine = make_engine(network, inner, config)
    batched = CapturedStep(network, inner, batched=True) if engine.batched_step else None
    return Engine(CapturedStep(network, inner), batched, TracedOuterLoss(network), engine.adjoint)


class Ahead(Distiller):
    """Draws the next step while it computes, as on a GPU."""

    def _require_finite(self, *given: Any) -> float:
        self._draws.draw_ahead(self.step + 1)
        return super()._require_finite(*given)


@pytest.mark.parametrize("networks", ["loop", "batch"])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"outer.networks": 3},
        {"outer.window": 2, "outer.networks": 2},
        {"network.source": "fixed", "network.starts": 3, "outer.networks": 2},
    ],
)
def test_a_distillation_by_recordings_and_drawn_ahead_is_the_same(
    more: dict[str, Any], networks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, engine = DistillConfig.from_flat(QUICK | more), ENGINE.model_copy(update={"networks": networks})
    plain = Distiller(blobs(), ARCH, config, engine=engine)
    plain.advance(7)
    monkeypatch.setattr(distiller, "make_engine", recorded_engine)
    whole, resumed = (Ahead(blobs(), ARCH, config, engine=engine) for _ in range(2))
    whole.advance(4)
    resumed.advance(2)
    resumed.load_state_dict({key: torch.as_tensor(value).clone() for key, value in whole.state_dict().items()})
    whole.advance(3), resumed.advance(3)
    for name, raw in plain.raw.items():
        assert torch.equal(raw, whole.raw[name]) and torch.equal(raw, resumed.raw[name]), name


@pytest.mark.parametrize("networks", ["loop", "batch"])
def test_the_network_that_diverged_is_trained_again_to_find_where(
    networks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distiller, "make_engine", recorded_engine)
    config = DistillConfig.from_flat(QUICK | {"outer.networks": 3})
    run = Ahead(blobs(), ARCH, config, engine=ENGINE.model_copy(update={"networks": networks}))
    run.advance(2)
    with torch.no_grad():
        run.raw["rates"][2:] = torch.inf
    with pytest.raises(Diverged) as caught:
        run.advance()
    assert (caught.value.what, caught.value.outer_step, caught.value.inner_step) == ("an inner weight", 2, 3)


def test_networks_of_an_outer_step_are_drawn_one_by_one() -> None:
    run, alive = Distiller(blobs(), ARCH, DistillConfig.from_flat(QUICK | {"outer.networks": 5}), engine=ENGINE), []
    draw = run._draws.start
    run._draws.start = lambda step, index: alive.append(index) or draw(step, index)  # type: ignore[method-assign, func-returns-value]
    _, starts = run._draws.at(0)
    assert not alive
    next(iter(starts))
    assert alive == [0]

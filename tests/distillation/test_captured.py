"""On a GPU: recorded steps against the same step as it is written, and a distillation that is the same twice."""

import warnings
from collections.abc import Iterator
from typing import get_args

import pytest
import torch
from torch import Tensor

from ddray.distillation import traced
from ddray.distillation.captured import CapturedStep
from ddray.distillation.choose import settle
from ddray.distillation.config import DistillConfig, EngineConfig, InnerConfig
from ddray.distillation.cuda_graph import Captured
from ddray.distillation.distiller import Distiller
from ddray.distillation.engine import has_compiler, make_engine, set_arithmetic
from ddray.distillation.inner import InnerStep
from ddray.distillation.outer import OuterLoss, RealBatch
from ddray.distillation.preflight import check_memory
from ddray.distillation.reference import differentiate
from ddray.distillation.traced import TracedOuterLoss, TracedStep
from ddray.distillation.unroll import ADJOINTS, Adjoint, Synthetic, train_as_distilled
from ddray.errors import Diverged, RequestError
from ddray.networks import Network, build

from .problems import ARCH, QUICK, blobs
from .unrolls import NETWORKS, ORDER, check_equal, moved, problem

pytestmark = pytest.mark.needs_gpu
WHOLE = range(len(ORDER))
FLOATS = [(torch.float64, 1e-10), (torch.float32, 1e-4)]


@pytest.fixture(autouse=True)
def _every_bit() -> Iterator[None]:
    set_arithmetic(tf32=False)
    traced._graphs.clear()
    yield
    traced._graphs.clear()


def on_card(name: str, dtype: torch.dtype = torch.float64) -> tuple[Network, Tensor, Synthetic, RealBatch]:
    network, weights, synthetic, batch = problem(name, dtype)
    return network.to("cuda"), weights.cuda(), *moved(synthetic, batch, "cuda")


def unrolled(
    step: CapturedStep, start: Tensor, synthetic: Synthetic, batch: RealBatch, adjoint: Adjoint, window: range, outer: OuterLoss
) -> tuple[Tensor, Synthetic]:
    _, *found = step.outer_gradient(start, synthetic, ORDER, batch, adjoint=adjoint, window=window, outer=outer)
    return found[0], found[1]


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "dropout"])
@pytest.mark.parametrize(("dtype", "rtol"), FLOATS)
def test_captured_equals_plain_and_so_do_new_numbers(name: str, dtype: torch.dtype, rtol: float) -> None:
    network, weights, synthetic, batch = on_card(name, dtype)
    step, outer = CapturedStep(network), TracedOuterLoss(network)
    for scale in (1.0, 0.9):
        start = scale * weights
        seen = Synthetic(scale * synthetic.inputs, synthetic.labels, scale * synthetic.rates)
        expected = differentiate(InnerStep(network), start, seen, ORDER, batch)
        found = unrolled(step, start, seen, batch, "full", WHOLE, outer)
        check_equal(found, expected, rtol)
    assert len(step._captured) == 1 and all(step._captured.values())


@pytest.mark.parametrize("optimiser", get_args(InnerConfig.model_fields["optimiser"].annotation))
@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("window", [WHOLE, range(1, 4), range(0, 2)])
def test_every_optimiser_adjoint_and_window_is_captured(optimiser: str, adjoint: Adjoint, window: range) -> None:
    network, weights, synthetic, batch = on_card("ConvNet3")
    config, outer = InnerConfig(optimiser=optimiser), OuterLoss(network)
    expected = differentiate(InnerStep(network, config), weights, synthetic, ORDER, batch, window=window)
    step = CapturedStep(network, config)
    found = unrolled(step, weights, synthetic, batch, adjoint, window, outer)
    check_equal(found, expected, 1e-10)


def test_one_recording_serves_windows_wherever_they_begin() -> None:
    network, weights, synthetic, batch = on_card("LeNet")
    step, outer = CapturedStep(network), OuterLoss(network)
    for begin in (0, 1, 2):
        window = range(begin, begin + 2)
        expected = differentiate(InnerStep(network), weights, synthetic, ORDER, batch, window=window)
        found = unrolled(step, weights, synthetic, batch, "full", window, outer)
        check_equal(found, expected, 1e-10)
    assert len(step._captured) == 2  # the window, and the step that leads to it


def test_several_networks_are_captured_together_and_trained_for_scores() -> None:
    network, weights, synthetic, batch = on_card("LeNet")
    starts = torch.stack([weights, 1.1 * weights])
    step, plain = CapturedStep(network, batched=True), InnerStep(network, batched=True)
    expected = differentiate(plain, starts, synthetic, ORDER, batch)
    outer = OuterLoss(network)
    found = unrolled(step, starts, synthetic, batch, "recompute", WHOLE, outer)
    check_equal(found, expected, 1e-10)
    trained = train_as_distilled(step, starts, synthetic, ORDER)
    torch.testing.assert_close(trained, train_as_distilled(plain, starts, synthetic, ORDER), rtol=1e-10, atol=1e-12)


def test_what_goes_through_inductor_is_captured_too() -> None:
    if not has_compiler(EngineConfig(device="cuda")):
        pytest.skip("no C compiler, headers of Python or Triton")
    network, weights, synthetic, batch = on_card("LeNet", torch.float32)
    expected = differentiate(InnerStep(network), weights, synthetic, ORDER, batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, and that no reduced precision was asked for
        step, outer = CapturedStep(network, compiled=True), TracedOuterLoss(network, compiled=True)
        found = unrolled(step, weights, synthetic, batch, "full", WHOLE, outer)
    check_equal(found, expected, 1e-4)
    assert all(step._captured.values())


def test_dropout_is_not_captured_and_its_masks_follow_from_the_seed() -> None:
    network, weights, synthetic, batch = on_card("dropout")
    engine = make_engine(network, config=EngineConfig(device="cuda", compile="trace"))
    assert type(engine.step) is TracedStep
    _, *found = engine.outer_gradient(engine.step, weights, synthetic, ORDER, batch, 7, WHOLE)
    check_equal(tuple(found), differentiate(InnerStep(network), weights, synthetic, ORDER, batch, 7))


def test_what_asks_the_device_cannot_be_recorded_says_so_and_harms_no_other() -> None:
    network, weights, synthetic, batch = on_card("LeNet")
    step = CapturedStep(network)

    def asks(*given: Tensor) -> list[Tensor]:
        return [given[0] * given[0].sum().item()]

    with pytest.warns(UserWarning, match="cannot be captured"):
        assert step._replayed("asks", asks, [weights]) is None
    found = unrolled(step, weights, synthetic, batch, "full", WHOLE, OuterLoss(network))
    check_equal(found, differentiate(InnerStep(network), weights, synthetic, ORDER, batch))


def test_a_recording_is_of_what_it_was_given_last() -> None:
    double = Captured(lambda x: [2 * x], [torch.ones(3, device="cuda")], device=torch.device("cuda"))
    assert double(torch.full((3,), 5.0, device="cuda"))[0].tolist() == [10.0] * 3
    assert double()[0].tolist() == [10.0] * 3


def test_divergence_is_found_where_it_happens() -> None:
    engine = EngineConfig(device="cuda", compile="trace", adjoint="full", layout="blocked", networks="loop")
    distiller = Distiller(blobs(), ARCH, DistillConfig.from_flat(QUICK), engine=engine)
    with torch.no_grad():
        distiller.raw["rates"][2:] = torch.inf
    before = distiller.synthetic_now()
    with pytest.raises(Diverged) as caught:
        distiller.advance(3)
    assert (caught.value.outer_step, caught.value.what) == (0, "an inner weight")
    assert caught.value.inner_step == 3
    assert torch.equal(before.inputs, distiller.synthetic_now().inputs)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_the_outer_loss_by_graphs_is_that_of_autograd(bfloat16: bool) -> None:
    network, weights, _, batch = on_card("LeNet", torch.float32)
    loss, slope = OuterLoss(network)(weights, batch)
    found, gradient = TracedOuterLoss(network, bfloat16=bfloat16)(weights, batch)
    assert abs(found - loss) <= (0.03 if bfloat16 else 1e-5) * loss
    assert (gradient - slope).norm() <= (0.25 if bfloat16 else 1e-5) * slope.norm()  # of four images


@pytest.mark.parametrize("compile", ["off", "trace"])
@pytest.mark.parametrize("arch", [ARCH, "LeNet"])
def test_the_same_seed_gives_the_same_set_and_a_resumed_one_too(compile: str, arch: str) -> None:
    engine = EngineConfig(device="cuda", compile=compile, adjoint="full", layout="blocked", networks="loop")
    data = blobs(size=28) if arch == "LeNet" else blobs()
    config = DistillConfig.from_flat(QUICK)

    def run(seed: int = 0) -> Distiller:
        return Distiller(data, arch, config, seed=seed, engine=engine)

    whole, again, halted = run(), run(), run()
    whole.advance(8), again.advance(8), halted.advance(5)
    resumed = run()
    resumed.load_state_dict({key: torch.as_tensor(value) for key, value in halted.state_dict().items()})
    resumed.advance(3)
    for other in (again, resumed):
        for name, raw in whole.raw.items():
            assert torch.equal(raw, other.raw[name]), name
    assert whole.score().mean == again.score().mean


@pytest.mark.parametrize("law", ["xavier", "default"])
def test_one_seed_means_the_same_weights_on_every_device(law: str) -> None:
    cpu, card = build("LeNet", (1, 28, 28), 10), build("LeNet", (1, 28, 28), 10).to("cuda")
    before = torch.cuda.get_rng_state()
    drawn = [n.draw(law, 1.0, torch.Generator().manual_seed(3)).cpu() for n in (cpu, card)]  # type: ignore[arg-type]
    assert torch.equal(*drawn)
    assert torch.equal(before, torch.cuda.get_rng_state())


@pytest.mark.parametrize("name", ["LeNet", "AlexCifarNet", "batch norm"])
def test_a_measured_word_computes_the_same(name: str) -> None:
    network, weights, synthetic, batch = on_card(name)
    word = TracedStep(network).measured_layout(weights, synthetic.inputs[0], synthetic.labels[0])
    assert word and set(word) <= set("BMUVSD")
    outer_word = TracedOuterLoss(network).measured_layout(weights, batch.x, batch.y)
    expected = differentiate(InnerStep(network), weights, synthetic, ORDER, batch)
    for letters in ((word, outer_word), *((n * len(word), n * len(outer_word)) for n in "MSD")):
        step, outer = CapturedStep(network, layout=letters[0]), TracedOuterLoss(network, layout=letters[1])
        check_equal(unrolled(step, weights, synthetic, batch, "full", WHOLE, outer), expected)


def test_auto_is_settled_by_timing_recordings() -> None:
    config = DistillConfig.from_flat(QUICK | {"outer.steps": 1000, "outer.networks": 2})
    engine = settle(EngineConfig(device="cuda"), blobs(), ARCH, config)
    assert "auto" not in engine.model_dump().values()
    assert engine.compile == "trace"


def test_an_unroll_larger_than_the_card_is_refused() -> None:
    config = DistillConfig.from_flat(QUICK | {"synthetic.steps": 50, "synthetic.epochs": 1000, "synthetic.lr": 1e-4})
    big = config.model_copy(update={"network": config.network.model_copy(update={"args": {"width": 100_000}})})
    with pytest.raises(RequestError, match="this card"):
        check_memory(blobs(), ARCH, big, EngineConfig(device="cuda", adjoint="full", compile="trace"))

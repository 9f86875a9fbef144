"""Whether a distillation fits into memory."""

import pytest

from ddray.distillation import preflight
from ddray.distillation.config import DistillConfig
from ddray.distillation.memory import footprint
from ddray.distillation.preflight import (
    ALWAYS_AVAILABLE,
    CUDA_CONTEXT,
    GPU_OVERHEAD,
    PROCESS,
    check_memory,
    check_share,
    gib,
    needed,
)
from ddray.distillation.run import distill
from ddray.errors import RequestError

from .problems import ARCH, QUICK, blobs
from .test_memory import ENGINE, colours, wide


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
    assert needed(colours(), "ConvNet3", wide(), on_card) == int(GPU_OVERHEAD * other) + examples + CUDA_CONTEXT


def test_an_unroll_that_does_not_fit_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "machine_memory", lambda: 800 * 2**20)
    engine = ENGINE.model_copy(update={"adjoint": "full"})
    with pytest.raises(
        RequestError, match=r"synthetic\.steps × synthetic\.epochs: 9 .*adjoint=full .*this machine has 800 MiB"
    ):
        check_memory(colours(), "ConvNet3", wide(), engine)
    with pytest.raises(RequestError, match="fewer steps"):
        distill(colours(), "ConvNet3", wide(), engine=engine)


def test_a_batch_that_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "machine_memory", lambda: 800 * 2**20)
    config = DistillConfig.from_flat({"synthetic.steps": 1, "synthetic.epochs": 1, "outer.batch": 256})
    with pytest.raises(RequestError, match=r"outer\.batch × outer\.networks: 256 .*one pass needs .*a smaller batch"):
        check_memory(colours(), "ConvNet3", config, ENGINE)


def test_small_work_is_not_looked_at_closely(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "footprint", lambda *_: pytest.fail("it was traced"))
    assert check_memory(blobs(), ARCH, DistillConfig.from_flat(QUICK), ENGINE) == 0


def test_a_set_that_does_not_fit_is_refused_before_anything_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddray.distillation.run.settle", lambda *_: pytest.fail("it was timed"))
    many = QUICK | {"synthetic.steps": 10_000, "synthetic.samples_per_class": 10_000}
    with pytest.raises(RequestError, match="the thriftiest adjoint needs"):
        distill(blobs(), ARCH, many)


def test_large_work_is_told_with_the_process() -> None:
    config = DistillConfig.from_flat({"synthetic.steps": 1, "synthetic.epochs": 30, "outer.batch": 128})
    engine = ENGINE.model_copy(update={"adjoint": "full"})
    wanted = check_memory(colours(), "ConvNet3", config, engine)
    assert ALWAYS_AVAILABLE < wanted == footprint(colours(), "ConvNet3", config, engine).total + PROCESS


@pytest.mark.parametrize(("size", "text"), [(3 * 2**30, "3.0 GiB"), (800 * 2**20, "800 MiB")])
def test_bytes_for_a_reader(size: int, text: str) -> None:
    assert gib(size) == text

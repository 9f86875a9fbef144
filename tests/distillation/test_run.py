"""A distillation from beginning to end: what becomes of its set and its checkpoint, and of a run that diverges."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddray.distillation import EngineConfig, Progress, distill, load
from ddray.distillation.distiller import Distiller
from ddray.distillation.run import finished_set
from ddray.distillation.unroll import Synthetic
from ddray.errors import Diverged, RequestError

from .problems import ARCH, QUICK, blobs, distiller, diverge_at

CPU = EngineConfig(device="cpu")


def test_the_checkpoint_goes_when_the_set_is_saved(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    made = distill(blobs(), ARCH, QUICK, checkpoint=checkpoint, save_to=tmp_path / "set", engine=CPU)
    assert torch.equal(load(tmp_path / "set").inputs, made.inputs)
    assert not checkpoint.exists()


def test_files_may_be_named_by_text(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randint(256, (60, 1, 4, 4), generator=draw, dtype=torch.uint8).numpy(), np.arange(60) % 3
    np.savez(tmp_path / "mine.npz", train_x=x, train_y=y, test_x=x, test_y=y)
    given = {"checkpoint": str(tmp_path / "checkpoint"), "save_to": str(tmp_path / "set"), "engine": CPU}
    made = distill(tmp_path / "mine.npz", ARCH, QUICK, **given)
    assert torch.equal(load(tmp_path / "set").inputs, made.inputs)


def test_a_set_that_cannot_be_saved_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tmp_path / "checkpoint"

    def full(*_: object) -> Path:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(RequestError, match="No space"):
        patch.setattr(Path, "rename", full)
        distill(blobs(), ARCH, QUICK, checkpoint=checkpoint, save_to=tmp_path / "set", engine=CPU)
    looks: list[int] = []
    again = distill(
        blobs(), ARCH, QUICK, checkpoint=checkpoint, engine=CPU, report=lambda progress: looks.append(progress.step)
    )
    assert looks == []
    assert torch.equal(again.inputs, distill(blobs(), ARCH, QUICK, engine=CPU).inputs)


def test_a_run_that_diverges_says_so_and_keeps_the_best_set_before(monkeypatch: pytest.MonkeyPatch) -> None:
    diverge_at(6, monkeypatch)
    said = r"outer loss is not finite at outer step 6: kept is the best set seen before, of step 4 of 12"
    with pytest.warns(RuntimeWarning, match=said):
        made = distill(blobs(), ARCH, QUICK, engine=CPU)
    assert (made.manifest.outer_step, made.manifest.outer_steps) == (4, 6)


def steep(run: Distiller) -> Synthetic:
    """The distiller's set with rates at which no network stays finite."""
    return replace(run.synthetic_now(), rates=torch.full((len(run.order),), 1e30))


def test_a_set_on_which_every_network_diverges_is_never_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    run = distiller()
    run.advance(1)
    with monkeypatch.context() as patch:
        broken = steep(run)
        patch.setattr(run, "synthetic_now", lambda: broken)
        assert run.score().diverged == 5 and run.best is None
        with pytest.raises(Diverged, match="every network trained on the set is not finite at outer step 1"):
            finished_set(run)
    run.score()
    assert run.best is not None and run.best.step == 1


def test_a_run_without_any_set_that_trains_networks_has_diverged(monkeypatch: pytest.MonkeyPatch) -> None:
    now = Distiller.synthetic_now

    def steep_now(self: Distiller) -> Synthetic:
        return replace(now(self), rates=torch.full((len(self.order),), 1e30))

    monkeypatch.setattr(Distiller, "synthetic_now", steep_now)
    with pytest.raises(Diverged, match="every network trained on the set is not finite at outer step 12"):
        distill(blobs(), ARCH, QUICK, engine=CPU)


@pytest.mark.parametrize("key", ["checkpoint", "save_to"])
def test_a_place_that_cannot_be_written_to_is_refused_before_the_work(key: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="a directory that can be written to"):
        distill(blobs(), ARCH, QUICK, engine=CPU, report=_never, **{key: tmp_path / "file" / "mine"})


def test_what_is_no_set_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "letters").touch()
    with pytest.raises(RequestError, match="not a distilled set"):
        distill(blobs(), ARCH, QUICK, engine=CPU, report=_never, save_to=tmp_path)


def test_a_set_of_another_distillation_is_not_written_over(tmp_path: Path) -> None:
    first = distill(blobs(), ARCH, QUICK, engine=CPU, save_to=tmp_path / "set")
    with pytest.raises(RequestError, match=r"a set of another distillation lies there \(blobs × .*, seed 0\)"):
        distill(blobs(), ARCH, QUICK, seed=1, engine=CPU, report=_never, save_to=tmp_path / "set")
    distill(blobs(), ARCH, QUICK, engine=CPU, save_to=tmp_path / "set")
    assert torch.equal(load(tmp_path / "set").inputs, first.inputs)


@pytest.mark.parametrize("seed", [1.5, "1", True, None])
def test_a_seed_is_a_whole_number(seed: Any) -> None:
    with pytest.raises(RequestError, match=r"seed: .* is refused: a whole number"):
        distill(blobs(), ARCH, QUICK, seed=seed, engine=CPU, report=_never)


def test_a_seed_may_be_of_numpy() -> None:
    assert distill(blobs(), ARCH, QUICK, seed=np.int64(3), engine=CPU).manifest.seed == 3


def _never(progress: Progress) -> None:
    pytest.fail(f"it had begun: {progress}")

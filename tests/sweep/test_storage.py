"""Where sweeps lie, without Ray."""

from __future__ import annotations

import os
from pathlib import Path

import optuna
import pytest

from ddray.errors import RequestError
from ddray.sweep.storage import STUDY, earlier_sweep, remembered, study_uri


@pytest.mark.parametrize("name", ["s", None], ids=["named", "the only one"])
@pytest.mark.parametrize("place", [".", STUDY, "driver.lock"])
def test_a_sweep_that_cannot_be_written_to_is_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, name: str | None
) -> None:
    directory = tmp_path / "s"
    directory.mkdir()
    for file in (STUDY, "driver.lock"):
        (directory / file).touch()
    monkeypatch.setattr("ddray.sweep.storage.remembered", lambda _: {})
    assert earlier_sweep(tmp_path, name) == directory
    allowed = os.access
    # Not by its mode: root may write to everything.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != directory / place and allowed(path, mode))
    with pytest.raises(RequestError, match=r"--resume: 's' .* can be written to; .* cannot") as refused:
        earlier_sweep(tmp_path, name)
    assert str(directory / place) in refused.value.allowed


def test_a_sweep_that_was_killed_before_its_study_was_there_is_not_in_the_way_of_another(tmp_path: Path) -> None:
    for name in ("dead", "whole"):
        (tmp_path / name).mkdir()
    (tmp_path / "dead" / STUDY).touch()
    optuna.create_study(study_name="whole", storage=study_uri(tmp_path / "whole"))
    assert earlier_sweep(tmp_path, None) == tmp_path / "whole"
    with pytest.raises(RequestError, match="its study cannot be read"):
        remembered(tmp_path / "dead")

"""The pictures of a sweep, looked at through matplotlib's own objects and the files' pixels."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from ddray.tracking import TrialEntry, sweep_figures
from ddray.tracking.figures import _WINNER

TRIALS = [
    TrialEntry(
        number=n,
        status="finished",
        params={"synthetic.lr": 10.0 ** (n - 4), "labels.learn": n % 2 == 0, "outer.clip": None, "outer.lr": 0.1},
        searched=("synthetic.lr", "labels.learn", "outer.clip"),
        curves={step: {"val_accuracy": 0.1 * n + 0.001 * step} for step in (10, 20, 30)},
        value=0.1 * n + 0.03,
        seconds=1.0,
        started=1e9,
    )
    for n in range(5)
]


def share_of_winner_colour(file: Path) -> float:
    pixels = imread(file)[..., :3]
    return float((np.abs(pixels - np.array(to_rgb(_WINNER))).max(-1) < 0.02).mean())


def test_both_pictures_are_drawn_and_nothing_else_is_left(tmp_path: Path) -> None:
    made = sweep_figures(TRIALS, tmp_path / "figures")
    assert [file.name for file in made] == ["curves.png", "parameters.png"]
    assert sorted((tmp_path / "figures").iterdir()) == made


def test_the_winner_is_highlighted_in_both(tmp_path: Path) -> None:
    assert all(share_of_winner_colour(file) > 1e-4 for file in sweep_figures(TRIALS, tmp_path))


def test_without_a_finished_trial_there_is_no_winner(tmp_path: Path) -> None:
    ended = [replace(trial, status="pruned") for trial in TRIALS]
    assert share_of_winner_colour(sweep_figures(ended, tmp_path)[0]) == 0


def test_a_sweep_that_searched_nothing_has_curves_only(tmp_path: Path) -> None:
    assert [file.name for file in sweep_figures([replace(TRIALS[0], searched=())], tmp_path)] == ["curves.png"]


@pytest.mark.parametrize(
    "tried", [[(1e6, 3), (1e6, 1), (1e-6, 1), (0.2, 1)], [(1e6, 3)], [(1e-6, 1), (1e-6, 1), (1e6, 1)], [(0.0, -3), (0.0, -3)]]
)
def test_parameters_that_were_tried_at_one_place_first_are_drawn(tmp_path: Path, tried: list[tuple[float, int]]) -> None:
    def trial(lr: float, steps: int, **changes: object) -> TrialEntry:
        params = {"synthetic.lr": lr, "synthetic.steps": steps}
        return replace(TRIALS[0], params=params, searched=tuple(params), **changes)  # type: ignore[arg-type]

    lost = trial(*tried[0], status="diverged", value=None, curves={})
    assert len(sweep_figures([lost, lost, *(trial(*values, value=0.3) for values in tried)], tmp_path)) == 2


@pytest.mark.parametrize("status", ["running", "pruned", "diverged", "failed"])
def test_trials_without_values_are_drawn_too(tmp_path: Path, status: str) -> None:
    bare = replace(TRIALS[0], status=status, curves={}, value=None)
    nan = replace(TRIALS[1], status=status, curves={1: {"val_accuracy": math.nan}}, value=math.nan)
    assert len(sweep_figures([bare, nan], tmp_path)) == 2


def test_the_same_trials_give_the_same_picture(tmp_path: Path) -> None:
    one, two = sweep_figures(TRIALS, tmp_path / "1"), sweep_figures(TRIALS, tmp_path / "2")
    assert [file.read_bytes() for file in one] == [file.read_bytes() for file in two]


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([0.001, 1.0], "log"),
        ([1.0, 50.0], "linear"),
        ([-1.0, 100.0], "linear"),
        ([1, 100], "log"),
        ([True, None], "linear"),
    ],
)
def test_a_wide_range_is_drawn_on_a_logarithmic_axis(values: list[object], scale: str) -> None:
    from matplotlib.figure import Figure

    from ddray.tracking.figures import _places

    axes = Figure().subplots()
    assert len(_places(axes, values)) == len(values)
    assert axes.get_xscale() == scale

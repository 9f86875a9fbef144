"""What a sweep says of itself while it runs."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest

from ddray.sweep.constraint import Problem
from ddray.sweep.searcher import StudySearcher
from ddray.sweep.spec import build
from ddray.sweep.study import SweepStudy, open_study
from ddray.sweep.watch import Tally, Watch


@pytest.fixture
def study(tmp_path: Path) -> SweepStudy:
    spec = build("x", {"dataset": "digits", "arch": "LeNet", "search": {"outer.lr": {"float": [0.1, 1.0]}}})
    return open_study(tmp_path, spec, Problem(3, (1, 8, 8)), 0, {"train": "1"}, resume=False)


def test_the_time_left_is_told_once_a_trial_has_ended(study: SweepStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(StudySearcher(study, [], lambda _: []), 4, lambda _: None)
    number = study.assign().number
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    watch.on_trial_start(0, [], type("Trial", (), {"trial_id": "unknown"})())
    assert math.isinf(watch.tally().left) and "left" not in watch.tally().line()
    study.end(number, "finished", value=0.5)
    monkeypatch.setattr(time, "monotonic", lambda: now + 10)
    assert watch.tally().left == 30.0
    assert watch.tally().line() == "1 of 4 trials done, 0 running, best 50.00 %, about 30 s left"


def test_when_all_trials_are_done_no_time_is_left() -> None:
    assert Tally(target=2, done=2, running=0, best=0.5, left=7.0).line() == "2 of 2 trials done, 0 running, best 50.00 %"

"""Tables that can be read at 80 columns, and by programs that read a pipe."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.trial import TrialState, create_trial

from ddray import report
from ddray.distillation.assess import Assessment
from ddray.distillation.evaluate import Score, SplitName, score_from
from ddray.sweep.winner import Outcome
from ddray.tracking.registry import Entry


def outcome(params: dict[str, Any], trials: int = 3) -> Outcome:
    distributions = {key: _distribution(value) for key, value in params.items()}
    made = [
        create_trial(
            value=i / 10, params=params, distributions=distributions, user_attrs={"seconds": 61.0, "end": "finished"}
        )
        for i in range(trials)
    ]
    diverged = create_trial(state=TrialState.PRUNED, user_attrs={"end": "diverged"})
    return Outcome("mine", "sqlite:///x.db", [*made, diverged], 0, None, None, None, None, None)


def _distribution(value: Any) -> Any:
    from optuna.distributions import CategoricalDistribution

    return CategoricalDistribution([value])


def score(mean: float, split: SplitName = "test", n: int = 100) -> Score:
    return score_from([mean] * n, 1000, "as-distilled", split)


FEW = {"outer.lr": 0.0123456, "labels.init": "orthogonal"}
MANY = {f"synthetic.setting_number_{i}": 0.123456 for i in range(9)}


def test_the_best_trials_come_first(capsys: pytest.CaptureFixture[str]) -> None:
    report.outcome(outcome(FEW))
    out = capsys.readouterr().out
    assert out.startswith("mine: 4 trials (3 finished, 1 diverged)\n")
    assert out.index(" 20.00 %") < out.index(" 10.00 %") < out.index(" 0.00 %")
    assert "orthogonal" in out and "0.0123" in out


def test_at_most_ten_trials_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    report.outcome(outcome(FEW, trials=25))
    assert capsys.readouterr().out.count("orthogonal") == 10


def test_settings_have_columns_where_they_fit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    report.outcome(outcome(FEW))
    assert "outer.lr=" not in capsys.readouterr().out


def test_many_settings_are_listed_for_each_trial(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    report.outcome(outcome(MANY))
    out = capsys.readouterr().out
    assert "synthetic.setting_number_8=0.123" in out and max(map(len, out.splitlines())) <= 80


def test_no_row_is_broken_in_a_pipe(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    report.leaderboard([_entry()], as_json=False)
    rows = [line for line in capsys.readouterr().out.splitlines() if "±" in line]
    assert len(rows) == 1 and rows[0].rstrip().endswith("a_sweep_with_quite_a_long_name-20261124-abcd")


def test_a_long_name_gives_way_to_the_scores_at_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    report.leaderboard([_entry()], as_json=False)
    out = capsys.readouterr().out
    assert "98.76 ± 1.23 (100)" in out and "97.65 ± 2.34 (100)" in out and max(map(len, out.splitlines())) <= 80


def test_square_brackets_are_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    report.outcome(outcome({"network.args": "[bold]x[/]"}))
    assert "[bold]x[/]" in capsys.readouterr().out


def test_one_network_has_an_interval_and_no_spread(capsys: pytest.CaptureFixture[str]) -> None:
    report.assessment(_assessment(score(0.9, n=1)), as_json=False)
    out = capsys.readouterr().out
    assert "90.00 [88.0, 91.7]" in out and "one network (n = 1)" in out and "±" not in out


@pytest.mark.parametrize(
    ("n", "lost", "told"), [(1, 1, "diverged"), (5, 5, "all 5 diverged"), (5, 2, "(n = 5, 2 diverged)")]
)
def test_what_diverged_is_not_told_as_a_number(
    n: int, lost: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    report.assessment(_assessment(score(0.0, n=n).model_copy(update={"diverged": lost})), as_json=False)
    out = capsys.readouterr().out
    assert told in out and ("0.00" in out) == (lost < n)


def test_a_document_is_json_alone(capsys: pytest.CaptureFixture[str]) -> None:
    report.assessment(_assessment(score(0.9)), as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert document["scores"][0]["mean"] == pytest.approx(0.9) and document["scores"][0]["n"] == 100


def test_a_password_is_not_printed() -> None:
    assert report._without_password("postgresql://me:secret@host/db") == "postgresql://…@host/db"
    assert report._without_password("sqlite:////tmp/a@b.db") == "sqlite:////tmp/a@b.db"


def _assessment(found: Score) -> Assessment:
    manifest = SimpleNamespace(dataset=SimpleNamespace(name="toy"), test_looks=lambda: 1)
    return Assessment(SimpleNamespace(manifest=manifest, stored_samples=6), "LeNet", (found,), {"random": (found,)})  # type: ignore[arg-type]


def _entry() -> Entry:
    return Entry(
        dataset=str(Path("/data/somewhere/toy.npz")), arch="LeNet", source="random", name="x", version="12", is_best=True,
        stored_samples=100, val_accuracy=0.98764, val_std=0.0123, val_n=100, test_accuracy=0.9765, test_std=0.0234,
        test_n=100, test_looks=1, sweep="a_sweep_with_quite_a_long_name-20261124-abcd", trial="3", run_id="r",
        date="2026-11-24T00:00:00+00:00", sha256="0",
    )  # fmt: skip

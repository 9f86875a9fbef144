"""What a sweep is asked for in Python, where no command line has read it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ddray.distillation import preflight, timing
from ddray.errors import RequestError
from ddray.sweep import SweepRequest, prepare
from ddray.sweep.request import request_of
from tests.sweep.sweeps import save_space


@pytest.mark.parametrize(
    ("field", "value"), [("trials", 2.5), ("trials", True), ("trials", 0), ("max_concurrent", "2"), ("seed", 1.5)]
)
def test_what_is_no_whole_number_is_refused(tmp_path: Path, field: str, value: object) -> None:
    with pytest.raises(RequestError, match="a whole number") as refused:
        prepare(SweepRequest(storage=tmp_path / "sweeps", **{field: value}))  # type: ignore[arg-type]
    assert refused.value.key == f"--{field.replace('_', '-')}" and "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


WIDE = {key: {"int": [1, 10_000], "log": True} for key in ("synthetic.steps", "synthetic.samples_per_class")}


def test_only_what_constraints_allow_has_to_fit_into_memory(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "machine_memory", lambda: preflight.PROCESS + 2**28)
    monkeypatch.setattr(timing.Candidates, "choose", lambda _: pytest.fail("it was timed"))

    def asked(limit: int) -> SweepRequest:
        bound = [f"stored_samples <= {limit}"]
        space = save_space(tmp_path / f"{limit}.yaml", data, fixed={}, search=WIDE, constraints=bound, trials=1)
        return SweepRequest(space, storage=tmp_path)

    assert prepare(asked(90)).memory == 0
    with pytest.raises(RequestError, match="this machine has"):
        prepare(asked(10**9))


def test_python_says_what_the_command_line_says() -> None:
    given = {"time_budget": "30m", "seed": np.int64(3), "data": "here", "tracking_uri": Path("x"), "trials": None}
    asked = request_of(Path("toy.yaml"), given)
    assert (asked.space, asked.time_budget, asked.data, asked.tracking_uri) == ("toy.yaml", 1800.0, Path("here"), "x")
    assert asked.seed == 3 and type(asked.seed) is int and asked.trials is None


def test_an_option_that_does_not_exist_is_refused() -> None:
    with pytest.raises(RequestError, match="trails: 3 is refused: there is no such option; known: trials, name"):
        request_of(None, {"trails": 3})

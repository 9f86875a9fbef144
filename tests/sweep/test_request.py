"""What a sweep is asked for in Python, where no command line has read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddray.errors import RequestError
from ddray.sweep import SweepRequest, prepare


@pytest.mark.parametrize(
    ("field", "value"), [("trials", 2.5), ("trials", True), ("trials", 0), ("max_concurrent", "2"), ("seed", 1.5)]
)
def test_what_is_no_whole_number_is_refused(tmp_path: Path, field: str, value: object) -> None:
    with pytest.raises(RequestError, match="a whole number") as refused:
        prepare(SweepRequest(storage=tmp_path / "sweeps", **{field: value}))  # type: ignore[arg-type]
    assert refused.value.key == f"--{field.replace('_', '-')}" and "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())

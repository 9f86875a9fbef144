"""What a sweep is asked for."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ddray.errors import RequestError, whole_number


@dataclass(frozen=True)
class SweepRequest:
    """What `ddray search` was asked for; the names are those of its flags.

    What is None is the space's own, or, with `resume`, what the sweep had before.
    """

    space: str | None = None
    trials: int | None = None
    name: str | None = None
    seed: int | None = None
    storage: str | Path = "sweeps"
    tracking_uri: str | None = None
    address: str | None = None
    cpus_per_trial: float | None = None
    gpus_per_trial: float | None = None
    max_concurrent: int | None = None
    time_budget: float | None = None  # seconds
    resume: bool = False
    assignments: Sequence[str] = ()
    data: Path | None = None

    @property
    def cluster(self) -> str | None:
        """The address of the Ray cluster, None for this machine."""
        return self.address or os.environ.get("RAY_ADDRESS") or None


def request_of(space: str | Path | None, options: Mapping[str, Any]) -> SweepRequest:
    """The request that Python's keywords make.

    Raises:
        RequestError: a keyword that is not a field of `SweepRequest`, or a value that can be none of its kind.

    """
    known = [field.name for field in fields(SweepRequest) if field.name != "space"]
    given = {key: value for key, value in options.items() if value is not None}
    for key, value in given.items():
        if key not in known:
            raise RequestError(key, value, f"there is no such option; known: {', '.join(known)}")
        if key in ("trials", "max_concurrent", "seed"):
            given[key] = whole_number(key, value)
        elif key == "data":
            given[key] = Path(value)
        elif key == "time_budget" and isinstance(value, str):
            given[key] = parse_duration(value)
        elif key in ("name", "tracking_uri", "address"):
            given[key] = str(value)
    return SweepRequest(None if space is None else str(space), **given)


def parse_duration(text: str) -> float:
    """Seconds of `90`, `90s`, `30m` or `1.5h`."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1.0)
    try:
        seconds = float(number) * unit
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise RequestError("--time-budget", text, "a positive time such as 90s, 30m or 1.5h")
    return seconds


def check_numbers(request: SweepRequest) -> None:
    """See that counts are whole numbers and times are times, which nobody has looked at yet where Python asks.

    Raises:
        RequestError: the first that is not.

    """
    for key, number, least in (
        ("--trials", request.trials, 1), ("--max-concurrent", request.max_concurrent, 1), ("--seed", request.seed, None),
    ):  # fmt: skip
        if number is not None:
            whole_number(key, number, least)
    if request.time_budget is not None and not 0 < request.time_budget < math.inf:
        raise RequestError("--time-budget", request.time_budget, "a positive time")

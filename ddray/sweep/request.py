"""What a sweep is asked for."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ddray.errors import RequestError


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


def check_numbers(request: SweepRequest) -> None:
    """See that counts are whole numbers and times are times, which nobody has looked at yet where Python asks.

    Raises:
        RequestError: the first that is not.

    """
    _check_whole("--trials", request.trials, 1)
    _check_whole("--max-concurrent", request.max_concurrent, 1)
    _check_whole("--seed", request.seed)
    if request.time_budget is not None and not 0 < request.time_budget < math.inf:
        raise RequestError("--time-budget", request.time_budget, "a positive time")


def _check_whole(key: str, number: object, least: float = -math.inf) -> None:
    if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < least):
        raise RequestError(key, number, "a whole number" + (f", at least {least}" if least > 0 else ""))

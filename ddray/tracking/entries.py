"""What is told to the record: plain values, decided by the study and the trials' files alone."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["running", "interrupted", "finished", "pruned", "diverged", "failed"]
End = Literal["finished", "interrupted", "failed"]


@dataclass(frozen=True)
class SweepEntry:
    """What the record says of a sweep.

    Attributes:
        directory: where it lies.
        space: its YAML text.
        digests: of the splits.
        formerly: where it lay before it was moved; empty if it was not.

    """

    name: str
    dataset: str
    arch: str
    source: str
    seed: int
    directory: str
    space: str
    digests: Mapping[str, str]
    formerly: str = ""


@dataclass(frozen=True)
class TrialEntry:
    """What the record says of a trial.

    Attributes:
        number: the trial's number in the study.
        status: how it goes, or how it ended; interrupted: neither, until the sweep is resumed.
        params: the whole configuration, dotted key to value.
        searched: the keys of `params` that were searched.
        curves: outer step to metrics, such as {"val_accuracy": 0.91, "loss": 0.3}; numbers not finite are left out.
        value: what the study was told, None if nothing.
        seconds: the cost so far.
        started, ended: unix seconds.
        note: how it ended, in words.

    """

    number: int
    status: Status
    params: Mapping[str, Any]
    searched: Collection[str]
    curves: Mapping[int, Mapping[str, float]]
    value: float | None
    seconds: float
    started: float
    ended: float | None = None
    note: str = ""


def as_text(value: object) -> str:
    """A parameter's value as the record shows it: text as it is, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, default=str)

"""What others see of a sweep: its runs in MLflow, the catalogue of the best sets, and pictures.

Each public name is imported when it is first used: MLflow takes seconds, and a catalogue that is not there needs none.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddray.tracking.catalog import Registered, best, fetch, leaderboard, register, resolve
    from ddray.tracking.entries import Status, SweepEntry, TrialEntry
    from ddray.tracking.figures import sweep_figures
    from ddray.tracking.recorder import Recorder
    from ddray.tracking.registry import Entry, model_name
    from ddray.tracking.store import default_tracking_uri

_HOMES = {
    "Entry": "registry",
    "Recorder": "recorder",
    "Registered": "catalog",
    "Status": "entries",
    "SweepEntry": "entries",
    "TrialEntry": "entries",
    "best": "catalog",
    "default_tracking_uri": "store",
    "fetch": "catalog",
    "leaderboard": "catalog",
    "model_name": "registry",
    "register": "catalog",
    "resolve": "catalog",
    "sweep_figures": "figures",
}

__all__ = [
    "Entry",
    "Recorder",
    "Registered",
    "Status",
    "SweepEntry",
    "TrialEntry",
    "best",
    "default_tracking_uri",
    "fetch",
    "leaderboard",
    "model_name",
    "register",
    "resolve",
    "sweep_figures",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ddray.tracking' has no attribute {name!r}")
    value = getattr(import_module(f"ddray.tracking.{_HOMES[name]}"), name)
    globals()[name] = value
    return value

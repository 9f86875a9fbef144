"""ddray: search, compare and keep distilled datasets.

Every public name is here; each is imported when it is first used, so that `import ddray` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddray.data import Dataset
    from ddray.distillation import DistillConfig, DistilledSet, Distiller, EngineConfig, Score, distill, load
    from ddray.errors import Diverged, MissingExtra, RequestError
    from ddray.sweep import search
    from ddray.tracking import best, leaderboard

_HOMES = {
    "Dataset": "ddray.data",
    "DistillConfig": "ddray.distillation",
    "DistilledSet": "ddray.distillation",
    "Distiller": "ddray.distillation",
    "Diverged": "ddray.errors",
    "EngineConfig": "ddray.distillation",
    "MissingExtra": "ddray.errors",
    "RequestError": "ddray.errors",
    "Score": "ddray.distillation",
    "best": "ddray.tracking",
    "distill": "ddray.distillation",
    "leaderboard": "ddray.tracking",
    "load": "ddray.distillation",
    "search": "ddray.sweep",
}

__all__ = [
    "Dataset",
    "DistillConfig",
    "DistilledSet",
    "Distiller",
    "Diverged",
    "EngineConfig",
    "MissingExtra",
    "RequestError",
    "Score",
    "best",
    "distill",
    "leaderboard",
    "load",
    "search",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ddray' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

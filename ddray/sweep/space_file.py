"""A search_spaces/*.yaml file as it is written: its parts, each within its own bounds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from ddray.distillation.config import EngineConfig, Number, Record

_LEAST_SHARE = 0.0001  # Ray counts in ten-thousandths


class AshaConfig(Record):
    """Asynchronous successive halving on outer steps."""

    grace_steps: Annotated[int, Number, Field(ge=1, le=10_000_000)]
    reduction_factor: Annotated[int, Number, Field(ge=2, le=100)] = 3


class SchedulerConfig(Record):
    """Which trials are stopped early."""

    asha: AshaConfig


def _counts(share: float) -> float:
    if 0 < share < _LEAST_SHARE:
        raise ValueError(f"0 or at least {_LEAST_SHARE}")
    return share


class Resources(Record):
    """What one trial occupies; `gpu` is the share of a card where there is one."""

    cpu: Annotated[float, Number, Field(ge=_LEAST_SHARE, le=100_000, allow_inf_nan=False)] = 1.0
    gpu: Annotated[float, Number, Field(ge=0, le=1000, allow_inf_nan=False), AfterValidator(_counts)] = 0.0


class SpaceFile(Record):
    """The file as it is written."""

    dataset: str
    arch: str
    fixed: dict[str, Any] = {}
    search: dict[str, Any] = {}
    constraints: tuple[str, ...] = ()
    objectives: Annotated[dict[Literal["val_accuracy"], Literal["max"]], Field(min_length=1)] = {"val_accuracy": "max"}
    trials: Annotated[int, Number, Field(ge=1, le=1_000_000)] = 32
    scheduler: SchedulerConfig | None = None
    resources: Resources = Resources()
    engine: EngineConfig = EngineConfig()

"""Limits on what a configuration costs, known before it runs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from ddray.data import Corpus, RealData
from ddray.distillation.config import DistillConfig
from ddray.errors import RequestError
from ddray.networks import outputs_for

_PATTERN = re.compile(r"\s*([a-z_]+)\s*<=\s*([-+.\deE_]+)\s*\Z")


@dataclass(frozen=True)
class Problem:
    """What the cost of a configuration depends on beside the configuration."""

    classes: int
    input_shape: tuple[int, ...]
    texts: Corpus | None = None  # of what length and dimension their examples are, the configuration decides

    @classmethod
    def of(cls, dataset: RealData) -> Problem:
        """What the costs of distilling a dataset depend on."""
        return cls(dataset.classes, dataset.input_shape, dataset if isinstance(dataset, Corpus) else None)

    def shape(self, config: DistillConfig) -> tuple[int, ...]:
        """The shape of one example as a configuration has it presented."""
        return self.input_shape if self.texts is None else self.texts.shape(config.data.text)


def stored_bytes(config: DistillConfig, problem: Problem) -> int:
    """Bytes of inputs, labels and rates in float32; a fixed network's weights and word vectors come on top."""
    sample = math.prod(problem.shape(config)) + outputs_for(problem.classes)
    return 4 * (config.stored_samples(problem.classes) * sample + config.inner_steps)


QUANTITIES: dict[str, Callable[[DistillConfig, Problem], int]] = {
    "stored_samples": lambda config, problem: config.stored_samples(problem.classes),
    "stored_bytes": stored_bytes,
    "inner_steps": lambda config, _: config.inner_steps,
}


@dataclass(frozen=True)
class Constraint:
    """`quantity <= bound`."""

    quantity: str
    bound: float

    def violation(self, config: DistillConfig, problem: Problem) -> float:
        """How far the configuration is above the bound, as a share of it; zero or less where it holds."""
        return (QUANTITIES[self.quantity](config, problem) - self.bound) / max(abs(self.bound), 1.0)


def parse_constraint(text: object) -> Constraint:
    """Read `NAME <= NUMBER`.

    Raises:
        RequestError: another form, an unknown quantity, or a bound that is not a finite number.

    """
    match = _PATTERN.match(text) if isinstance(text, str) else None
    allowed = f"NAME <= NUMBER with NAME one of {', '.join(QUANTITIES)}"
    if match is None or match[1] not in QUANTITIES:
        raise RequestError("constraints", text, allowed)
    try:
        bound = float(match[2])
    except ValueError:
        raise RequestError("constraints", text, allowed) from None
    if not math.isfinite(bound):
        raise RequestError("constraints", text, "a finite bound")
    return Constraint(match[1], bound)

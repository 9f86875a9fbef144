"""How small and how large the trials of a space can be."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import permutations
from typing import Any

from ddray.distillation.config import DistillConfig
from ddray.sweep.constraint import Problem, stored_bytes
from ddray.sweep.space import Parameter
from ddray.sweep.spec import SweepSpec

# What a constraint can be on grows with each of these: the sizes of a set, and those of its words.
_SIZES = ("synthetic.steps", "synthetic.epochs", "synthetic.samples_per_class", "synthetic.classes")
_WORDS = ("data.max_length", "data.embedding_dim")


def least(spec: SweepSpec) -> DistillConfig:
    """The configuration with every number at its lower end."""
    return spec.config({**spec.fixed, **{p.key: p.extremes()[0] for p in spec.parameters if p.kind != "choice"}})


def largest(spec: SweepSpec, problem: Problem) -> DistillConfig:
    """The configuration that takes the most memory, as far as that can be told from its sizes.

    Every number is at its upper end. Where constraints forbid that, the searched sizes begin at their least and are raised
    one after another as far as the constraints let them, in every order; of these, the one with the most samples in all
    inner steps that the gradient goes through counts, and of equals the one with the most steps. Under several constraints
    that need not be the very largest that a suggestion may come to.
    """
    numbers = {p.key: p.extremes()[-1] for p in spec.parameters if p.kind != "choice" and p.key not in _SIZES + _WORDS}
    base = {**spec.fixed, **numbers}
    steps = {p.key: _ascending(spec, p, base, problem) for p in spec.parameters if p.key in _SIZES + _WORDS}
    base |= {key: values[0] for key, values in steps.items()}
    orders = permutations(key for key in steps if key in _SIZES)
    words = [key for key in steps if key in _WORDS]
    found = [_raised(spec, base, {key: steps[key] for key in (*order, *words)}, problem) for order in orders]
    return max(found, key=lambda config: _weight(config, problem))


def _ascending(spec: SweepSpec, parameter: Parameter, base: dict[str, Any], problem: Problem) -> Sequence[Any]:
    """The values of a size, the one that stores the least first."""
    if parameter.kind == "int":
        return range(int(parameter.low), int(parameter.high) + 1)
    return sorted(
        parameter.extremes(), key=lambda value: stored_bytes(spec.config({**base, parameter.key: value}), problem)
    )


def _raised(spec: SweepSpec, base: dict[str, Any], steps: dict[str, Sequence[Any]], problem: Problem) -> DistillConfig:
    values = dict(base)
    for key, sizes in steps.items():

        def breaks(size: Any, key: str = key) -> bool:
            config = spec.config({**values, key: size})
            return any(constraint.violation(config, problem) > 0 for constraint in spec.constraints)

        values[key] = sizes[max(bisect_left(sizes, True, key=breaks) - 1, 0)]
    return spec.config(values)


def _weight(config: DistillConfig, problem: Problem) -> tuple[int, int]:
    samples = len(config.class_ids(problem.classes)) * config.synthetic.samples_per_class
    return config.seen_steps * samples, config.seen_steps

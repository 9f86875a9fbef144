"""How small and how large the trials of a space can be."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from typing import Any

from ddray.distillation.config import DistillConfig
from ddray.distillation.inner import CARRIES
from ddray.sweep.constraint import Problem, stored_bytes
from ddray.sweep.space import Parameter
from ddray.sweep.spec import SweepSpec

# What a constraint can be on grows with each of these: the sizes of a set, and those of its words.
_SIZES = ("synthetic.steps", "synthetic.epochs", "synthetic.samples_per_class", "synthetic.classes")
_WORDS = ("data.max_length", "data.embedding_dim")
# And what these bound shrinks: without them, the gradient goes through all inner steps.
_WINDOWS = ("outer.window", "outer.unroll_steps")


def least(spec: SweepSpec) -> DistillConfig:
    """The configuration with every number at its lower end."""
    return spec.config({**spec.fixed, **_ends(spec.parameters, min)})


def largest(spec: SweepSpec, problem: Problem) -> DistillConfig:
    """The configuration that takes the most memory, as far as that can be told from its sizes.

    Every number is at its upper end. Where constraints forbid that, the searched sizes begin at their least and are raised
    one after another as far as the constraints let them, in every order; of these, the one with the most samples in all
    inner steps that the gradient goes through counts, and of equals the one with the most steps. Under several constraints
    that need not be the very largest that a suggestion may come to.
    """
    sizes = [p for p in spec.parameters if p.key in _SIZES + _WORDS]
    base = {**spec.fixed, **_ends([p for p in spec.parameters if p not in sizes], max)}
    steps = {p.key: _ascending(spec, p, base, problem) for p in sizes}
    base |= {key: values[0] for key, values in steps.items()}
    orders = permutations(key for key in steps if key in _SIZES)
    words = [key for key in steps if key in _WORDS]
    found = [_raised(spec, base, {key: steps[key] for key in (*order, *words)}, problem) for order in orders]
    return max(found, key=lambda config: _weight(config, problem))


def _ends(parameters: Sequence[Parameter], end: Callable[..., Any]) -> dict[str, Any]:
    """Each parameter at one end, `min` or `max`; of choices that have none, the one that others depend on, or the first."""
    depended_on = {key: value for parameter in parameters for key, value in parameter.when.items()}
    return {
        parameter.key: _end(parameter, end, depended_on)
        for parameter in parameters
        if not (parameter.key in _WINDOWS and parameter.when)  # there are trials without it, whose memory is larger
    }


def _end(parameter: Parameter, end: Callable[..., Any], depended_on: Mapping[str, Any]) -> Any:
    numbers = [value for value in parameter.extremes() if isinstance(value, int | float) and not isinstance(value, bool)]
    if parameter.key == "inner.optimiser":
        return end(parameter.choices, key=lambda name: CARRIES[name])
    if parameter.key in _WINDOWS and end is max and None in parameter.choices:
        return None
    if numbers:
        return end(numbers)
    return depended_on.get(parameter.key, parameter.choices[0])


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

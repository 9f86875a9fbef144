"""The searched parameters: what a search space says of each, and how Optuna is asked for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ddray.errors import RequestError

if TYPE_CHECKING:
    import optuna

Kind = Literal["int", "float", "choice"]
_HUGE = 1e15  # whole numbers far beyond it look alike to float64


@dataclass(frozen=True)
class Parameter:
    """One searched key: a range of numbers, both ends included, or a list of choices; and when it applies.

    Attributes:
        when: key -> value; the parameter is asked for only where all these keys have these values.

    """

    key: str
    kind: Kind
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[Any, ...] = ()
    when: Mapping[str, Any] = field(default_factory=dict)

    def suggest(self, trial: optuna.Trial) -> Any:
        """A value of the trial; the one it already has, if it was asked before."""
        if self.kind == "int":
            return trial.suggest_int(self.key, int(self.low), int(self.high), log=self.log)
        if self.kind == "float":
            return trial.suggest_float(self.key, self.low, self.high, log=self.log)
        categories = {category(choice): choice for choice in self.choices}
        return categories[trial.suggest_categorical(self.key, list(categories))]

    def extremes(self) -> tuple[Any, ...]:
        """The values to check a space by: both ends of a range, or every choice."""
        if self.kind == "choice":
            return self.choices
        return (int(self.low), int(self.high)) if self.kind == "int" else (self.low, self.high)


def category(choice: Any) -> bool | int | float | str | None:
    """A choice as Optuna stores it: lists and mappings as JSON text, anything else as it is."""
    return choice if choice is None or isinstance(choice, bool | int | float | str) else json.dumps(choice)


def suggest(parameters: tuple[Parameter, ...], fixed: Mapping[str, Any], trial: optuna.Trial) -> dict[str, Any]:
    """All values of a trial, fixed ones included; a parameter whose condition does not hold is left out."""
    values = dict(fixed)
    for parameter in parameters:
        if all(key in values and values[key] == wanted for key, wanted in parameter.when.items()):
            values[parameter.key] = parameter.suggest(trial)
    return values


def parse_search(search: Mapping[str, Any], fixed: Mapping[str, Any]) -> tuple[Parameter, ...]:
    """Read the `search` part of a space; parameters come back in an order in which conditions are known in time.

    Raises:
        RequestError: a range that is empty, reversed or (with log) not positive; a number that is not finite; an empty list
            of choices; a condition on an unknown key, or one that can never hold.

    """
    parameters = {key: _parse(key, rule) for key, rule in search.items()}
    for parameter in parameters.values():
        _check_conditions(parameter, parameters, fixed)
    return tuple(_in_order(parameters))


def _parse(key: str, rule: Any) -> Parameter:
    name = f"search.{key}"
    shape = (
        "{int: [LOW, HIGH]}, {float: [LOW, HIGH]} or {choice: [...]}, with log: true and when: {KEY: VALUE} beside it"
    )
    if not isinstance(rule, Mapping):
        raise RequestError(name, rule, shape)
    kinds = [kind for kind in ("int", "float", "choice") if kind in rule]
    unknown = set(rule) - {"int", "float", "choice", "log", "when"}
    if len(kinds) != 1 or unknown:
        raise RequestError(name, dict(rule), shape)
    when, log = rule.get("when", {}), rule.get("log", False)
    if not isinstance(when, Mapping) or not isinstance(log, bool):
        raise RequestError(name, dict(rule), shape)
    if kinds[0] == "choice":
        choices = rule["choice"]
        if not isinstance(choices, list) or not choices or log:
            raise RequestError(name, rule["choice"], "a list of at least one choice, without log")
        if len({category(choice) for choice in choices}) != len(choices):
            raise RequestError(name, choices, "choices that differ from each other")
        return Parameter(key, "choice", choices=tuple(choices), when=dict(when))
    low, high = _range(name, rule[kinds[0]], integers=kinds[0] == "int", log=log)
    return Parameter(key, "int" if kinds[0] == "int" else "float", low, high, log, when=dict(when))


def _range(name: str, ends: Any, *, integers: bool, log: bool) -> tuple[float, float]:
    number = (int,) if integers else (int, float)
    if (
        not isinstance(ends, list)
        or len(ends) != 2
        or any(not isinstance(e, number) or isinstance(e, bool) for e in ends)
    ):
        raise RequestError(name, ends, f"two {'whole numbers' if integers else 'numbers'}, [LOW, HIGH]")
    low, high = ends
    if not -_HUGE <= low <= _HUGE or not -_HUGE <= high <= _HUGE:  # NaN is neither
        raise RequestError(name, ends, f"numbers between -{_HUGE:g} and {_HUGE:g}")
    if low >= high:
        raise RequestError(name, ends, "LOW below HIGH (a single value belongs under fixed)")
    if log and low <= 0:
        raise RequestError(name, ends, "positive numbers where log is true")
    return low, high


def _check_conditions(parameter: Parameter, parameters: Mapping[str, Parameter], fixed: Mapping[str, Any]) -> None:
    for key, wanted in parameter.when.items():
        name = f"search.{parameter.key}.when"
        parent = parameters.get(key)
        if parent is None and key not in fixed:
            raise RequestError(name, key, "a key that the space searches or fixes")
        if parent is not None and parent.kind != "choice":
            raise RequestError(name, key, "a condition is on a key with choices")
        possible = parent.choices if parent is not None else (fixed[key],)
        if wanted not in possible:
            raise RequestError(name, wanted, f"{key} is only ever one of {list(possible)}")


def _in_order(parameters: Mapping[str, Parameter]) -> list[Parameter]:
    ordered: dict[str, Parameter] = {}
    while len(ordered) < len(parameters):
        ready = [
            p
            for k, p in parameters.items()
            if k not in ordered and all(c in ordered or c not in parameters for c in p.when)
        ]
        if not ready:
            raise RequestError(
                "search", sorted(set(parameters) - set(ordered)), "conditions that do not go in a circle"
            )
        ordered |= {p.key: p for p in ready}
    return list(ordered.values())

"""Every setting as a user sees it: its dotted key, its default, what is allowed, and what it is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ddray.distillation.config import DistillConfig, EngineConfig
from ddray.errors import RequestError

GROUPS: Mapping[str, type[BaseModel]] = {
    **{name: type(record) for name, record in DistillConfig()},
    "engine": EngineConfig,
}
_NUMBERS = {int: "whole number", float: "number"}
_LIMITS = ("ge", "gt", "le", "lt", "pattern")
_OTHERS = {bool: "true or false", str: "text", NoneType: "null"}


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        key: the dotted key.
        default: its value where none is given, as JSON has it.
        allowed: choices or a range, in words.
        description: what it is.

    """

    key: str
    default: Any
    allowed: str
    description: str

    @property
    def default_text(self) -> str:
        """The default as `--set` takes it."""
        return self.default if isinstance(self.default, str) else json.dumps(self.default)


def list_settings(group: str | None = None) -> list[Setting]:
    """The settings of a group, or of all groups.

    Raises:
        RequestError: there is no such group.

    """
    if group is not None and group not in GROUPS:
        raise RequestError("GROUP", group, f"one of {', '.join(GROUPS)}")
    return [row for name in (GROUPS if group is None else [group]) for row in _rows(name)]


def _rows(group: str) -> Iterator[Setting]:
    model = GROUPS[group]
    defaults = model().model_dump(mode="json")
    for name, field in model.model_fields.items():
        allowed = _allowed(field.annotation, field.metadata)
        yield Setting(f"{group}.{name}", defaults[name], allowed, field.description or "")


def _allowed(kind: Any, constraints: Sequence[Any]) -> str:
    """What a value of a type may be, in words.

    Args:
        kind: the type, as a field is annotated with it.
        constraints: what pydantic knows beside it.

    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _allowed(parts[0], [*constraints, *_constraints(parts[1:])])
    if origin in (Union, UnionType):
        return _either([_allowed(part, constraints) for part in parts])
    if origin is Literal:
        return ", ".join(map(str, parts))
    if origin is tuple:
        return f"list of {_NUMBERS[parts[0]]}s"
    if origin is dict:
        return "keys with values"
    limits = {name: limit for c in constraints for name in _LIMITS if (limit := getattr(c, name, None)) is not None}
    if kind in _NUMBERS:
        return ", ".join([_NUMBERS[kind], *_range(limits)])
    if "pattern" in limits:
        return _either(_forms(limits["pattern"]))
    return _OTHERS[kind]


def _constraints(annotations: Sequence[Any]) -> Iterator[Any]:
    for annotation in annotations:
        yield from annotation.metadata if isinstance(annotation, FieldInfo) else [annotation]


def _range(limits: Mapping[str, float]) -> list[str]:
    told = {name: f"{limit:,.12g}" for name, limit in limits.items()}
    if "ge" in told and "le" in told:
        return [f"{told['ge']} to {told['le']}"]
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return [f"{word} {told[name]}" for name, word in words.items() if name in told]


def _forms(pattern: str) -> list[str]:
    """The alternatives of `^(auto|plain|[BP]+)$`, in words."""
    return [re.sub(r"\[([\w/]+)\]\+", r"a word of \1", form) for form in pattern.strip("^()$").split("|")]


def _either(parts: Sequence[str]) -> str:
    return f"{', '.join(parts[:-1])}, or {parts[-1]}"

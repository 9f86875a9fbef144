"""Settings as users write them: dotted keys and texts of values, turned into records, or refused in one line."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ddray.errors import RequestError

M = TypeVar("M", bound=BaseModel)


def parse(model: type[M], values: Mapping[str, Any], prefix: str = "") -> M:
    """Validate `values` as `model`, turning the first complaint into a one-line RequestError under its dotted key."""
    try:
        return model.model_validate(values)
    except ValidationError as invalid:
        error = invalid.errors(include_url=False)[0]
        key = prefix + ".".join(str(part) for part in error["loc"] if part != "[key]")
        value = None if error["type"] == "missing" else error["input"]
        raise RequestError(key or model.__name__, value, _allowed(error, model)) from None


def _allowed(error: Any, model: type[BaseModel]) -> str:
    """What pydantic would have taken, in our words where its own are of its types."""
    limits = error.get("ctx", {})
    if isinstance(error["input"], float) and not math.isfinite(error["input"]):
        return "a finite number"
    match error["type"]:
        case "extra_forbidden":
            return f"there is no such key; known here: {', '.join(sorted(model.model_fields))}"
        case "missing":
            return "it has to be given"
        case "literal_error":
            return f"one of {limits['expected']}"
        case "tuple_type" | "list_type":
            return "a list"
        case "dict_type" | "mapping_type" | "model_type" | "model_attributes_type":
            return "keys with values"
        case "greater_than":
            return f"a number above {limits['gt']:g}"
        case "greater_than_equal":
            return f"at least {limits['ge']:g}"
        case "less_than":
            return f"a number below {limits['lt']:g}"
        case "less_than_equal":
            return f"at most {limits['le']:g}"
        case "bool_type" | "bool_parsing":
            return "true or false"
        case "string_pattern_mismatch":
            return f"text of the form {limits['pattern'].strip('^$()').replace('|', ', ')}"
        case "string_type":
            return "a text"
        case "int_type" | "int_from_float" | "int_parsing":
            return "a whole number"
        case "float_type" | "float_parsing":
            return "a number"
    return str(error["msg"]).removeprefix("Value error, ")


def nest(values: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """Dotted keys of `model` as nested dictionaries; an unknown key is a RequestError that lists its neighbours."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        group, _, name = key.partition(".")
        record = _records(model).get(group)
        if record is None:
            raise RequestError(key, value, f"there is no such key; groups: {', '.join(_records(model))}")
        known = record.model_fields
        head, _, rest = name.partition(".")
        if head not in known or (rest and head != "args"):
            raise RequestError(key, value, f"there is no such key; known: {', '.join(f'{group}.{k}' for k in known)}")
        fields = nested.setdefault(group, {})
        if rest:
            inner = fields.setdefault(head, {})
            if not isinstance(inner, dict):
                raise RequestError(f"{group}.{head}", inner, "a mapping of arguments")
            fields[head] = {**inner, rest: value}
        else:
            fields[head] = {**value, **fields.get(head, {})} if isinstance(value, dict) else value
    return nested


def flatten(record: BaseModel) -> dict[str, Any]:
    """The fields of a record of records under dotted keys."""
    return {
        f"{group}.{key}": value
        for group, fields in record.model_dump(mode="json").items()
        for key, value in fields.items()
    }


def parse_assignment(text: str) -> tuple[str, Any]:
    """One `KEY=VALUE` of a command line; VALUE is JSON, Python's True, False, None, .5 or 5., else a string."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RequestError("--set", text, "KEY=VALUE, for example synthetic.steps=1")
    key, value = key.strip(), value.strip()
    if value in _PYTHON_WORDS:
        return key, _PYTHON_WORDS[value]
    try:
        return key, json.loads(value)
    except (ValueError, RecursionError):  # not JSON, or numbers and brackets beyond what Python reads
        return key, float(value) if _BARE_POINT.fullmatch(value) else value


def split_engine(assignments: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`KEY=VALUE` assignments as settings of a distillation, and those of `engine.…` under their own names."""
    values = dict(map(parse_assignment, assignments))
    engine = {key: value for key, value in values.items() if key.startswith("engine.")}
    settings = {key: value for key, value in values.items() if key not in engine}
    return settings, {key.removeprefix("engine."): value for key, value in engine.items()}


_BARE_POINT = re.compile(r"[-+]?(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII)  # no JSON
_PYTHON_WORDS = {"True": True, "False": False, "None": None}


def _records(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    return {
        name: field.annotation
        for name, field in model.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }

"""A search space's text: YAML, read strictly."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from ddray.errors import RequestError


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """The mapping in a space file's text; `source` names the file.

    Raises:
        RequestError: not YAML, with line and column; a key that stands twice; or not a mapping of plain values.

    """
    try:
        content = yaml.load(text, _Loader)
        json.dumps(content)  # dates, sets and loops are YAML as well
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise RequestError("space", source, f"it is not YAML: {where}{error.problem}") from None
    except yaml.reader.ReaderError as error:
        where = f"line {text.count(chr(10), 0, error.position) + 1}"
        raise RequestError("space", source, f"it is not YAML: {where}: {error.reason}") from None
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        # PyYAML lets what fails inside a value through as it is: a 13th month, a number of 5,000 digits.
        raise RequestError("space", source, f"numbers, words, lists and mappings only: {error}") from None
    if not isinstance(content, dict):
        raise RequestError("space", source, "a mapping with dataset, arch, fixed, search, …")
    return content


class _Loader(yaml.SafeLoader):
    """YAML as a search space needs it: 1e-3 is a number, and a key that stands twice is refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


# YAML 1.1, which PyYAML reads, takes 1e-3 for a word because it has no dot, and 1.5e3 because its exponent has no sign.
_POWER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+\Z")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _POWER, list("-+.0123456789"))

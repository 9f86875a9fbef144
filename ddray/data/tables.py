"""A user's own texts, with a label each, from a table: how it is named, and how it is read."""

from __future__ import annotations

import codecs
import csv
import importlib
import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

from ddray.data.sentences import Sentences, collected, decoded, file_content
from ddray.errors import MissingExtra, RequestError

_KEY = "dataset file"
_PREFIX = "csv:"
_FORM = "csv:PATH?text=COLUMN&label=COLUMN[&test=PATH][&encoding=NAME]"
_REQUIRED = ("text", "label")
_OPTIONAL = ("test", "encoding")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
# Python decodes these too, but they write names of hosts and literals of programs, not files.
_NOT_OF_FILES = ("idna", "punycode", "unicode-escape", "raw-unicode-escape")
_PARQUET = ".parquet"


@dataclass(frozen=True)
class Source:
    """Where a user's own texts are: a table, two of its columns, and the table of the test split if it has its own."""

    path: Path
    text: str
    label: str
    test: Path | None = None
    encoding: str = "utf-8"


def parse_source(name: str) -> Source:
    """What a dataset's name asks for that has the form `csv:PATH?text=COLUMN&label=COLUMN[&test=PATH][&encoding=NAME]`.

    Percent-escapes stand for the bytes of UTF-8, so that any path or column can be named: `%3F` for a question mark in
    the path; behind it, `%26` for `&`, `%2B` for `+`, and `+` for a space.

    Raises:
        RequestError: another form, a key that is unknown, missing, empty or given twice, or the same column twice.

    """
    given, mark, query = name.removeprefix(_PREFIX).partition("?")
    if not name.startswith(_PREFIX) or not given or not mark:
        raise RequestError("dataset", name, f"the form {_FORM}")
    try:
        path = unquote(given, errors="strict")
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True, errors="strict")
    except ValueError:
        raise RequestError("dataset", name, f"the form {_FORM}, with % escapes of UTF-8") from None
    options = dict(pairs)
    _check_options(name, options, len(pairs))
    test = Path(options["test"]) if "test" in options else None
    return Source(Path(path), options["text"], options["label"], test, options.get("encoding", "utf-8"))


def read_table(path: Path, text: str, label: str, encoding: str = "utf-8") -> Sentences:
    """The texts and labels in two columns of a table.

    Args:
        path: of a `.csv` or `.tsv` file with a line of column names, `.gz` or not, or of a `.parquet` file.
        text: the name of the column of texts.
        label: the name of the column of labels: words, taken as they are written, or whole numbers.
        encoding: of the characters in a `.csv` or `.tsv` file; a byte order mark is no part of the first name.

    Raises:
        RequestError: a file that is not there, damaged or in another encoding, columns that are not there, a row with
            too few or too many fields, an empty text or label, no rows, or one label throughout; it names the file
            and, where there is one, the line (of a `.parquet` file, the row), both counted from 1.
        MissingExtra: a `.parquet` file without pyarrow.

    """
    kind = Path(path.name.lower().removesuffix(".gz")).suffix
    if path.suffix.lower() == _PARQUET:
        return collected(_parquet_rows(path, text, label), str(path), "row")
    if kind not in _DELIMITERS:
        raise RequestError(_KEY, str(path), "a .csv, .csv.gz, .tsv, .tsv.gz or .parquet file")
    if not _is_encoding(encoding):
        allowed = f"the name of a text encoding, such as utf-8 or latin-1, for {path}"
        raise RequestError("encoding", encoding, allowed)
    content = decoded(file_content(path), str(path), encoding, "; say &encoding=…")
    return collected(_delimited_rows(content, _DELIMITERS[kind], str(path), text, label), str(path), "line")


def _check_options(name: str, options: dict[str, str], given: int) -> None:
    lacking = [key for key in _REQUIRED if key not in options]
    unknown = sorted(set(options) - {*_REQUIRED, *_OPTIONAL})
    empty = [key for key, value in options.items() if not value]
    if lacking or unknown or empty:
        raise RequestError("dataset", name, f"the form {_FORM}; lacking: {lacking}, unknown: {unknown}, empty: {empty}")
    if given > len(options):
        raise RequestError("dataset", name, f"the form {_FORM}, each key once")
    if options["text"] == options["label"]:
        raise RequestError("dataset", name, f"the form {_FORM}, with two different columns")


def _is_encoding(name: str) -> bool:
    try:
        # Of no bytes at all, decode() does not look the name up.
        b"a".decode(name)
    except UnicodeDecodeError:  # one byte is less than a character
        pass
    except (LookupError, ValueError):
        return False
    return codecs.lookup(name).name not in _NOT_OF_FILES


def _columns(names: Sequence[str], source: str, text: str, label: str) -> tuple[int, int]:
    for column in (text, label):
        if column not in names:
            raise RequestError(_KEY, source, f"a column {column!r}: its columns are {', '.join(map(repr, names))}")
        if names.count(column) > 1:
            raise RequestError(_KEY, source, f"one column {column!r}: it has {names.count(column)}")
    return names.index(text), names.index(label)


def _delimited_rows(content: str, delimiter: str, source: str, text: str, label: str) -> Iterator[tuple[int, str, str]]:
    rows = _numbered_rows(content, delimiter, source)
    line, names = next(rows, (1, []))
    if not names:
        raise RequestError(_KEY, source, "a line of column names: it is empty")
    places = _columns(names, source, text, label)
    for line, row in rows:
        if len(row) != len(names):
            allowed = f"{len(names)} fields in every row, as in the first: the row at line {line} has {len(row)}"
            raise RequestError(_KEY, source, allowed)
        yield line, row[places[0]], row[places[1]]


def _numbered_rows(content: str, delimiter: str, source: str) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not blank, and the line each begins at."""
    # Strict, so that a quote that is never closed is refused rather than taking the rest of the file for one text.
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        # The limit is the process's own, and what is done between two rows is not ours.
        limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise RequestError(_KEY, source, f"rows that can be told apart: at line {line}, {error}") from None
        finally:
            csv.field_size_limit(limit)
        if row is None:
            return
        if row:
            yield line, row


def _parquet_rows(path: Path, text: str, label: str) -> Iterator[tuple[int, str, str]]:
    for number, values in enumerate(zip(*_parquet_columns(path, text, label), strict=True), 1):
        for column, value in zip((text, label), values, strict=True):
            if value is None:
                raise RequestError(_KEY, str(path), f"a value in every row: {column!r} of row {number} has none")
            if "\0" in str(value):
                raise RequestError(_KEY, str(path), f"text: {column!r} of row {number} has a NUL in it")
        yield number, str(values[0]), str(values[1])


def _parquet_columns(path: Path, text: str, label: str) -> list[list[Any]]:
    try:
        # By name, since pyarrow comes without types.
        arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise MissingExtra("pyarrow", f"reading {path}") from error
    try:
        with path.open("rb") as stream, parquet.ParquetFile(stream) as file:
            names = file.schema_arrow.names
            places = _columns(names, str(path), text, label)
            types = [_value_type(arrow, file.schema_arrow.field(place).type) for place in places]
            if not arrow.types.is_string(types[0]) or not (arrow.types.is_string(types[1]) or _whole(arrow, types[1])):
                allowed = f"a column of strings and one of strings or whole numbers: they are {types[0]} and {types[1]}"
                raise RequestError(_KEY, str(path), allowed)
            table = file.read(columns=[text, label])
            return [table.column(column).to_pylist() for column in (text, label)]
    except RequestError:
        raise
    except (OSError, ValueError, MemoryError, arrow.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise RequestError(_KEY, str(path), f"a .parquet file that can be read: {reason}") from None


def _value_type(arrow: Any, kind: Any) -> Any:
    """The type of a column's values, whether they are written out or numbered (as pandas' categories are)."""
    kind = kind.value_type if arrow.types.is_dictionary(kind) else kind
    other_strings = (arrow.types.is_large_string(kind), getattr(arrow.types, "is_string_view", lambda _: False)(kind))
    return arrow.string() if any(other_strings) else kind


def _whole(arrow: Any, kind: Any) -> bool:
    return bool(arrow.types.is_integer(kind) or arrow.types.is_boolean(kind))

"""Texts and labels from a user's own tables, and the names of these."""

from __future__ import annotations

import csv
import gzip
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ddray.data.sentences import Sentences
from ddray.data.tables import Source, parse_source, read_table
from ddray.errors import MissingExtra, RequestError

TWO = Sentences(("good film", "a bad one"), ("pos", "neg"))
# What UTF-8 can write, without the NUL that no text has.
characters = st.characters(codec="utf-8", exclude_characters="\0")
fields = st.text(characters, min_size=1).filter(str.strip)
kinds = st.sampled_from([".csv", ".tsv", ".csv.gz", ".tsv.gz", ".CSV"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples of a property, each of which writes its file anew."""
    return tmp_path_factory.mktemp("tables")


def written(path: Path, rows: Sequence[Sequence[str]], encoding: str = "utf-8") -> Path:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter="\t" if ".tsv" in path.name else ",").writerows(rows)
    return packed(path, buffer.getvalue().encode(encoding))


def packed(path: Path, data: bytes) -> Path:
    path.write_bytes(gzip.compress(data, 1) if path.suffix == ".gz" else data)
    return path


def refusal(path: Path, **options: str) -> str:
    with pytest.raises(RequestError) as refused:
        read_table(path, **{"text": "text", "label": "label"} | options)
    message = str(refused.value)
    assert "\n" not in message
    return message


@given(
    kinds, st.lists(st.tuples(fields, fields, st.text(characters)), min_size=2, max_size=8), st.permutations([0, 1, 2])
)
def test_a_table_comes_back(folder: Path, kind: str, rows: list[tuple[str, str, str]], order: list[int]) -> None:
    assume(len({label for _, label, _ in rows}) > 1)
    table = [("the text", "its \u00e9 label", "id"), *rows]
    path = written(folder / f"table{kind}", [[row[place] for place in order] for row in table])
    texts, labels = tuple(row[0] for row in rows), tuple(row[1] for row in rows)
    assert read_table(path, "the text", "its \u00e9 label") == Sentences(texts, labels)


@given(
    st.sampled_from([".csv", ".tsv", ".csv.gz", ".parquet"]),
    st.binary(max_size=80),
    st.sampled_from([b"", b"text,label\n"]),
)
def test_alien_bytes_are_read_or_refused(folder: Path, kind: str, alien: bytes, head: bytes) -> None:
    path = packed(folder / f"alien{kind}", head + alien)
    try:
        read_table(path, "text", "label")
    except RequestError as refused:
        assert str(path) in str(refused) and "\n" not in str(refused)


@given(st.data(), st.sampled_from(["t.csv.gz", "t.parquet"]))
def test_damaged_is_read_or_refused(folder: Path, data: st.DataObject, name: str) -> None:
    path = folder / name
    if name.endswith(".parquet"):
        pq.write_table(pa.table({"text": TWO.texts, "label": TWO.labels}), path)
    else:
        written(path, [("text", "label"), *zip(TWO.texts, TWO.labels, strict=True)])
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(RequestError, match=name):
        read_table(path, "text", "label")


@given(
    st.text(max_size=20)
    | st.sampled_from(["utf-8", "UTF_16", "latin-1", "hex", "rot13", "idna", "cp1252", "utf-7", ""])
)
def test_any_name_of_an_encoding_is_known_or_refused(folder: Path, name: str) -> None:
    path = packed(folder / "encoded.csv", "text,label\né,1\nb,2\n".encode())
    try:
        read_table(path, "text", "label", name)
    except RequestError as refused:
        assert "\n" not in str(refused)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-8-sig", "utf-8"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    path = written(tmp_path / "t.csv", [("text", "label"), ("déjà", "1"), ("vu", "2")], encoding)
    assert read_table(path, "text", "label", encoding).texts == ("déjà", "vu")


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    path = packed(tmp_path / "t.csv", "\ufefftext,label\r\na,1\r\nb,2\r\n".encode())
    assert read_table(path, "text", "label") == Sentences(("a", "b"), ("1", "2"))


def test_a_long_field_is_read_and_the_process_keeps_its_limit(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    path = written(tmp_path / "t.csv", [("text", "label"), ("x" * 300_000, "1"), ("b", "2")])
    assert len(read_table(path, "text", "label").texts[0]) == 300_000 and csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"text,label\n", "it has none"),
        (b"text,label\n\n\n", "it has none"),
        (b"words,label,id\na,1,2\n", "its columns are 'words', 'label', 'id'"),
        (b"text,text,label\na,b,1\n", "it has 2"),
        (b'text,label\n"a\nb",1\n  ,2\n', "text .* line 4 is empty"),
        (b"text,label\na,1\nb,\t\n", "label .* line 3 is empty"),
        (b"text,label\na,1\nb,1\n", "every label is '1'"),
        (b"text,label\na,1\nb\n", "the row at line 3 has 1"),
        (b"text,label\n\na,1\nb,2,3\n", "the row at line 4 has 3"),
        (b'text,label\na,1\n"b,2\nc,3\n', "at line 3, unexpected end of data"),
        (b'text,label\na,1\n"b"b,2\nc,3\n', "at line 3"),
        (b"text,label\na,1\nb\xe9,2\n", "line 3 is not utf-8; say &encoding="),
        (b"text,label\r\na,1\rb\xff,2\r", "line 3 is not utf-8"),
        (b"text,label\na,1\nb\0,2\n", "line 3 has a NUL"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, content: bytes, reason: str, suffix: str) -> None:
    path = packed(tmp_path / f"t.csv{suffix}", content)
    with pytest.raises(RequestError, match=reason) as refused:
        read_table(path, "text", "label")
    assert str(path) in str(refused.value)


def test_half_a_character_is_no_text(tmp_path: Path) -> None:
    path = packed(tmp_path / "t.csv", b"text,label\na,1\nb+2AA-,2\n")
    assert "line 3 has half a character, as utf-7 reads it" in refusal(path, encoding="utf-7")


def test_the_line_of_wrong_bytes_in_wide_characters(tmp_path: Path) -> None:
    path = packed(tmp_path / "t.csv", "text,label\na,1\nb".encode("utf-16") + b"\x00\xdc,2")
    assert "line 3 is not utf-16" in refusal(path, encoding="utf-16")


@pytest.mark.parametrize(
    "encoding", ["utf-9", "hex", "undefined", "IDNA", "unicode_escape", "raw_unicode_escape", "a\0b", "\ud800"]
)
def test_an_encoding_that_there_is_not(tmp_path: Path, encoding: str) -> None:
    assert "encoding: " in refusal(written(tmp_path / "t.csv", [("text", "label")]), encoding=encoding)


@pytest.mark.parametrize("name", ["nowhere.csv", "nowhere.csv.gz", "nowhere.parquet", "nul\0.csv", "nul\0.parquet"])
def test_a_file_that_is_not_there(tmp_path: Path, name: str) -> None:
    assert "can be read" in refusal(tmp_path / name)


@pytest.mark.parametrize("name", ["t.txt", "t", "t.csv.zip", "t.parquet.gz", ".gz"])
def test_another_kind_of_file(name: str) -> None:
    assert "a .csv, .csv.gz, .tsv, .tsv.gz or .parquet file" in refusal(Path(name))


def test_a_damaged_gzip(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv.gz", [("text", "label"), ("a", "1"), ("b", "2")])
    path.write_bytes(path.read_bytes()[:-5])
    assert "can be read" in refusal(path)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (pa.array([3, -1]), ("3", "-1")),
        (pa.array([True, False]), ("True", "False")),
        (pa.array(["a", "b"], pa.large_string()), ("a", "b")),
        (pa.array(["a", "b"]).dictionary_encode(), ("a", "b")),
    ],
)
def test_parquet_labels(tmp_path: Path, labels: Any, expected: tuple[str, ...]) -> None:
    path = tmp_path / "label=x" / "t.parquet"  # a folder's name is no column
    path.parent.mkdir()
    pq.write_table(pa.table({"label": labels, "id": [1, 2], "the.text": TWO.texts}), path)
    assert read_table(path, "the.text", "label") == Sentences(TWO.texts, expected)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"text": ["a", "b"], "class": [1, 2]}, "its columns are 'text', 'class'"),
        ({"text": ["a", "b"], "label": [0.5, 1.0]}, "they are string and double"),
        ({"text": [1, 2], "label": [1, 2]}, "they are int64 and int64"),
        ({"text": ["a", "b"], "label": [1, None]}, "'label' of row 2 has none"),
        ({"text": ["a", "\t"], "label": [1, 2]}, "row 2 is empty"),
        ({"text": ["a\0", "b"], "label": [1, 2]}, "row 1 has a NUL"),
        ({"text": ["a", "b"], "label": [1, 1]}, "every label is '1'"),
        ({"text": pa.array([], pa.string()), "label": pa.array([], pa.string())}, "it has none"),
    ],
)
def test_parquet_refused(tmp_path: Path, columns: dict[str, Any], reason: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    assert reason in refusal(tmp_path / "t.parquet")


def test_parquet_with_a_column_twice(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 3, ["text", "label", "text"]), tmp_path / "t.parquet")
    assert "one column 'text': it has 2" in refusal(tmp_path / "t.parquet")


def test_parquet_needs_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtra, match="pyarrow"):
        read_table(tmp_path / "t.parquet", "text", "label")


names = st.text(st.characters(codec="utf-8"), min_size=1)
sources = st.builds(
    Source, names.map(Path), names, names, st.none() | names.map(Path), st.sampled_from(["utf-8", "latin-1"])
).filter(lambda source: source.text != source.label)


@given(sources, st.randoms(use_true_random=False))
def test_a_source_comes_back(source: Source, order: Any) -> None:
    options = [("text", source.text), ("label", source.label)]
    options += [("test", str(source.test))] * (source.test is not None)
    options += [("encoding", source.encoding)] * (source.encoding != "utf-8")
    order.shuffle(options)
    assert parse_source(f"csv:{quote(str(source.path))}?{urlencode(options)}") == source


@given(st.text() | st.text("csv:?&=%+2Ftexlab").map(lambda tail: f"csv:{tail}"))
def test_any_name_is_parsed_or_refused(name: str) -> None:
    try:
        parse_source(name)
    except RequestError as refused:
        assert (refused.key, refused.value) == ("dataset", name) and "\n" not in str(refused)


def test_a_source_as_it_is_typed() -> None:
    source = parse_source(
        "csv:/data/my films.csv?text=review body&label=is it good?&test=../test.tsv.gz&encoding=cp1252"
    )
    expected = Source(Path("/data/my films.csv"), "review body", "is it good?", Path("../test.tsv.gz"), "cp1252")
    assert source == expected


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("t.csv?text=a&label=b", "the form csv:PATH"),
        ("csv:t.csv", "the form csv:PATH"),
        ("csv:?text=a&label=b", "the form csv:PATH"),
        ("csv:t.csv?", "the form csv:PATH"),
        ("csv:t.csv?text=a", r"lacking: \['label'\]"),
        ("csv:t.csv?text=a&label=b&split=c", r"unknown: \['split'\]"),
        ("csv:t.csv?text=&label=b", r"empty: \['text'\]"),
        ("csv:t.csv?text=a&label=b&text=c", "each key once"),
        ("csv:t.csv?text=a&label=a", "two different columns"),
        ("csv:t.csv?text=%ff&label=a", "UTF-8"),
        ("csv:%ff.csv?text=a&label=b", "UTF-8"),
        ("csv:t.csv?text=a&label", "the form csv:PATH"),
    ],
)
def test_a_source_refused(name: str, reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        parse_source(name)

"""Word vectors: read, found, and downloaded."""

from __future__ import annotations

import gzip
import io
import sys
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torchtext.vocab import GloVe

from ddray.data import vectors as module
from ddray.data.vectors import find_vectors, glove_file, read_vectors
from ddray.errors import MissingExtra, RequestError

SHARED = Path(__file__).parents[3] / "shared" / "data"
FILE = b"the 0.5 -1 2e-1\n\xc3\xa9t\xc3\xa9 1 2 3\n. . 4 5 6\n1999 7 8 9\nthe 0 0 0\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples of a property, each of which writes its file anew."""
    return tmp_path_factory.mktemp("vectors")


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data, 1) if path.suffix == ".gz" else data)
    return path


def files_in(place: Path) -> list[str]:
    return sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", ["v.txt", "v.txt.gz"])
@pytest.mark.parametrize("head", [b"", b"5 3\n"])
def test_the_vectors_of_the_words_asked_for(tmp_path: Path, name: str, head: bytes) -> None:
    path = put(tmp_path / name, head + FILE)
    vectors, found = read_vectors(path, ["<pad>", "1999", "été", ". .", "the", "The", "\ud800"])
    assert found == 4 and vectors.dtype == np.float32 and files_in(tmp_path) == [name]
    expected = [[0, 0, 0], [7, 8, 9], [1, 2, 3], [4, 5, 6], [0.5, -1, 0.2], [0, 0, 0], [0, 0, 0]]
    assert np.array_equal(vectors, np.array(expected, np.float32))


@pytest.mark.parametrize("ending", [b"\n", b" \n", b"\r\n", b""])
def test_endings_of_lines(tmp_path: Path, ending: bytes) -> None:
    path = put(tmp_path / "v.txt", b"a 1 2" + (ending or b"\n") + b"\xc2\xa0 3 4" + ending)
    assert read_vectors(path, ["\u00a0", "a"])[0].tolist() == [[3, 4], [1, 2]]


def test_a_byte_order_mark_blank_lines_at_the_end_and_runs_of_spaces_are_passed_over(tmp_path: Path) -> None:
    for head in (b"", b"3  2\n"):
        path = put(tmp_path / "v.txt", b"\xef\xbb\xbf" + head + b"a  1   2\nb 3 4\n  . .  5  6\n\n \r\n")
        assert read_vectors(path, ["a", "b", ". ."])[0].tolist() == [[1, 2], [3, 4], [5, 6]]


words = st.text(st.characters(codec="utf-8", exclude_categories=["Z", "C"]), min_size=1)
numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(
    st.integers(2, 4).flatmap(lambda d: st.dictionaries(words, st.lists(numbers, min_size=d, max_size=d), min_size=1)),
    st.booleans(),
)
def test_vectors_come_back(folder: Path, table: dict[str, list[float]], head: bool) -> None:
    dimension = len(next(iter(table.values())))
    lines = [f"{len(table)} {dimension}"] * head + [f"{word} {' '.join(map(repr, row))}" for word, row in table.items()]
    vectors, found = read_vectors(put(folder / "v.txt", "\n".join(lines).encode()), list(table))
    assert found == len(table) and np.array_equal(vectors, np.array(list(table.values()), np.float32))


@given(st.binary(max_size=60) | st.text("a 1.\n-", max_size=40).map(str.encode))
def test_any_file_is_read_or_refused(folder: Path, alien: bytes) -> None:
    path = put(folder / "any.txt", alien)
    try:
        vectors, _ = read_vectors(path, ["a", "1", "-"])
        assert np.isfinite(vectors).all() and vectors.shape[1] > 0
    except RequestError as refused:
        assert str(path) in str(refused) and "\n" not in str(refused)


@given(st.data())
def test_damaged_gzip_is_refused(folder: Path, data: st.DataObject) -> None:
    whole = gzip.compress(FILE)
    path = folder / "v.txt.gz"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(RequestError, match=r"v\.txt\.gz"):
        read_vectors(path, ["the"])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"3 2\n", "it is empty"),
        (b"just words\nhere 1 2\n", "line 1 has no numbers"),
        (b"the 1 2\na 1\n", "line 2 has 1 numbers where the first has 2"),
        (b"the 1 2\na 1 2 3\n", "line 2 has 3 numbers where the first has 2"),
        (b"the 1 2\n\n  \nfilm 1 2\n", "line 2 is blank"),
        (b"\n\n", "it is empty"),
        (b"\xef\xbb\xbf", "it is empty"),
        (b"the  1  2\nfilm  1\n", "line 2 has 1 numbers where the first has 2"),
        (b"1 2\nthe 1 2\na 1 2 3\n", "line 3 has 3 numbers where the first has 2"),
        (b"the 1 2\nfilm 1 x\n", "line 2 has something else"),
        (b"the 1 2\nfilm 1 nan\n", "finite numbers: line 2"),
        (b"the 1 2\nfilm 1 -inf\n", "finite numbers: line 2"),
        (b"the 1 2\nfilm 1 1e39\n", "finite numbers: line 2"),
        (b"the 1 2\nof 1 2\n", "at least one of the 1 words"),
        (b"the 1 2\nfilm 1 2\n\xe9t\xe9 1 2\n", "a file in UTF-8: line 3 is not"),
        (b"3 2\nthe 1 2\nfilm 1 2\n", "announces 3 words, it has 2"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, content: bytes, reason: str, suffix: str) -> None:
    path = put(tmp_path / f"v.txt{suffix}", content)
    with pytest.raises(RequestError, match=reason) as refused:
        read_vectors(path, ["film"])
    assert (refused.value.key, refused.value.value) == ("data.vectors", str(path))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.txt", tmp_path):
        with pytest.raises(RequestError, match="can be read"):
            read_vectors(path, ["a"])


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data is not in ../shared/data")
def test_the_real_glove() -> None:
    vectors, found = read_vectors(find_vectors("glove.6B.50d.top10k", SHARED), ["the", "<unk>", "film"])
    assert vectors.shape == (3, 50) and found == 2 and not vectors[1].any()
    # The first line of GloVe 6B.
    assert vectors[0, :3] == pytest.approx([0.418, 0.24968, -0.41242], abs=1e-6)


def test_a_path_is_found(tmp_path: Path) -> None:
    path = put(tmp_path / "mine.vec", FILE)
    assert find_vectors(str(path), None) == path


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_name_is_found_under_the_root_and_then_in_the_cache(tmp_path: Path, cache: Path, suffix: str) -> None:
    name = "glove.6B.7d.mine"
    assert glove_file(name, tmp_path) is None
    kept = put(cache / f"glove/{name}.txt{suffix}", FILE)
    assert glove_file(name, tmp_path) == find_vectors(name, None) == kept
    mine = put(tmp_path / f"root/glove/{name}.txt{suffix}", FILE)
    assert glove_file(name, tmp_path / "root") == find_vectors(name, tmp_path / "root") == mine


@pytest.mark.parametrize("name", ["glove.6B.60d", "word2vec", "nowhere.txt", "", "nul\0", "long" * 100])
def test_a_name_that_is_not_to_be_had(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match=r"one of glove\.6B\.50d, .* is not in ") as refused:
        find_vectors(name, tmp_path)
    assert "\n" not in str(refused.value)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        return


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """GloVe's archive, as a web server has it that torchtext takes for the right one."""
    served = put(tmp_path / "served/glove.6B.zip", zipped({f"glove.6B.{d}d.txt": FILE for d in (50, 100)}))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(served.parent))) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setitem(GloVe.url, "6B", f"http://127.0.0.1:{server.server_port}/glove.6B.zip")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield served
        server.shutdown()


def test_downloaded_once_into_the_cache(
    archive: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "root").mkdir()
    path = find_vectors("glove.6B.100d", tmp_path / "root")
    assert path == cache / "glove/glove.6B.100d.txt" and path.read_bytes() == FILE
    assert files_in(cache) == ["glove/glove.6B.100d.txt"] and files_in(tmp_path / "root") == []
    output = capsys.readouterr()
    assert output.out == "" and "glove.6B.zip" in output.err
    archive.unlink()
    assert find_vectors("glove.6B.100d", tmp_path / "root") == path


@pytest.mark.parametrize(
    "content", [None, b"<html>", zipped({"glove.6B.50d.txt": FILE}), zipped({"glove.6B.100d.txt": FILE})[:-30]]
)
def test_a_download_that_fails_leaves_nothing(archive: Path, cache: Path, content: bytes | None) -> None:
    if content is None:
        archive.unlink()
    else:
        archive.write_bytes(content)
    with pytest.raises(
        RequestError, match=r"glove/glove\.6B\.100d\.txt is not in .*, and the download failed: "
    ) as refused:
        find_vectors("glove.6B.100d", None)
    assert "\n" not in str(refused.value) and list((cache / "glove").iterdir()) == []


def test_without_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GloVe.url, "840B", "http://127.0.0.1:9/glove.zip")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(RequestError, match="the download failed"):
        find_vectors("glove.840B.300d", None)


def test_every_official_name_has_an_address() -> None:
    assert set(module._GLOVE.values()) == set(GloVe.url)


def test_downloading_needs_torchtext(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchtext.vocab", None)
    with pytest.raises(MissingExtra, match="torchtext"):
        find_vectors("glove.6B.50d", None)

"""The official text datasets: small copies of their files, the real ones where they are, and downloads that fail."""

from __future__ import annotations

import io
import sys
import tarfile
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from torchtext import datasets

from ddray.data.text_sets import imdb, sst5, trec
from ddray.errors import MissingExtra, RequestError

SHARED = Path(__file__).parents[3] / "shared" / "data"
TREC = (
    b"DESC:manner How did serfdom develop ?\nLOC:city Which is a sister\xf0city of Los Angeles ?\nLOC:state Where ?\n",
    b"LOC:city Where is it ?\nDESC:def What is an atom ?\n",
)
SST = "3 it 's good\n0 awful\n"
TREES = "(3 (2 It) (4 works))\n(0 (1 -LRB-) (1 awful))\n"


def put(files: dict[str, str | bytes], root: Path) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def reviews(**changed: str | bytes) -> dict[str, str | bytes]:
    every: dict[str, str | bytes] = {}
    for split in ("train", "test"):
        every |= {
            f"imdb/aclImdb/{split}/{label}/{i}_7.txt": f"{label} {9 - i} é\u0085"
            for label in ("neg", "pos")
            for i in range(3)
        }
    return every | {f"imdb/aclImdb/{name}": content for name, content in changed.items()}


def questions(train: bytes = TREC[0], test: bytes = TREC[1]) -> dict[str, str | bytes]:
    return {"trec/train_5500.label": train, "trec/TREC_10.label": test}


def sentences(place: str, content: str) -> dict[str, str | bytes]:
    return {f"{place}/{part}.txt": content for part in ("train", "dev", "test")}


def test_imdb_is_in_the_order_of_label_and_text(tmp_path: Path) -> None:
    train, validation, test = imdb(put(reviews(), tmp_path))
    assert train.labels == ("neg",) * 3 + ("pos",) * 3 and validation is None
    assert train.texts == test.texts == tuple(f"{label} {i} é\u0085" for label in ("neg", "pos") for i in (7, 8, 9))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"test/pos/2_7.txt": "é".encode("latin-1")}, r"pos/2_7\.txt.*UTF-8"),
        ({"test/pos/2_7.txt": " \nsecond line"}, "not empty"),
    ],
)
def test_imdb_refused(tmp_path: Path, changed: dict[str, str | bytes], reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as refused:
        imdb(put(reviews(**changed), tmp_path))
    assert refused.value.key == "dataset file"


def test_imdb_without_a_class_is_refused(tmp_path: Path) -> None:
    for review in (put(reviews(), tmp_path) / "imdb/aclImdb/test/neg").iterdir():
        review.unlink()
    with pytest.raises(RequestError, match=r"reviews in both neg/\*\.txt and pos/\*\.txt"):
        imdb(tmp_path)


def test_trec_coarse_and_fine(tmp_path: Path) -> None:
    root = put(questions(), tmp_path)
    train, validation, test = trec(root, fine=False)
    assert train.labels == ("DESC", "LOC", "LOC") and test.labels == ("LOC", "DESC") and validation is None
    assert train.texts[:2] == ("How did serfdom develop ?", "Which is a sister city of Los Angeles ?")
    assert trec(root, fine=True)[0].labels == ("DESC:manner", "LOC:city", "LOC:state")


@pytest.mark.parametrize("line", [b"DESC:def Caf\xe9 ?", b"DESC What ?", b"DESC:def", b"DESC:def ", b"", b"<html>"])
def test_a_malformed_line_of_trec_is_named(tmp_path: Path, line: bytes) -> None:
    with pytest.raises(RequestError, match=r"TREC_10\.label.*line 2 is"):
        trec(put(questions(test=b"DESC:def What ?\n" + line + b"\nLOC:city Where ?\n"), tmp_path), fine=False)


@pytest.mark.parametrize("data", [b"", b"\n"])
def test_an_empty_trec_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(RequestError, match=r"train_5500\.label.*line 1 is another"):
        trec(put(questions(train=data), tmp_path), fine=False)


@pytest.mark.parametrize(
    ("place", "content"), [("sst5", SST), ("sst/trees", TREES), ("sst5", TREES), ("sst/trees", SST)]
)
def test_sst_in_lines_and_in_trees(tmp_path: Path, place: str, content: str) -> None:
    train, validation, test = sst5(put(sentences(place, content), tmp_path))
    assert train == validation == test and train.labels == ("3", "0")
    assert train.texts == (("it 's good", "awful") if content == SST else ("It works", "( awful"))


def test_sst_refused(tmp_path: Path) -> None:
    root = put(sentences("sst5", SST), tmp_path)
    (root / "sst5/dev.txt").write_bytes(b"3 good\n0 d\xe9j\xe0 vu\n")
    with pytest.raises(RequestError, match=r"dev\.txt.*line 2 is not utf-8"):
        sst5(root)
    (root / "sst5/dev.txt").write_bytes(b"3 good\n5 better\n")
    with pytest.raises(RequestError, match=r"dev\.txt.*it has '5'"):
        sst5(root)


def test_the_cache_where_the_root_lacks_a_file(tmp_path: Path, cache: Path) -> None:
    put(questions(), cache)
    root = put(questions(), tmp_path / "root")
    (root / "trec/TREC_10.label").unlink()
    assert len(trec(root, fine=False)[2].texts) == 2


@pytest.mark.parametrize("load", [imdb, partial(trec, fine=True), sst5])
def test_root_is_never_written_to(tmp_path: Path, load: Callable[[Path], object]) -> None:
    root = put(reviews() | questions() | sentences("sst5", SST), tmp_path / "root")

    def seen() -> list[tuple[str, int]]:
        return sorted((str(path), path.stat().st_mtime_ns) for path in [root, *root.rglob("*")])

    before = seen()
    load(root)
    assert seen() == before


def tarred(files: dict[str, str | bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            data = content if isinstance(content, bytes) else content.encode()
            member = tarfile.TarInfo(name.removeprefix("imdb/"))
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def zipped(files: dict[str, str | bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.removeprefix("sst/"), content)
    return buffer.getvalue()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A web server that torchtext takes for the datasets' own, and the folder it serves: small archives."""
    served = tmp_path / "served"
    put({"aclImdb_v1.tar.gz": tarred(reviews()), "trees.zip": zipped(sentences("sst/trees", TREES))}, served)
    put({"train_5500.label": TREC[0], "TREC_10.label": TREC[1]}, served)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(served))) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(datasets.IMDB, "urls", [f"{address}/aclImdb_v1.tar.gz"])
        monkeypatch.setattr(datasets.SST, "urls", [f"{address}/trees.zip"])
        monkeypatch.setattr(datasets.TREC, "urls", [f"{address}/train_5500.label", f"{address}/TREC_10.label"])
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield served
        server.shutdown()


def files_in(place: Path) -> list[str]:
    return sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("load", "expected"),
    [(imdb, reviews()), (partial(trec, fine=False), questions()), (sst5, sentences("sst/trees", TREES))],
)
def test_downloaded_once_into_the_cache(
    mirror: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    load: Callable[[Path], object], expected: dict[str, str | bytes],
) -> None:  # fmt: skip
    root = tmp_path / "root"
    root.mkdir()
    first = load(root)
    assert files_in(cache) == sorted(expected) and files_in(root) == []
    assert [path.name for path in cache.iterdir()] == [min(expected).partition("/")[0]]
    for file in mirror.iterdir():
        file.unlink()
    assert load(root) == first and capsys.readouterr().out == ""


PAGE = b"<html>Not here</html>"


@pytest.mark.parametrize(
    ("load", "file", "content"),
    [
        (imdb, "aclImdb_v1.tar.gz", PAGE),
        (imdb, "aclImdb_v1.tar.gz", tarred(reviews())[:-40]),
        (imdb, "aclImdb_v1.tar.gz", tarred({"imdb/aclImdb/README": ""})),
        (partial(trec, fine=False), "TREC_10.label", PAGE),
        (sst5, "trees.zip", PAGE),
        (sst5, "trees.zip", zipped(sentences("sst/trees", TREES))[:-40]),
        (sst5, "trees.zip", zipped({"sst/trees/train.txt": TREES})),
    ],
)
@pytest.mark.parametrize("there", [True, False])
def test_a_download_that_fails_leaves_nothing(
    mirror: Path, cache: Path, load: Callable[[Path | None], object], file: str, content: bytes, there: bool
) -> None:
    (mirror / file).write_bytes(content)
    if not there:
        (mirror / file).unlink()  # torchtext takes the server's answer for the file
    with pytest.raises(RequestError, match="the download failed") as refused:
        load(None)
    assert "\n" not in str(refused.value) and list(cache.iterdir()) == []


def test_an_archive_does_not_write_outside_its_folder(mirror: Path, cache: Path) -> None:
    put({"aclImdb_v1.tar.gz": tarred(reviews() | {"../../../outside.txt": "here"})}, mirror)
    with pytest.raises(RequestError, match="outside"):
        imdb(None)
    assert list(cache.iterdir()) == [] and not list(cache.parent.parent.rglob("outside.txt"))


def test_a_cache_with_a_part_of_imdb_is_said_to_be_in_the_way(mirror: Path, cache: Path) -> None:
    put({"imdb/aclImdb/train/neg/0_3.txt": "a part"}, cache)
    with pytest.raises(RequestError, match="imdb/aclImdb is in its way"):
        imdb(None)
    assert files_in(cache) == ["imdb/aclImdb/train/neg/0_3.txt"]


@pytest.mark.parametrize(
    ("load", "name", "missing"),
    [
        (imdb, "IMDB", "imdb/aclImdb/train/neg"),
        (partial(trec, fine=False), "TREC6", "trec/train_5500.label"),
        (partial(trec, fine=True), "TREC50", "trec/train_5500.label"),
        (sst5, "SST5", "sst5/train.txt"),
    ],
)
def test_without_network_the_missing_file_and_both_places_are_named(
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    load: Callable[[Path], object],
    name: str,
    missing: str,
) -> None:
    for official in (datasets.IMDB, datasets.TREC, datasets.SST):
        monkeypatch.setattr(official, "urls", ["http://127.0.0.1:9/file.zip"])
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(RequestError) as refused:
        load(tmp_path)
    message = str(refused.value)
    assert f"{missing} is not in {tmp_path} and {cache}, and the download failed: " in message and "\n" not in message
    assert (refused.value.key, refused.value.value) == ("dataset", name)


@pytest.mark.parametrize("there", [True, False])
def test_torchtext_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    monkeypatch.setitem(sys.modules, "torchtext", None)
    with pytest.raises(MissingExtra, match="torchtext"):
        trec(put(questions() if there else {}, tmp_path), fine=False)


def test_sst_on_disk_does_without_torchtext(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchtext", None)
    assert sst5(put(sentences("sst5", SST), tmp_path))[0].labels == ("3", "0")


needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the real data is not in ../shared/data")


@needs_shared
def test_the_real_sst() -> None:
    train, validation, test = sst5(SHARED)
    assert validation is not None
    counts = [[Counter(part.labels)[label] for label in "01234"] for part in (train, validation, test)]
    # Of Socher et al. (2013).
    assert counts == [[1092, 2218, 1624, 2322, 1288], [139, 289, 229, 279, 165], [279, 633, 389, 510, 399]]


@needs_shared
def test_the_real_trec(tmp_path: Path) -> None:
    files = {
        name: (SHARED / "trec" / f"{part}.txt").read_bytes()
        for name, part in zip(questions(), ("train", "test"), strict=True)
    }
    root = put(dict(files), tmp_path)
    train, _, test = trec(root, fine=False)
    # Of Li and Roth (2002).
    assert Counter(train.labels) == {"ABBR": 86, "DESC": 1162, "ENTY": 1250, "HUM": 1223, "LOC": 835, "NUM": 896}
    assert Counter(test.labels) == {"ABBR": 9, "DESC": 138, "ENTY": 94, "HUM": 65, "LOC": 81, "NUM": 113}
    assert [len(set(part.labels)) for part in trec(root, fine=True) if part is not None] == [50, 42]

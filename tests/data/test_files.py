"""idx files, and where files are looked for."""

from __future__ import annotations

import gzip
import hashlib
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from mnist_files import EXAMPLES, idx, mnist_arrays
from torchvision.datasets import MNIST

from ddray.data import load
from ddray.data.files import parse_idx, read_idx
from ddray.errors import RequestError

Bytes = npt.NDArray[np.uint8]
images = arrays(np.uint8, array_shapes(min_dims=3, max_dims=3, max_side=6))


@given(arrays(np.uint8, array_shapes(max_dims=4, max_side=5)))
def test_an_array_comes_back(array: Bytes) -> None:
    assert np.array_equal(parse_idx(idx(array), "file", array.ndim), array)


@given(images, st.data())
def test_truncated_is_refused(array: Bytes, data: st.DataObject) -> None:
    whole = idx(array)
    with pytest.raises(RequestError, match="'the/file'"):
        parse_idx(whole[: data.draw(st.integers(0, len(whole) - 1))], "the/file", 3)


@given(images, st.binary(min_size=1, max_size=9))
def test_bytes_too_many_are_refused(array: Bytes, more: bytes) -> None:
    with pytest.raises(RequestError, match="a whole idx file"):
        parse_idx(idx(array) + more, "file", 3)


@given(images, st.integers(0, 15), st.integers(1, 255))
def test_altered_header_is_refused(array: Bytes, position: int, change: int) -> None:
    altered = bytearray(idx(array))
    altered[position] ^= change
    with pytest.raises(RequestError, match="'the/file'"):
        parse_idx(bytes(altered), "the/file", 3)


@given(st.binary(max_size=64))
def test_alien_bytes_are_refused(alien: bytes) -> None:
    with pytest.raises(RequestError, match="'the/file'"):
        parse_idx(alien, "the/file", 3)


def test_no_examples_are_refused_however_large_the_other_sides() -> None:
    with pytest.raises(RequestError, match="'the/file'"):
        parse_idx(bytes((0, 0, 8, 3)) + b"\0\0\0\0" + b"\xff" * 8, "the/file", 3)


@given(st.data())
def test_damaged_gzip_is_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    packed = bytearray(gzip.compress(idx(mnist_arrays()["t10k-labels-idx1-ubyte"])))
    # Past gzip's own header, whose time stamp and flags may change without harm.
    packed[data.draw(st.integers(10, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    place = tmp_path_factory.mktemp("gz") / "labels.gz"
    place.write_bytes(packed)
    with pytest.raises(RequestError, match=r"labels\.gz"):
        read_idx(place, 1)


def sizes(root: Path | None = None, name: str = "MNIST") -> list[int]:
    return [len(load(name, root).split(part)) for part in ("train", "validation", "test")]


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
@pytest.mark.parametrize("encode", [bytes, gzip.compress])
def test_read_from_the_root(make_mnist: Callable[..., Path], name: str, encode: Callable[[bytes], bytes]) -> None:
    dataset = load(name, make_mnist(name=name, encode=encode))
    expected = mnist_arrays()
    assert [len(dataset.train), len(dataset.validation)] == [60, 20] and dataset.input_shape == (1, 28, 28)
    assert np.array_equal(dataset.test.x[:, 0].numpy(), expected["t10k-images-idx3-ubyte"])
    assert np.array_equal(dataset.test.y.numpy(), expected["t10k-labels-idx1-ubyte"])


def test_root_from_the_environment(make_mnist: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDRAY_DATA", str(make_mnist()))
    assert sizes() == [60, 20, 20]


def test_the_cache_where_the_root_lacks_a_file(make_mnist: Callable[..., Path], cache: Path) -> None:
    make_mnist(cache)
    root = make_mnist()
    (root / "MNIST/raw/t10k-labels-idx1-ubyte").unlink()
    assert sizes(root) == [60, 20, 20]


def test_root_is_never_written_to(make_mnist: Callable[..., Path]) -> None:
    root = make_mnist(encode=gzip.compress)

    def seen() -> list[tuple[str, int]]:
        return sorted((str(path), path.stat().st_mtime_ns) for path in [root, *root.rglob("*")])

    before = seen()
    load("MNIST", root)
    assert seen() == before


def test_truncated_file_is_named(make_mnist: Callable[..., Path]) -> None:
    root = make_mnist()
    images = root / "MNIST/raw/train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-1])
    with pytest.raises(RequestError, match=f"'{images}'"):
        load("MNIST", root)


def test_labels_in_place_of_images_are_named(make_mnist: Callable[..., Path]) -> None:
    root = make_mnist()
    images = root / "MNIST/raw/train-images-idx3-ubyte"
    images.write_bytes((root / "MNIST/raw/train-labels-idx1-ubyte").read_bytes())
    with pytest.raises(RequestError, match=f"'{images}'"):
        load("MNIST", root)


@pytest.mark.parametrize("key", ["--data", "DDRAY_DATA"])
def test_a_root_that_does_not_exist_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("DDRAY_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(RequestError) as refused:
        load("MNIST", tmp_path / "nowhere" if key == "--data" else None)
    assert refused.value.key == key


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A web server that torchvision takes for MNIST's own, and the folder it serves: four files with right checksums."""
    served = tmp_path / "served"
    served.mkdir()
    resources = []
    for file, array in mnist_arrays().items():
        packed = gzip.compress(idx(array))
        (served / f"{file}.gz").write_bytes(packed)
        resources.append((f"{file}.gz", hashlib.md5(packed).hexdigest()))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(served))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        monkeypatch.setattr(MNIST, "resources", resources)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield served
        server.shutdown()


def files_in(place: Path) -> list[str]:
    return sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())


def test_downloaded_once_into_the_cache(mirror: Path, cache: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    assert sizes(root) == [60, 20, EXAMPLES["t10k"]]
    assert files_in(cache) == sorted(f"MNIST/raw/{file}" for file in mnist_arrays()) and files_in(root) == []
    for file in mirror.iterdir():
        file.unlink()
    assert sizes(root) == [60, 20, EXAMPLES["t10k"]]


def test_a_download_that_breaks_off_leaves_nothing(mirror: Path, cache: Path) -> None:
    third = mirror / "t10k-images-idx3-ubyte.gz"
    third.write_bytes(third.read_bytes()[:-100])
    with pytest.raises(RequestError, match=r"the download failed.*corrupted"):
        load("MNIST")
    assert list(cache.iterdir()) == []


def test_without_network_the_missing_file_and_both_places_are_named(
    make_mnist: Callable[..., Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    root = make_mnist()
    (root / "MNIST/raw/train-labels-idx1-ubyte").unlink()
    with pytest.raises(RequestError) as refused:
        load("MNIST", root)
    message = str(refused.value)
    assert f"MNIST/raw/train-labels-idx1-ubyte is not in {root} and {cache}" in message and "\n" not in message


def test_a_cache_that_cannot_be_made_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(RequestError, match="the download failed"):
        load("MNIST")

"""MNIST in miniature: the content of its files."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

EXAMPLES = {"train": 80, "t10k": 20}


def idx(array: npt.NDArray[np.uint8]) -> bytes:
    """The array as an idx file's content."""
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def mnist_arrays() -> dict[str, npt.NDArray[np.uint8]]:
    """Ten classes of random 28×28 images, by the names of MNIST's files."""
    draw = np.random.default_rng(0)
    arrays = {}
    for part, n in EXAMPLES.items():
        arrays[f"{part}-images-idx3-ubyte"] = draw.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        arrays[f"{part}-labels-idx1-ubyte"] = (np.arange(n) % 10).astype(np.uint8)
    return arrays

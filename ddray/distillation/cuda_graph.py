"""A function on a GPU recorded once and replayed: a CUDA graph.

A small network's operations are over before the next could be launched from Python. Launched once while CUDA writes them down,
thousands of them start with one call from then on, on new numbers in the same places of memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Captured:
    """A function of tensors as one CUDA graph. It may ask no number of the device. What it gives is overwritten by the next call.

    Args:
        function: called twice: to warm up, and to be recorded.
        given: what it is called with; later calls bring tensors of the same shapes.
        device: where it runs; of several cards, this need not be the current one.

    """

    def __init__(
        self, function: Callable[..., Sequence[Tensor]], given: Sequence[Tensor] = (), *, device: torch.device
    ) -> None:
        self._given = [t.detach().clone() for t in given]
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(device):
            here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
            aside.wait_stream(here)
            with torch.cuda.stream(aside):  # libraries make themselves at home, which cannot be recorded
                function(*self._given)
            here.wait_stream(aside)
            with torch.cuda.graph(self._graph, stream=torch.cuda.Stream()):
                self._found = tuple(function(*self._given))
        self._device = device

    def __call__(self, *given: Tensor) -> tuple[Tensor, ...]:
        """The function of new tensors; without any, of the last ones."""
        with torch.cuda.device(self._device):
            if given:
                torch._foreach_copy_(self._given, list(given))
            self._graph.replay()
        return self._found


def now(device: torch.device) -> float:
    """Seconds, when all that a GPU was asked for is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()

"""The least time that a row of the speed benchmark could take on this machine: its work, over what the machine can do.

    rates          how fast the CPU multiplies matrices and moves memory, measured in the same run as the row
    counted        the operations of one outer step, and the bytes that its operators read and write
    ideal_bytes    those bytes that would move if every operator of an inner step were fused into one
    floor_seconds  the longer of: all operations at the machine's best, ideal bytes at the machine's best

The floor is that of the algorithm as counted: one that computes a thing twice has more to do. What is left out makes it lower,
never higher: pooling, activations, norms and losses count no operation, copies inside an inner step no byte, and arithmetic is
taken to overlap with memory. Two caveats. Operations are those of direct convolution; a transform that needs fewer could get
below. And weights that stay in a cache between inner steps move faster than memory: for a small network the ideal bytes are a
figure for comparison, but there the operations decide.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ddray.distillation.cpu_kernels import linear


@dataclass(frozen=True)
class Rates:
    """The machine's best, each as the fastest of several tries.

    flops_per_second: of a float32 product of two 2048×2048 matrices, on a CPU by torch or by oneDNN (torch's MKL keeps to narrower
        instructions on some processors); a multiplication and an addition are two.
    bytes_per_second: of a copy or a triad a = b + s·c, whichever is faster, on arrays that no cache holds; reads and writes.
    """

    flops_per_second: float
    bytes_per_second: float


@dataclass(frozen=True)
class Work:
    """What one call did.

    flops: operations of matrix products and convolutions, forward, backward and twice backward, by torch's own formulas.
    bytes: tensors read and written, summed over all operators as they ran, one by one; views move nothing.
    ideal_bytes: what must move at least once, given by the caller; 0 leaves the floor to the operations.
    """

    flops: int
    bytes: int
    ideal_bytes: int = 0


def rates(threads: int, repeats: int = 7, device: str = "cpu") -> Rates:
    """Measure the machine, or its GPU, at a number of threads, which is put back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return Rates(_matmul_rate(repeats, device), _memory_rate(repeats, device))
    finally:
        torch.set_num_threads(before)


def _matmul_rate(repeats: int, device: str) -> float:
    size = 2048 if device == "cpu" else 8192
    a, b = torch.randn(2, size, size, dtype=torch.float32, device=device)
    out = torch.empty_like(a)
    ways: list[Callable[[], object]] = [lambda: torch.mm(a, b, out=out)]
    if device == "cpu" and torch.backends.mkldnn.is_available():
        ways.append(lambda: linear(a, b))
    return 2.0 * size * size * size / min(_best(way, repeats) for way in ways)


def _memory_rate(repeats: int, device: str) -> float:
    length = 2**26 if device == "cpu" else 2**28  # arrays of 256 MiB, on a GPU of 1 GiB
    a, b, c = torch.ones(3, length, dtype=torch.float32, device=device)
    copy: float = 2 * a.nbytes / _best(lambda: a.copy_(b), repeats)
    triad: float = 3 * a.nbytes / _best(lambda: torch.add(b, c, alpha=0.5, out=a), repeats)
    return max(copy, triad)


def _best(function: Callable[[], object], repeats: int) -> float:
    function()
    seconds = []
    for _ in range(repeats):
        began = _now()
        function()
        seconds.append(_now() - began)
    return min(seconds)


def counted(function: Callable[..., object], *args: object, ideal: int = 0) -> Work:
    """Call the function once, on `args`, and count its work; `ideal` becomes the work's `ideal_bytes`.

    It sees what is dispatched operator by operator; inside a compiled function it is blind.
    """
    with _Count() as count:
        function(*args)
    return Work(count.flops, count.bytes, ideal)


def _now() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


class _Count(TorchDispatchMode):
    # FlopCounterMode's own hooks on modules fail under a gradient of a gradient, hence its formulas without it.
    flops = 0
    bytes = 0

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if formula := flop_registry.get(func.overloadpacket):
            self.flops += formula(*args, **kwargs, out_val=result)
        if not func.is_view:
            self.bytes += _moved(func._schema, args, kwargs, result)
        return result


def _moved(schema: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    # Every argument but `out` is read; `out`, what is changed in place and what is new is written.
    given = list(zip(schema.arguments, args, strict=False))
    given += [(argument, kwargs[argument.name]) for argument in schema.arguments if argument.name in kwargs]
    read = [value for argument, value in given if not argument.is_out]
    written = [value for argument, value in given if argument.is_write]
    results = {0: (), 1: (result,)}.get(len(schema.returns), result)
    new = [value for slot, value in zip(schema.returns, results, strict=True) if slot.alias_info is None]
    return sum(leaf.nbytes for leaf in tree_leaves((read, written, new)) if isinstance(leaf, Tensor))


def ideal_bytes(weights: int, inner_steps: int, step: int, synthetic: int, batch: int, itemsize: int = 4) -> int:
    """The bytes of one outer step if each inner step were one fused operator, in each direction.

    Args:
        weights: elements of the weight vector. The fresh draw is written; an inner step writes the next vector, and reads
            the one before it forwards and again backwards; backwards it reads and writes the adjoint as well.
        inner_steps: how many there are, T.
        step: elements of one step's inputs and labels, read in both directions.
        synthetic: elements of all that is learned; the update reads and writes it and Adam's two moments.
        batch: elements of the real batch, read once.
        itemsize: bytes of an element.

    """
    return itemsize * (weights * (1 + 5 * inner_steps) + 2 * inner_steps * step + 6 * synthetic + batch)


def floor_seconds(work: Work, rates: Rates) -> float:
    """The least seconds for the work at these rates."""
    return max(work.flops / rates.flops_per_second, work.ideal_bytes / rates.bytes_per_second)

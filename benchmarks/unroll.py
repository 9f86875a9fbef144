"""Milliseconds of one outer step of unrolled distillation, beside the original algorithm, plain autograd, and the machine's floor.

    DDRAY_DATA=DIR python benchmarks/unroll.py                       LeNet on MNIST, T = 1, 3, 30, 300, on 1 and on 2 threads
    DDRAY_DATA=DIR python benchmarks/unroll.py --case AlexCifarNet   or ConvNet3, on CIFAR10
    DDRAY_DATA=DIR python benchmarks/unroll.py --inner 30 --threads 2 --compile max
    DDRAY_DATA=DIR python benchmarks/unroll.py --device cuda --compile off trace max

A step is whole: taking a real batch of 1,024, drawing a network, T inner steps, the outer loss, the way back, Adam. Variants run
in processes of their own; LeNet's are interleaved, round by round, but for the one with a loader, which comes before the others.
A row tells the median and the range over the rounds, the floor (operations over the rate of the machine's matrix product, or ideal
bytes over its memory's, whichever takes longer; both measured in this run) and how many times it the median is. Memory is the peak
of a process of its own (on noise of the same shapes) above that of one which took steps of T = 1; on a GPU, what torch's allocator
had reserved. Beside it, as the preflight predicts them, what graphs and stored weights take.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from floors import Rates, counted, floor_seconds, ideal_bytes, rates
from original import Original, from_loader, from_tensors

from ddray.data import Dataset, load
from ddray.distillation.choose import settle
from ddray.distillation.config import DistillConfig, EngineConfig
from ddray.distillation.distiller import Distiller
from ddray.distillation.engine import set_arithmetic
from ddray.distillation.memory import footprint
from ddray.distillation.reference import by_autograd
from ddray.distillation.streams import generator
from ddray.distillation.unroll import ADJOINTS

CASES = {"LeNet": "MNIST", "AlexCifarNet": "CIFAR10", "ConvNet3": "CIFAR10"}
INNER = {1: (1, 1), 3: (1, 3), 30: (10, 3), 300: (10, 30)}  # T: (S, E)
BATCH, WORKERS = 1024, 8  # the original's default
LOADED = f"original, loader of {WORKERS}"
Step = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One network, its data, and a number of inner steps."""

    arch: str
    dataset: Dataset
    inner: int
    device: str = "cpu"

    @property
    def config(self) -> DistillConfig:
        """The original's settings."""
        steps, epochs = INNER[self.inner]
        flat = {"synthetic.steps": steps, "synthetic.epochs": epochs, "outer.batch": BATCH, "outer.steps": 100_000}
        rate = 0.02 if self.arch == "LeNet" else 0.001
        return DistillConfig.from_flat(flat | {"synthetic.lr": rate, "outer.clip": None})

    def original(self, *, loader: bool) -> Original:
        """The original, fed by its loader or from tensors."""
        steps, epochs = INNER[self.inner]
        x = self.dataset.normalise(self.dataset.train.x.to(self.device)) if not loader else None
        name = "MNIST" if self.dataset.name == "MNIST" else "CIFAR10"
        batches = (
            from_loader(name, BATCH, WORKERS)
            if x is None
            else from_tensors(x, self.dataset.train.y.to(self.device), BATCH, name == "CIFAR10")
        )
        return Original(self.arch, steps, epochs, batches, self.device, distill_lr=self.config.synthetic.lr)

    def ours(self, **engine: object) -> Distiller:
        """Ours, by the engine record given; what it leaves open is settled as for a long distillation."""
        config = EngineConfig.model_validate({"device": self.device, "threads": torch.get_num_threads(), **engine})
        return Distiller(
            self.dataset, self.arch, self.config, engine=settle(config, self.dataset, self.arch, self.config)
        )


class PlainAutograd(Distiller):
    """The same outer step by plain autograd through the unroll."""

    def _outer_step(self) -> None:
        synthetic, batch = self.synthetic(), self.batches.at(self.step)
        start, seen = self._draws.start(self.step, 0), synthetic.detach()
        loss, gradient = by_autograd(self._engine.step, start, seen, self.order, batch)
        self._update(synthetic, gradient)
        self.loss = loss.item()
        self.step += 1


def variants(case: Case, compiles: list[str]) -> dict[str, Callable[[], Step]]:
    """What is compared: a name, and how to make a function that takes one outer step."""
    made: dict[str, Callable[[], Step]] = {
        LOADED: lambda: as_torch_would(case.original(loader=True).outer_step),
        "original, tensors": lambda: as_torch_would(case.original(loader=False).outer_step),
        "plain autograd": lambda: as_torch_would(
            PlainAutograd(case.dataset, case.arch, case.config, engine=EngineConfig(device=case.device)).advance
        ),
    }
    if case.dataset.name == "noise":
        del made[LOADED]
    for compiled in compiles:
        for adjoint in ADJOINTS if case.inner > 1 else ("full",):
            made[f"ours, {compiled}, {adjoint}"] = _ours(case, compiled, adjoint)
    return made


def _ours(case: Case, compiled: str, adjoint: str) -> Callable[[], Step]:
    mode, _, precision = compiled.partition("+")  # in the tables: trace+tf32, max+bf16
    plain = {"layout": "blocked"} if mode == "off" or precision else {}
    more = {"tf32": precision == "tf32", "bfloat16": precision == "bf16"}

    def make() -> Step:
        advance = case.ours(compile=mode, adjoint=adjoint, networks="loop", **plain, **more).advance

        def ours() -> object:
            set_arithmetic(tf32=precision == "tf32")
            return advance()

        return ours

    return make


def as_torch_would(step: Step) -> Step:
    """A step with torch's own settings of a GPU: convolutions in TF32, and in no particular order."""

    def usual() -> object:
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = True, False
        return step()

    return usual


class Variant:
    """A variant in a process of its own, which takes a step when it is told to.

    So none meets what another does to its process: the allocator that ours sets, or the threads that compiled code brings.
    """

    def __init__(self, case: Case, name: str, compiles: list[str], threads: int) -> None:
        flags = ["--serve", name, *(["--noise"] if case.dataset.name == "noise" else [])]
        self._process = subprocess.Popen(
            command(case, compiles, threads) + flags, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.step()

    def step(self) -> float:
        """Milliseconds of one more step."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def serve(step: Step) -> None:
    """Take a step for every line that comes in, and tell its milliseconds."""
    for _ in sys.stdin:
        began = now()
        step()
        print(1e3 * (now() - began), flush=True)


def timed(variants: dict[str, Variant], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every variant in every round; the first three rounds do not count."""
    found: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(-3, rounds):
        for name, variant in variants.items():
            spent = variant.step()
            if turn >= 0:
                found[name].append(spent)
    return found


def blocks(case: Case, names: list[str]) -> list[list[str]]:
    """Which variants take turns.

    A loader's workers load on between turns. And processes of gigabytes that wait lose their memory to others on some machines:
    the larger networks' variants go one after another.
    """
    if case.arch != "LeNet":
        return [[name] for name in names]
    return [block for block in ([n for n in names if n == LOADED], [n for n in names if n != LOADED]) if block]


def now() -> float:
    """Seconds, when all that a GPU was asked for is done."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def floor_of(case: Case, step: Step, machine: Rates) -> float:
    """Milliseconds below which this machine could not do the work that was counted."""
    config, size = case.config, torch.Size(case.dataset.input_shape).numel()
    weights = case.ours(compile="off", adjoint="recompute", layout="blocked", networks="loop").network.size
    stored = config.stored_samples(10) * (size + 10)
    ideal = ideal_bytes(weights, case.inner, 10 * (size + 10), stored + case.inner, BATCH * size)
    return 1e3 * floor_seconds(counted(step, ideal=ideal), machine)


def as_operators(case: Case, name: str, made: dict[str, Callable[[], Step]]) -> Step:
    """The same step in a form whose operators can be counted: not compiled, its convolutions torch's usual ones."""
    if not name.startswith("ours"):
        return made["original, tensors" if name == LOADED else name]()
    return case.ours(compile="off", adjoint=name.split(", ")[2], layout="blocked", outer_layout="blocked", networks="loop").advance


def peak(case: Case, name: str, compiles: list[str], threads: int) -> float:
    """Peak resident MB of a process that takes two steps of this variant."""
    child = [*command(case, compiles, threads), "--peak", name]
    return float(subprocess.run(child, capture_output=True, text=True, check=True).stdout.split()[-1])


def command(case: Case, compiles: list[str], threads: int) -> list[str]:
    """How to run this file again for one of its variants."""
    return [sys.executable, "-W", "ignore", __file__, "--case", case.arch, "--inner", str(case.inner), "--threads", str(threads),
            "--compile", *compiles, "--device", case.device]  # fmt: skip


def high_water() -> float:
    """The most MB that this process had on the GPU, or resident; getrusage would tell those of the process that started it."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_reserved() / 2**20
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024


def noise(arch: str) -> Dataset:
    """A few batches of noise in the case's shapes: to measure memory with little data in it."""
    shape, draw = ((1, 28, 28) if arch == "LeNet" else (3, 32, 32)), generator("noise")
    x, y = torch.randint(256, (3 * BATCH, *shape), generator=draw, dtype=torch.uint8), torch.arange(3 * BATCH) % 10
    return Dataset(x, y, x[:100], y[:100], name="noise")


def predicted(case: Case, name: str) -> str:
    """MB of graphs and of stored weights, by the preflight."""
    if not name.startswith("ours"):
        return ""
    _, compiled, adjoint = name.split(", ")
    engine = case.ours(
        compile="off" if compiled == "off" else "trace", layout="blocked", adjoint=adjoint, networks="loop"
    ).engine
    found = footprint(case.dataset, case.arch, case.config, engine)
    return f"{found.graphs / 2**20:.0f} + {found.weights / 2**20:.0f}"


def table(case: Case, threads: int, rounds: int, compiles: list[str], memory: bool) -> None:
    """One case at one number of threads, as Markdown."""
    torch.set_num_threads(threads)
    machine = rates(threads, device=case.device)
    made = variants(case, compiles)
    found: dict[str, list[float]] = {}
    for block in blocks(case, list(made)):
        here = {name: Variant(case, name, compiles, threads) for name in block}
        found |= timed(here, rounds)
        for variant in here.values():
            variant.close()
    where = f"{threads} thread(s)" if case.device == "cpu" else torch.cuda.get_device_name()
    print(f"\n{case.arch} on {case.dataset.name}'s shapes, T = {case.inner}, batch {BATCH}, {where}; matrix product "
          f"{machine.flops_per_second / 1e9:.0f} GFLOP/s, memory {machine.bytes_per_second / 1e9:.0f} GB/s\n")  # fmt: skip
    columns = ["variant", "ms, median", "range", "original, from tensors and with its loader, over this"]
    columns += ["floor, ms", "times the floor"]
    columns += ["peak MB", "graphs + weights, MB"]
    print(f"| {' | '.join(columns)} |\n|{len(columns) * '---|'}")
    tensors, loaded = (statistics.median(found.get(name, [math.nan])) for name in ("original, tensors", LOADED))
    base = peak(Case(case.arch, case.dataset, 1, case.device), "ours, off, full", ["off"], threads) if memory else 0.0
    for name, times in found.items():
        median = statistics.median(times)
        floor = floor_of(case, as_operators(case, name, made), machine)
        above = (
            f"{peak(case, name, compiles, threads) - base:+.0f}"
            if memory and name != LOADED and "max" not in name
            else ""
        )
        print(
            f"| {name} | {median:.1f} | {min(times):.1f}–{max(times):.1f} | {tensors / median:.2f}, {loaded / median:.2f} "
            f"| {floor:.3g} | {median / floor:.1f} | {above} | {predicted(case, name)} |", flush=True,
        )  # fmt: skip


def main() -> None:
    """Print the tables, or (as a child) one peak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="LeNet")
    parser.add_argument("--inner", type=int, nargs="+", choices=INNER, default=list(INNER))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    modes = [mode + more for mode in ("off", "trace", "max") for more in ("", "+tf32", "+bf16")]
    parser.add_argument("--compile", nargs="+", choices=modes, default=["off", "trace"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--noise", action="store_true", help="noise in the data's shapes, and no loader")
    parser.add_argument("--no-memory", action="store_true", help="leave the peaks out: they take a process per row")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if "DDRAY_DATA" not in os.environ and not arguments.noise:
        parser.error("DDRAY_DATA is to name the directory with MNIST and CIFAR10 in torchvision's layout")
    warnings.simplefilter("ignore", FutureWarning)  # torch's own, of its own
    torch.manual_seed(int(generator("benchmark").initial_seed()) % 2**31)
    if arguments.device != "cpu":
        arguments.threads = [torch.get_num_threads()]
    if len(arguments.inner) * len(arguments.threads) > 1:  # a process for every table: compiled code stays in one
        for inner in arguments.inner:
            for threads in arguments.threads:
                flags = ["--case", arguments.case, "--inner", str(inner), "--threads", str(threads)]
                flags += ["--rounds", str(arguments.rounds), "--compile", *arguments.compile, "--device", arguments.device]
                flags += ["--no-memory"] if arguments.no_memory else []
                flags += ["--noise"] if arguments.noise else []
                subprocess.run([sys.executable, "-W", "ignore", __file__, *flags], check=True)
        return
    dataset = noise(arguments.case) if arguments.peak or arguments.noise else load(CASES[arguments.case])
    for inner in arguments.inner:
        case = Case(arguments.case, dataset, inner, arguments.device)
        if arguments.serve:
            torch.set_num_threads(arguments.threads[0])
            serve(variants(case, arguments.compile)[arguments.serve]())
            return
        if arguments.peak:
            torch.set_num_threads(arguments.threads[0])
            step = variants(case, arguments.compile)[arguments.peak]()
            step(), step()
            print(high_water())
            return
        for threads in arguments.threads:
            table(case, threads, arguments.rounds, arguments.compile, not arguments.no_memory)


if __name__ == "__main__":
    main()

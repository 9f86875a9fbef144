"""The ways to compute a problem that an engine record leaves open, each timed on its shapes."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddray.data import Dataset
from ddray.distillation.captured import CapturedStep
from ddray.distillation.config import DistillConfig, EngineConfig
from ddray.distillation.cuda_graph import Captured, now
from ddray.distillation.engine import has_compiler, make_engine, set_arithmetic
from ddray.distillation.inner import Carry, InnerStep
from ddray.distillation.layout import LAYOUTS
from ddray.distillation.streams import generator
from ddray.distillation.traced import TracedOuterLoss, TracedStep
from ddray.networks import Network

MIN_SECONDS_TO_COMPILE, MIN_SECONDS_EACH = 400, 20
"""Seconds of inner steps of one shape, in all and in each distillation, from which on it pays to compile them.

A fifth of them is saved, for half a minute once on a machine, and two seconds in every process that follows.
"""
_MARGIN = 0.95  # a less plain way has to be faster than this share of a plainer one's time
_MAX_SAMPLES_TIMED = 1024  # synthetic examples of a step: which way is the fastest does not change beyond them
_NETWORKS_TIMED = 4  # side by side
_ROUNDING = 1e-3  # relative difference of gradients in float32; layers that are wrong side by side are off by 1e-2 or more
_PATIENCE = 1.0  # seconds: what takes longer is timed once, and not in a layout that began badly


@dataclass(frozen=True)
class Choice:
    """What was measured to be best: the fastest way, the bytes that its graph of one step holds, and kernels for the outer loss."""

    compile: str
    layout: str
    networks: str
    saved_bytes: int
    outer_layout: str = "blocked"


class Candidates:
    """The ways to compute one problem that an engine record leaves open.

    Args:
        engine: the record.
        network: what is trained, on its device.
        arch: its name.
        dataset: its shapes count.
        config: the problem.
        outputs: how wide labels are.
        each: inner steps of one of the distillations that the choice is for.
        alike: how many there are with steps of this shape; 0 where it differs from one to the next.

    Attributes:
        name: tells this problem on this machine from any other.

    """

    def __init__(
        self, engine: EngineConfig, network: Network, arch: str, dataset: Dataset, config: DistillConfig, outputs: int,
        each: int, alike: int,
    ) -> None:  # fmt: skip
        self.engine, self.network, self.config, self.each, self.alike = engine, network, config, each, alike
        self.kind = "cuda" if engine.device.startswith("cuda") else "cpu"
        self.many = config.outer.networks > 1 or config.network.source == "random"
        samples = len(config.class_ids(dataset.classes)) * config.synthetic.samples_per_class
        self.shapes = ((samples, *dataset.input_shape), (samples, outputs))
        self.timed = min(samples, _MAX_SAMPLES_TIMED)
        no_matter = {"adjoint", "threads"} | ({"tf32"} if self.kind == "cpu" else set())
        self.name = json.dumps(
            [
                torch.__version__, platform.node(), os.cpu_count(), torch.get_num_threads(), *_card(engine.device), arch,
                config.network.args,
                network.shapes, self.shapes, config.inner.model_dump(), self.many, each, alike,
                has_compiler(engine), engine.model_dump(exclude=no_matter), config.outer.batch,
            ],
            sort_keys=True,
        )  # fmt: skip

    def choose(self) -> Choice:
        """Time every way, the plainest first, in the arithmetic that will be used."""
        if self.kind == "cuda":
            set_arithmetic(tf32=self.engine.tf32)
        seconds: dict[tuple[str, str], float] = {}
        steps = dict(self._ways())
        for way, step in steps.items():
            seconds[way] = self._seconds(step, min(seconds.values(), default=math.inf))
        way, best = min(seconds, key=lambda way: seconds[way]), min(seconds.values())
        asked, each = self.engine.compile == "max", self.each * best
        long = each > MIN_SECONDS_EACH and self.alike * each > MIN_SECONDS_TO_COMPILE
        if asked or (self.engine.compile == "auto" and long and has_compiler(self.engine)):
            way = ("max", way[1])  # the fastest kernels as traced: to compile the others too takes half a minute for each
            steps[way] = self._step(*way)
            seconds[way] = self._seconds(steps[way], best)
            best = min(seconds.values())
        if not asked:
            way = next(way for way in steps if seconds[way] * _MARGIN <= best)
        return Choice(*way, self._networks(steps[way], seconds[way]), self._saved(way), self._outer_layout(way[0]))

    def _outer_layout(self, compiled: str) -> str:
        """Kernels for the outer loss."""
        if self.engine.outer_layout != "auto":
            return self.engine.outer_layout
        if compiled == "off":
            return "blocked"
        outer = TracedOuterLoss(self.network, self.engine.chunk, self.engine.bfloat16)
        size = outer.chunk_size(self.config.outer.batch, on_card=self.kind == "cuda")
        draw = generator("choose", "batch")
        x = torch.randn((size, *self.shapes[0][1:]), generator=draw).to(self.engine.device)
        y = torch.zeros(size, dtype=torch.int64, device=x.device)
        word = outer.measured_layout(self.network.flatten(), x, y)
        return word if word.strip("B/") else "blocked"

    def _ways(self) -> Iterator[tuple[tuple[str, str], InnerStep]]:
        compiles = {"auto": ["off", "trace"], "max": ["trace"]}.get(self.engine.compile, [self.engine.compile])
        for layout in self._layouts():
            for compiled in compiles if layout in LAYOUTS else [compiles[-1]]:
                yield (compiled, layout), self._step(compiled, layout)

    def _layouts(self) -> list[str]:
        if self.engine.layout != "auto":
            return [self.engine.layout]
        convolves = any(isinstance(m, nn.Conv2d) for m in self.network.module.modules())
        ways = list(LAYOUTS) if self.kind == "cpu" and convolves else ["blocked"]  # the others are kernels of a CPU
        if self.engine.compile == "off":
            return ways
        start, (x, y) = self.network.flatten(), self._samples()
        word = TracedStep(self.network, self.config.inner).measured_layout(start, x, y)
        return [*ways, word] if word.strip("B/") else ways

    def _samples(self) -> list[Tensor]:
        draw = generator("choose")
        return [torch.randn((self.timed, *rest), generator=draw).to(self.engine.device) for _, *rest in self.shapes]

    def _step(self, compiled: str, layout: str, networks: str = "loop") -> InnerStep:
        update = {"compile": compiled, "layout": layout, "networks": networks}
        engine = make_engine(self.network, self.config.inner, self.engine.model_copy(update=update))
        return engine.batched_step if networks == "batch" and engine.batched_step is not None else engine.step

    def _seconds(self, step: InnerStep, best: float, networks: int | None = None) -> float:
        """The least time of a step and its reverse, over a few; in proportion, where a step has more examples than are timed."""
        shortest, (x, y) = math.inf, self._samples()
        parts = self.shapes[0][0] / self.timed
        start = self.network.draw("xavier", 1.0, generator("choose", "network"))
        rate = torch.full((), 0.01, device=start.device)
        carry = step.begin(start if networks is None else start.expand(networks, -1).clone())
        d_after = tuple(torch.ones_like(t) for t in carry)
        run = _step_and_reverse(step, carry, x, y, rate, d_after)
        if getattr(step, "compiled", False):
            run()  # compiles, which is not what takes a step's time
        for _ in range(6):
            began = now(start.device)
            run()
            spent = now(start.device) - began
            shortest = min(shortest, spent)
            if spent > max(_PATIENCE, 2 * best / parts):
                break
        return parts * shortest

    def _networks(self, step: InnerStep, alone: float) -> str:
        if self.engine.networks != "auto":
            return self.engine.networks
        if not self.many or not self.network.vmappable or alone > _PATIENCE:
            return "loop"
        batched = self._step("trace" if isinstance(step, TracedStep) else "off", step.layout, "batch")
        try:
            together = self._seconds(batched, math.inf, _NETWORKS_TIMED) / _NETWORKS_TIMED
        except (RuntimeError, ValueError):  # a layer that torch.vmap has no rule for
            return "loop"
        return "batch" if together < _MARGIN * alone and self._agree(step, batched) else "loop"

    def _agree(self, step: InnerStep, batched: InnerStep) -> bool:
        """Whether networks side by side have the gradients that each has alone: torch.vmap is wrong for some layers."""
        x, y = self._samples()
        starts = torch.stack([self.network.draw("xavier", 1.0, generator("choose", "network", i)) for i in range(2)])
        rate = torch.full((), 0.01, device=starts.device)

        def gradients(step: InnerStep, start: Tensor) -> list[Tensor]:
            carry = step.begin(start)
            _, d_x, d_y, _ = step.record(carry, x, y, rate, 0)[1](tuple(torch.ones_like(t) for t in carry))
            return [d_x, d_y]

        together = gradients(batched, starts)
        alone = [a + b for a, b in zip(*(gradients(step, start) for start in starts), strict=True)]
        return all(float((a - b).norm()) <= _ROUNDING * float(b.norm()) for a, b in zip(together, alone, strict=True))

    def _saved(self, way: tuple[str, str]) -> int:
        """Bytes of one step's graph, by its trace; without one, as much as the network has weights."""
        step = TracedStep(self.network, self.config.inner, layout=self._step(*way).layout)
        start = self.network.flatten()
        x, y = (torch.empty(shape, device=start.device) for shape in self.shapes)
        graphs = step.graphs(step.begin(start), x, y, torch.zeros((), device=start.device))
        return 4 * self.network.size if graphs is None else graphs.saved_bytes


def _step_and_reverse(step: InnerStep, carry: Carry, x: Tensor, y: Tensor, rate: Tensor, d_after: Carry) -> Callable[[], object]:
    """A step and its reverse, as they will run: on a GPU recorded, if that is how."""

    def launched(*_: Tensor) -> tuple[Tensor, ...]:
        d_carry, d_x, d_y, d_rate = step.record(carry, x, y, rate, 0)[1](d_after)
        return *d_carry, d_x, d_y, d_rate

    if not isinstance(step, CapturedStep):
        return launched
    try:
        return Captured(launched, device=rate.device)
    except Exception:  # whatever cannot be recorded: `CapturedStep` says so as soon as it runs
        return launched


def _card(device: str) -> list[str]:
    """The model of a GPU, which a machine's name does not tell."""
    return [torch.cuda.get_device_name(device)] if device.startswith("cuda") else []

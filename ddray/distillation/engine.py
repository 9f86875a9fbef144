"""How a network is computed: the engine record turned into the steps and the loss that it asks for."""

from __future__ import annotations

import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddray.distillation.allocator import keep_freed_memory
from ddray.distillation.captured import CapturedStep
from ddray.distillation.config import EngineConfig, InnerConfig
from ddray.distillation.inner import InnerStep
from ddray.distillation.keys import parse
from ddray.distillation.outer import OuterLoss, RealBatch
from ddray.distillation.traced import TracedOuterLoss, TracedStep
from ddray.distillation.unroll import Adjoint, Synthetic, outer_gradient
from ddray.errors import RequestError
from ddray.networks import Network

MIN_STEPS_TO_TRACE = 3_000
"""Inner steps, in all, from which on tracing and timing pay; less work is done before they would have."""
MAX_NETWORKS_AT_ONCE = 20
"""Networks that are trained side by side; more would only wait for memory."""
_DECIDES = ("device", "compile", "layout", "networks")  # settings of a record that matter to whoever trains without a gradient


@dataclass(frozen=True)
class Engine:
    """One way to compute a network's training and judgement.

    Attributes:
        step: the inner step of one network.
        batched_step: the inner step of several networks side by side; None: they go one after another.
        outer: the loss on real examples.
        adjoint: what the gradient's memory is spent on.
        tf32: whether a GPU may round the factors of products and convolutions; None: nothing computes on one.

    """

    step: InnerStep
    batched_step: InnerStep | None
    outer: OuterLoss
    adjoint: Adjoint
    tf32: bool | None = None

    @property
    def network(self) -> Network:
        """What is trained."""
        return self.step.network

    def outer_gradient(
        self, step: InnerStep, start: Tensor, synthetic: Synthetic, order: Sequence[int], batch: RealBatch, seed: int, window: range
    ) -> tuple[Tensor, Tensor, Synthetic]:
        """`ddray.distillation.unroll.outer_gradient` in this engine's way: weights, losses, and the gradient."""
        self.arrange()
        if isinstance(step, CapturedStep):
            return step.outer_gradient(start, synthetic, order, batch, adjoint=self.adjoint, window=window, outer=self.outer)
        return outer_gradient(step, start, synthetic, order, batch, seed, adjoint=self.adjoint, window=window, outer=self.outer)

    def groups(self, starts: Iterable[Tensor]) -> Iterator[tuple[InnerStep, Tensor]]:
        """Initial weights [P] as they are to be trained: alone, or stacked [k, P], each with the step for it."""
        if self.batched_step is None:
            yield from ((self.step, start) for start in starts)
            return
        remaining = iter(starts)
        while group := list(islice(remaining, MAX_NETWORKS_AT_ONCE)):
            yield (self.batched_step, torch.stack(group)) if len(group) > 1 else (self.step, group[0])

    def arrange(self) -> None:
        """Let a GPU compute as this engine's record says, and a CPU keep what is freed, from now on and in this process."""
        if self.tf32 is not None:
            set_arithmetic(tf32=self.tf32)
        else:
            keep_freed_memory()


def make_engine(network: Network, inner: InnerConfig | None = None, config: EngineConfig | None = None) -> Engine:
    """The engine that a record names; what it leaves open (`auto`) is done in the plainest way.

    Raises:
        RequestError: a compile mode that this machine lacks.

    """
    config = config or EngineConfig()
    check_compile(config)
    layout, outer_layout = ("blocked" if word == "auto" else word for word in (config.layout, config.outer_layout))
    written, compiled = config.compile in ("off", "auto"), config.compile == "max"
    on_card = next(network.module.parameters()).is_cuda

    def step(*, batched: bool) -> InnerStep:
        if written:
            return InnerStep(network, inner, batched=batched, layout=layout)
        kind = CapturedStep if on_card and not network.stochastic else TracedStep
        return kind(network, inner, batched=batched, layout=layout, compiled=compiled)

    side_by_side = config.networks == "batch" and network.vmappable
    outer = OuterLoss if written else partial(TracedOuterLoss, compiled=compiled, layout=outer_layout)
    return Engine(
        step(batched=False),
        step(batched=True) if side_by_side else None,
        outer(network, config.chunk, config.bfloat16),
        "recompute" if config.adjoint == "auto" else config.adjoint,
        config.tf32 if on_card else None,
    )


def set_arithmetic(*, tf32: bool) -> None:
    """How a GPU computes in float32, in this process and from now on: the same from run to run, with all its bits or not."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.deterministic = True


def engine_for_scores(network: Network, inner: InnerConfig, recorded: Mapping[str, Any], steps: int) -> Engine:
    """What trains the networks of a score, `steps` inner steps in all: as the set was distilled, where that pays.

    Graphs run as they are, since no score is worth half a minute of compiling, and float32 has all its bits. Kernels that
    were timed on another kind of device say nothing of this one.

    Args:
        network: what is trained, where it is to be trained.
        inner: its optimiser.
        recorded: the engine record of a manifest.
        steps: how much there is to do.

    Raises:
        RequestError: a record that names no way to compute.

    """
    known = parse(EngineConfig, {key: recorded[key] for key in _DECIDES if key in recorded}, "engine.")
    if steps < MIN_STEPS_TO_TRACE or known.compile in ("off", "auto"):
        return make_engine(network, inner)
    here = next(network.module.parameters()).device.type
    layout = known.layout if known.device.partition(":")[0] == here else "blocked"
    return make_engine(network, inner, EngineConfig(compile="trace", layout=layout, networks=known.networks))


def resolve_device(device: str, key: str = "engine.device") -> str:
    """`auto` is the GPU where there is one.

    Args:
        device: as torch names it, or `auto`.
        key: what the user calls it.

    Raises:
        RequestError: a device that torch does not know or this machine does not have.

    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"(cpu|cuda|mps|xpu)(:\d+)?", device):
        raise RequestError(key, device, "auto, cpu, cuda, or cuda:N for one card of several")
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise RequestError(key, device, str(error).splitlines()[0]) from None
    return device


def check_compile(config: EngineConfig) -> None:
    """Refuse `max` where there is nothing to compile with."""
    if config.compile == "max" and not has_compiler(config):
        needs = "C compiler ($CC, else gcc), or not Triton" if config.device.startswith("cuda") else "C++ compiler ($CXX, else g++)"
        allowed = f"auto, off or trace: this machine has no {needs}, or not the headers of Python"
        raise RequestError("engine.compile", "max", allowed)


def has_compiler(config: EngineConfig) -> bool:
    """Whether inductor finds what it compiles with: a compiler, Python.h, and for a GPU Triton."""
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    if config.device.startswith("cuda"):
        found = any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang")))
        elsewhere = not torch.cuda.is_available()  # on a cluster, of which this machine says nothing
        return elsewhere or (found and headers.is_file() and find_spec("triton") is not None)
    usual = "clang++" if sys.platform == "darwin" else "g++"
    return headers.is_file() and shutil.which(os.environ.get("CXX", usual)) is not None

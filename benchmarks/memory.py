"""Peak memory of distillations, measured beside what the preflight predicts.

    python benchmarks/memory.py             LeNet for T = 30 and 300 by every adjoint, AlexCifarNet, ConvNet3
    python benchmarks/memory.py --large     ResNet-18 at 32×32 and AlexNet at 224×224
    python benchmarks/memory.py --device cuda

On noise in the shapes of the data. A figure is the most that a process of its own had resident over two outer steps, with its
imports; on a GPU that nothing else uses, the most that torch's allocator had reserved, and what CUDA itself takes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ddray.data import Dataset
from ddray.distillation.config import DistillConfig, EngineConfig
from ddray.distillation.distiller import Distiller
from ddray.distillation.preflight import needed
from ddray.distillation.streams import generator


@dataclass(frozen=True)
class Row:
    """One distillation: ten images a step, all passes over them."""

    arch: str
    shape: tuple[int, int, int]
    inner: int
    batch: int
    adjoint: str
    compile: str = "off"
    device: str = "cpu"

    def problem(self) -> tuple[Dataset, DistillConfig, EngineConfig]:
        """Its data, configuration and engine."""
        count, draw = self.batch + 200, generator("memory benchmark")
        x, y = torch.randint(256, (count, *self.shape), generator=draw, dtype=torch.uint8), torch.arange(count) % 10
        flat = {"synthetic.steps": 1, "synthetic.epochs": self.inner, "outer.batch": self.batch, "synthetic.lr": 1e-4}
        engine = {"device": self.device, "threads": 1, "layout": "blocked", "networks": "loop"}
        return (
            Dataset(x, y, x[:50], y[:50], name="noise"),
            DistillConfig.from_flat(flat),
            EngineConfig.model_validate(engine | {"adjoint": self.adjoint, "compile": self.compile}),
        )

    def predicted(self) -> float:
        """MB by the preflight."""
        dataset, config, engine = self.problem()
        return needed(dataset, self.arch, config, engine) / 2**20

    def measured(self) -> float:
        """MB that this process has had resident after two outer steps."""
        dataset, config, engine = self.problem()
        Distiller(dataset, self.arch, config, engine=engine).advance(2)
        if self.device != "cpu":
            torch.cuda.synchronize()
            free, card = torch.cuda.mem_get_info()  # nothing else may run there
            return (card - free - torch.cuda.memory_reserved() + torch.cuda.max_memory_reserved()) / 2**20
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024


GREY, COLOUR, LARGE = (1, 28, 28), (3, 32, 32), (3, 224, 224)
ROWS = [Row("LeNet", GREY, t, 1024, adjoint) for t in (30, 300) for adjoint in ("full", "recompute", "checkpoint")]
ROWS += [
    Row("AlexCifarNet", COLOUR, 10, 256, a, c) for a, c in (("recompute", "off"), ("full", "off"), ("full", "trace"))
]
ROWS += [Row("ConvNet3", COLOUR, 10, 256, a, c) for a, c in (("recompute", "off"), ("checkpoint", "trace"))]
LARGE_ROWS = [Row("ResNet18", COLOUR, 9, 128, a, c) for a, c in (("checkpoint", "off"), ("recompute", "trace"))]
LARGE_ROWS += [Row("AlexNet", LARGE, 4, 64, a, c) for a, c in (("checkpoint", "off"), ("full", "trace"))]


def main() -> None:
    """Print a table, or (as a child) one figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="the large networks")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    rows = [replace(row, device=arguments.device) for row in (LARGE_ROWS if arguments.large else ROWS)]
    if arguments.one is not None:
        print(rows[arguments.one].measured())
        return
    print(
        "| network | T | batch | adjoint | compile | predicted, MB | measured, MB | off by |\n|---|---|---|---|---|---|---|---|"
    )
    for number, row in enumerate(rows):
        command = [
            sys.executable,
            "-W",
            "ignore",
            __file__,
            "--one",
            str(number),
            *(["--large"] if arguments.large else []),
            *("--device", arguments.device),
        ]
        measured = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        predicted = row.predicted()
        print(f"| {row.arch} | {row.inner} | {row.batch} | {row.adjoint} | {row.compile} | {predicted:.0f} | {measured:.0f} | "
              f"{100 * (predicted / measured - 1):+.0f} % |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()

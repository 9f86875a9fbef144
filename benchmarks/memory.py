"""Peak memory of one outer step of LeNet on MNIST's shapes, for T inner steps.

    python benchmarks/memory.py             T = 30 and T = 300, every adjoint
Each figure is the peak resident size of a process of its own (getrusage), so that nothing is carried over.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys

import torch

from ddray.distillation.inner import InnerStep
from ddray.distillation.outer import RealBatch
from ddray.distillation.streams import generator
from ddray.distillation.unroll import ADJOINTS, Adjoint, Synthetic, differentiate
from ddray.networks import build


def main() -> None:
    """Print a table, or (as a child) one figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=2, metavar=("ADJOINT", "T"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(peak(arguments.one[0], int(arguments.one[1])))
        return
    print("adjoint      T    peak MB")
    peaks = {}
    for adjoint in ADJOINTS:
        for steps in (30, 300):
            command = [sys.executable, __file__, "--one", adjoint, str(steps)]
            peaks[adjoint, steps] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            print(f"{adjoint:10} {steps:4} {peaks[adjoint, steps]:9.0f}", flush=True)
    growth = peaks["recompute", 300] - peaks["recompute", 30]
    print(f"recompute: T = 300 takes {growth:.0f} MB more than T = 30")


def peak(adjoint: Adjoint, steps: int) -> float:
    """Peak resident MB of this process after two outer steps."""
    torch.set_num_threads(1)
    draw, network = generator("memory benchmark"), build("LeNet", (1, 28, 28), 10)
    synthetic = Synthetic(
        torch.randn(10, 10, 1, 28, 28, generator=draw),
        torch.eye(10).expand(10, -1, -1).clone(),
        torch.full((steps,), 0.01),
    )
    batch = RealBatch(torch.randn(1024, 1, 28, 28, generator=draw), torch.randint(10, (1024,), generator=draw))
    for _ in range(2):
        start, order = network.draw("xavier", 1.0, draw), [t % 10 for t in range(steps)]
        differentiate(InnerStep(network), start, synthetic, order, batch, adjoint=adjoint)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    main()

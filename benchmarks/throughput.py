"""Trials per hour: a sweep of 16 distillations, two at a time on a thread each, against the original, one after another on two.

    DDRAY_DATA=DIR python benchmarks/throughput.py [--steps 300]

Each is LeNet on MNIST, S = 10, E = 3, batch 1024. The sweep is whole but for its winner's confirmation: Ray's start, data, tracing,
one look at the validation split and a score by 20 networks per trial, records. The original is timed for `--steps` outer steps with
its loader, after ten that do not count, and multiplied: it neither looks nor records.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch
from original import Original, from_loader
from sweep_overhead import sweep

SPACE = """
dataset: MNIST
arch: LeNet
fixed: {network.source: random, synthetic.steps: 10, synthetic.epochs: 3, outer.steps: %d, outer.batch: 1024, outer.score_every: %d}
search:
  outer.lr: {float: [0.001, 0.01], log: true}
trials: 16
"""
TRIALS, WORKERS = 16, 8


def main() -> None:
    """Measure both and print their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="outer steps of a distillation")
    steps = parser.parse_args().steps
    theirs = TRIALS * original(steps)
    with tempfile.TemporaryDirectory() as directory:
        space = Path(directory) / "equal.yaml"
        space.write_text(SPACE % (steps, steps))
        whole, spent, _, engine = sweep(space, Path(directory), Path(os.environ["DDRAY_DATA"]))
    print(f"original {theirs:7.1f} s for {TRIALS} distillations of {steps} steps: {3600 * TRIALS / theirs:.0f} an hour")
    print(f"sweep    {whole:7.1f} s, start-up included ({spent:.1f} s without): {3600 * TRIALS / whole:.0f} trials an hour")
    print(f"ratio    {theirs / whole:7.2f} ({theirs / spent:.2f} without start-up); engine {engine}")


def original(steps: int) -> float:
    """Seconds of one distillation on two threads."""
    torch.set_num_threads(2)
    distiller = Original("LeNet", 10, 3, from_loader("MNIST", 1024, WORKERS))
    for _ in range(10):
        distiller.outer_step()
    began = time.monotonic()
    for _ in range(steps):
        distiller.outer_step()
    return time.monotonic() - began


if __name__ == "__main__":
    main()

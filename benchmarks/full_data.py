"""What a network reaches when it is trained on all of the data: the upper end of every row of a table.

    DDRAY_DATA=DIR python benchmarks/full_data.py TREC6 TextLSTM2 [--set data.max_length=30] [--epochs 60] [--test]

Adam on minibatches, augmented as the outer batches of a distillation are; rate and epoch are chosen on the validation split. With
`--test` the chosen network is looked at on the test split once, and the look is a line of benchmarks/test_ledger.jsonl.
"""

from __future__ import annotations

import argparse
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from reproduce import append, commit
from torch import Tensor

from ddray.data import Dataset, load
from ddray.distillation import DistillConfig
from ddray.distillation.evaluate import Judge, score_from
from ddray.distillation.keys import parse_assignment
from ddray.distillation.outer import hard_loss
from ddray.distillation.problem import check_problem
from ddray.distillation.streams import generator, seed_of
from ddray.networks import Network

RATES = (0.0005, 0.002, 0.008)
BATCH = 64


def main() -> int:
    """Train by every rate, choose, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("arch")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--test", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = dict(map(parse_assignment, arguments.settings))
    config = DistillConfig.from_flat(settings)
    dataset = load(arguments.dataset).presented(config.data.text)
    network, _ = check_problem(dataset, arguments.arch, config)
    began = time.monotonic()
    judge = Judge(dataset, "validation")
    found = max(
        (best_epoch(network, dataset, config, judge, rate, arguments.epochs) for rate in RATES), key=lambda f: f[0]
    )
    accuracy, weights, chosen = found
    what = f"{arguments.dataset} × {arguments.arch}, all {len(dataset.train):,} training examples"
    print(f"{what}: validation {100 * accuracy:.2f} % ({chosen}), {(time.monotonic() - began) / 60:.0f} min")
    if arguments.test:
        test = Judge(dataset, "test")
        score = score_from([test.accuracy(network, weights)], len(test.y), "as-distilled", "test")
        print(f"{what}: test {100 * score.mean:.2f} %")
        append(
            {
                "row": f"full {arguments.dataset} {arguments.arch}",
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "commit": commit(),
                "settings": settings,
                "chosen": chosen,
                "runs": [
                    {
                        "validation": {"mean": accuracy},
                        "test": score.model_dump(mode="json", exclude={"accuracies", "date", "protocol"}),
                    }
                ],
            }
        )
    return 0


def best_epoch(
    network: Network, dataset: Dataset, config: DistillConfig, judge: Judge, rate: float, epochs: int
) -> tuple[float, Tensor, dict[str, Any]]:
    """The validation accuracy and weights of the best epoch of one run."""
    weights = network.draw(config.network.law, config.network.gain, generator("full data")).requires_grad_()
    optimiser = torch.optim.Adam([weights], lr=rate)
    best: tuple[float, Tensor, dict[str, Any]] = (0.0, weights.detach().clone(), {})
    for epoch in range(epochs):
        order = torch.randperm(len(dataset.train), generator=generator("full data", epoch))
        for index, chosen in enumerate(order.split(BATCH)):
            x, y = dataset.train.x[chosen], dataset.train.y[chosen]
            if config.data.augment:
                x = dataset.augment(x, generator("full data", "augmentation", epoch, index))
            loss = hard_loss(network(weights, dataset.normalise(x), seed=seed_of("full data", epoch, index)), y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        accuracy = judge.accuracy(network, weights.detach())
        print(f"rate {rate:g} epoch {epoch + 1}: validation {100 * accuracy:.2f} %", file=sys.stderr, flush=True)
        if accuracy > best[0]:
            best = accuracy, weights.detach().clone(), {"rate": rate, "epoch": epoch + 1}
    return best


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    sys.exit(main())

"""How good is a set: train networks on it, count what they get right."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Literal

import torch
from torch import Tensor

from ddray.data import Dataset, TextDataset
from ddray.distillation.config import NetworkConfig, Record
from ddray.distillation.engine import Engine
from ddray.distillation.inner import soft_loss
from ddray.distillation.outer import predictions
from ddray.distillation.pools import ComparedPools
from ddray.distillation.streams import NetworkSet, generator, network_generator, seed_of
from ddray.distillation.unroll import Synthetic, train_as_distilled
from ddray.networks import Network, TakesWords

Protocol = Literal["as-distilled", "retrain", "decoded"]
"""The recorded schedule; ordinary training; the recorded schedule on the words nearest to what was distilled."""
MOST: dict[Protocol, int] = {"retrain": 5, "decoded": 20}
"""The most networks of the lesser scores: retraining takes hundreds of epochs, where a recorded schedule has a few steps."""
SplitName = Literal["validation", "test"]
Part = Literal["whole", "choosing", "telling"]
"""Of a split: all of it, or one of two halves."""
_PARTS: dict[Part, slice] = {"whole": slice(None), "choosing": slice(0, None, 2), "telling": slice(1, None, 2)}
JUDGING_CHUNK = 512
"""Examples that are judged at a time."""


class Score(Record):
    """The accuracy of networks trained on a set, each accuracy in [0, 1].

    Several networks are told as mean ± std over networks. A single known network has one accuracy; its uncertainty is
    over examples (Wilson's 95 % interval), and `std` is None. Networks whose weights did not stay finite are `diverged`:
    they count as 0. `otherwise` says what was not as the set records it: another rate, number of epochs or architecture.
    """

    protocol: Protocol
    split: SplitName
    mean: float
    std: float | None
    n: int
    examples: int
    accuracies: tuple[float, ...]
    interval: tuple[float, float] | None = None
    diverged: int = 0
    date: str
    otherwise: str | None = None

    def __str__(self) -> str:
        """One line, in per cent."""
        lost = f", {self.diverged} of {self.n} diverged" if self.diverged else ""
        what = f"{self.protocol}, {self.split}{lost}{f'; with {self.otherwise}' if self.otherwise else ''}"
        if self.std is not None:
            return f"{100 * self.mean:.2f} ± {100 * self.std:.2f} % (n = {self.n} networks; {what})"
        low, high = self.interval or (self.mean, self.mean)
        return f"{100 * self.mean:.2f} % (one network, 95 % interval {100 * low:.2f} to {100 * high:.2f}; {what})"


def score_from(
    accuracies: Sequence[float], examples: int, protocol: Protocol, split: SplitName, diverged: int = 0
) -> Score:
    """Summarise the accuracies of n networks on `examples` examples, of whom `diverged` have no finite weights."""
    n, mean = len(accuracies), sum(accuracies) / len(accuracies)
    several = n > 1
    std = math.sqrt(sum((a - mean) ** 2 for a in accuracies) / (n - 1)) if several else None
    return Score(
        protocol=protocol,
        split=split,
        mean=mean,
        std=std,
        n=n,
        examples=examples,
        accuracies=tuple(accuracies),
        interval=None if several else wilson(mean, examples),
        diverged=diverged,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval for a share observed over n independent examples; z = 1.96 for 95 %."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def known_starts(network: Network, config: NetworkConfig, seed: int) -> Tensor | None:
    """The weights [starts, P] that a `fixed` source begins from, decided by `seed`; None for a `random` source."""
    if config.source == "random":
        return None
    return torch.stack([network.draw(config.law, config.gain, _known(seed, index)) for index in range(config.starts)])


def starts_to_score(
    network: Network, config: NetworkConfig, known: Tensor | None, networks: NetworkSet, n: int
) -> Iterable[Tensor]:
    """Initial weights [P] of the networks to score on: the known ones, or n of an evaluation set, drawn one by one."""
    if known is not None:
        return known.unbind()
    return (network.draw(config.law, config.gain, network_generator(networks, index)) for index in range(n))


def retrain(
    network: Network, start: Tensor, synthetic: Synthetic, *, epochs: int = 300, lr: float = 0.01, batch: int = 256
) -> Tensor:
    """The weights [P] after ordinary training on the stored samples, their steps and rates forgotten.

    SGD with momentum 0.9 and weight decay 5e-4, the rate cut by ten at half of the epochs (the protocol of Zhao et al.,
    "Dataset Condensation with Gradient Matching", 2021); minibatches in a fixed shuffled order.
    """
    inputs, labels = synthetic.inputs.flatten(0, 1), synthetic.labels.flatten(0, 1)
    weights = start.detach().clone().requires_grad_()
    optimiser = torch.optim.SGD([weights], lr=lr, momentum=0.9, weight_decay=5e-4)
    for epoch in range(epochs):
        if epoch == epochs // 2:
            optimiser.param_groups[0]["lr"] = lr / 10
        shuffle = torch.Generator().manual_seed(seed_of("retrain", epoch))
        for chosen in torch.randperm(len(inputs), generator=shuffle).to(inputs.device).split(batch):
            optimiser.zero_grad()
            loss = soft_loss(network(weights, inputs[chosen], seed=seed_of("retrain", epoch)), labels[chosen])
            loss.backward()
            optimiser.step()
    return weights.detach()


class Judge:
    """A split of a dataset, or half of one, on which any number of networks are judged.

    Images are normalised once, words looked up as needed.

    The examples lie in a shuffled order that is always the same: to a network with batch statistics, a chunk of one class
    would look like nothing it was trained on.
    """

    def __init__(self, dataset: Dataset, split: SplitName, part: Part = "whole") -> None:
        self.split = split
        examples = dataset.split(split)
        order = torch.randperm(len(examples.y), generator=generator("judge", split))[_PARTS[part]].to(examples.y.device)
        self.x, self.y = examples.x[order.to(examples.x.device)], examples.y[order]
        self._text = dataset if isinstance(dataset, TextDataset) else None
        if self._text is None:
            self.x = dataset.normalise(self.x)

    @torch.no_grad()
    def accuracy(self, network: Network, weights: Tensor) -> float:
        """The share of the split's examples that the network with weights [P] gets right; 0 if they are not finite."""
        if not bool(torch.isfinite(weights).all()):
            return 0.0
        logits = self._logits(network, weights)
        with ComparedPools():
            right: int = sum(
                int((predictions(logits(x)) == y).sum())
                for x, y in zip(self.x.split(JUDGING_CHUNK), self.y.split(JUDGING_CHUNK), strict=True)
            )
        return right / len(self.y)

    def _logits(self, network: Network, weights: Tensor) -> Callable[[Tensor], Tensor]:
        """Examples as they are kept to logits; a network that takes words as they are is given them so."""
        if self._text is None:
            return lambda x: network(weights, x)
        text, module = self._text, network.module
        if isinstance(module, TakesWords):
            network.install(weights)
            return module.by_words(text.vectors)
        return lambda ids: network(weights, text.normalise(ids))

    def score(
        self,
        engine: Engine,
        starts: Iterable[Tensor],
        synthetic: Synthetic,
        order: Sequence[int],
        protocol: Protocol = "as-distilled",
    ) -> Score:
        """Train a network from each start on the set and summarise their accuracies."""
        return judge_all([self], engine, starts, synthetic, order, protocol)[0]


def part_for(split: SplitName, networks: NetworkSet, *, known: bool) -> Part:
    """The part of a split that an evaluation set of networks is judged on: of test, which chooses nothing, the whole.

    What chooses is never what is told. Fresh networks of sets A, B and C differ; known ones are the same in each, so that
    those of A are judged on one half of the examples, and those of B and C on the other.
    """
    if split == "test" or not known:
        return "whole"
    return "choosing" if networks == "A" else "telling"


def judge_all(
    judges: Sequence[Judge],
    engine: Engine,
    starts: Iterable[Tensor],
    synthetic: Synthetic,
    order: Sequence[int],
    protocol: Protocol = "as-distilled",
    first: int = 0,
) -> tuple[Score, ...]:
    """Train a network from each start on the set, once, and summarise their accuracies on several splits.

    Network i of them is number `first` + i: its dropout masks follow from that.
    """
    accuracies: list[list[float]] = [[] for _ in judges]
    diverged = 0
    engine.arrange()
    for weights in _trained(engine, starts, synthetic, order, protocol, first):
        diverged += not bool(torch.isfinite(weights).all())
        for judge, found in zip(judges, accuracies, strict=True):
            found.append(judge.accuracy(engine.network, weights))
    return tuple(
        score_from(found, len(judge.y), protocol, judge.split, diverged)
        for judge, found in zip(judges, accuracies, strict=True)
    )


def _trained(
    engine: Engine, starts: Iterable[Tensor], synthetic: Synthetic, order: Sequence[int], protocol: Protocol, first: int
) -> Iterator[Tensor]:
    if protocol == "retrain":
        yield from (retrain(engine.network, start, synthetic) for start in starts)
        return
    for group, (step, start) in enumerate(engine.groups(starts)):
        weights = train_as_distilled(step, start, synthetic, order, seed_of("evaluation dropout", first + group))
        yield from weights.unbind() if weights.dim() == 2 else [weights]


def _known(seed: int, index: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(seed, "known network", index))


def constant_rates(rate: float, steps: int, like: Tensor) -> Tensor:
    """`steps` equal learning rates."""
    return torch.full((steps,), rate, dtype=like.dtype, device=like.device)

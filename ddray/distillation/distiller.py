"""The outer loop: improve the set by the gradient through the inner loop, one resumable step at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NoReturn

import torch
from torch import Tensor

from ddray.data import RealData
from ddray.distillation.average import Average
from ddray.distillation.clip import Clip
from ddray.distillation.config import DistillConfig, EngineConfig, OuterConfig
from ddray.distillation.engine import make_engine, resolve_device
from ddray.distillation.evaluate import Judge, Score, known_starts, starts_to_score
from ddray.distillation.initial import initial_tensors
from ddray.distillation.inner import InnerStep
from ddray.distillation.labels import sample_classes
from ddray.distillation.outer import RealBatch
from ddray.distillation.problem import check_problem
from ddray.distillation.real import RealBatches
from ddray.distillation.streams import NETWORKS, NetworkSet, generator, seed_of
from ddray.distillation.unroll import Synthetic, diverges_at
from ddray.errors import Diverged


@dataclass(frozen=True)
class Best:
    """The best set seen so far: the outer step it was seen after, its score on networks A, and its raw tensors."""

    step: int
    score: float
    raw: dict[str, Tensor]


class Distiller:
    """One distillation, advanced step by step.

    Everything random follows from (seed, purpose, step), so a distiller restored from `state_dict` goes on exactly as one
    that was never interrupted: bit for bit on a CPU.

    Args:
        dataset: its training split teaches, its validation split chooses; the test split is not looked at.
        arch: the architecture's name or dotted path (see `ddray.networks.build`).
        config: what to compute.
        seed: decides the initial set, the known networks, the fresh networks and the order of real examples.
        engine: how to compute it.

    Attributes:
        step: outer steps done.
        best: the best set seen by `score`, or None.
        loss: outer loss of the last step, averaged over its networks.

    """

    def __init__(
        self, dataset: RealData, arch: str, config: DistillConfig, *, seed: int = 0, engine: EngineConfig | None = None
    ) -> None:
        self.config, self.arch, self.seed, self.engine = config, arch, seed, engine or EngineConfig()
        self.device = torch.device(resolve_device(self.engine.device))
        if self.engine.threads:
            torch.set_num_threads(self.engine.threads)
        self.dataset = dataset.presented(config.data.text).to(self.device)
        self.network, self.outputs = check_problem(dataset, arch, config)
        self.network.to(self.device)
        self._engine = make_engine(self.network, config.inner, self.engine)
        self.classes = sample_classes(config.class_ids(dataset.classes), config.synthetic.samples_per_class)
        self.order = config.step_order()
        self.known = known_starts(self.network, config.network, seed)
        self.batches = RealBatches(self.dataset, config.outer.batch, config.data.augment, seed)
        self._raw = initial_tensors(config, self.dataset, self.classes, self.outputs, len(self.order), seed)
        self._average = Average(config.outer.average, self._raw)
        self._optimiser = self._make_optimiser()
        self._clip = Clip(config.outer)
        self._judge: Judge | None = None
        self._ahead: tuple[int, tuple[RealBatch, Iterable[Tensor]]] | None = None
        self.step = 0
        self.loss = math.nan
        self.best: Best | None = None

    def synthetic(self) -> Synthetic:
        """The set that learns, as the inner loop sees it."""
        return materialise(self._raw, self.config)

    def advance(self, steps: int = 1) -> None:
        """Take `steps` outer steps.

        Raises:
            Diverged: a loss, gradient or weight is no longer finite; the set stays as it was before that step.

        """
        for _ in range(steps):
            self._outer_step()

    def _outer_step(self) -> None:
        synthetic = self.synthetic()
        batch, starts = self._begin(self.step)
        seen = Synthetic(synthetic.inputs.detach(), synthetic.labels.detach(), synthetic.rates.detach())
        totals = [torch.zeros_like(t) for t in (seen.inputs, seen.labels, seen.rates)]
        networks, trained, total = self.config.outer.networks, [], torch.zeros((), device=self.device)
        for index, (step, start) in enumerate(self._groups(starts)):
            dropout, window = seed_of(self.seed, "dropout", self.step, index), self._window(index)
            weights, losses, slope = self._engine.unrolled(step, start, seen, self.order, batch, dropout, window)
            trained.append(torch.isfinite(weights).all())
            total += losses.sum() / networks
            for part, gradient in zip(totals, (slope.inputs, slope.labels, slope.rates), strict=True):
                part += gradient / networks
        if self.device.type == "cuda":  # while it computes, the next step is drawn
            self._ahead = self.step + 1, self._drawn(self.step + 1)
        loss = self._require_finite(total, totals, trained, seen)
        self._update(synthetic, totals)
        self.loss = loss
        self.step += 1
        self._average.follow(self.step)

    def _begin(self, step: int) -> tuple[RealBatch, Iterable[Tensor]]:
        """The real batch of an outer step, and the initial weights of its networks, drawn one by one or ahead."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == step:
            return ahead[1]
        return self.batches.at(step), (self._start(step, index) for index in range(self.config.outer.networks))

    def _drawn(self, step: int) -> tuple[RealBatch, Iterable[Tensor]]:
        batch, starts = self._begin(step)
        return batch, list(starts)

    def _groups(self, starts: Iterable[Tensor]) -> Iterator[tuple[InnerStep, Tensor]]:
        """Networks alone or together; those with windows of their own go alone."""
        if self.config.outer.window is None:
            return self._engine.groups(starts)
        return ((self._engine.step, start) for start in starts)

    def _start(self, step: int, index: int) -> Tensor:
        """Initial weights of network `index` of an outer step."""
        if self.known is not None:
            return self.known[(step * self.config.outer.networks + index) % len(self.known)]
        law = self.config.network
        return self.network.draw(law.law, law.gain, generator(self.seed, "network", step, index))

    def _window(self, index: int) -> range:
        """The inner steps that the gradient of network `index` goes through: all, or a window that ends at random."""
        steps, length = self.config.outer.unroll_steps or len(self.order), self.config.seen_steps
        drawn = generator(self.seed, "window", self.step, index)
        end = int(torch.randint(length, steps + 1, (), generator=drawn))
        return range(end - length, end)

    def _require_finite(
        self, loss: Tensor, gradients: list[Tensor], trained: list[Tensor], synthetic: Synthetic
    ) -> float:
        """The loss, if it, the weights that it was taken at and its gradients are all finite; the device is asked once.

        Args:
            loss: a scalar.
            gradients: of inputs, labels and rates.
            trained: whether each network's weights, or those of several side by side, stayed finite.
            synthetic: what they were trained on.

        """
        found = torch.stack([loss, *trained, *(torch.isfinite(gradient).all() for gradient in gradients)]).tolist()
        value, finite = found[0], found[1:]
        if not all(finite[: len(trained)]):
            self._explain(finite.index(0.0), synthetic)
        if not math.isfinite(value):
            raise Diverged("the outer loss", self.step)
        for name, good in zip(("inputs", "labels", "learning rates"), finite[len(trained) :], strict=True):
            if not good:
                raise Diverged(f"the gradient of the {name}", self.step)
        return float(value)

    def _explain(self, index: int, synthetic: Synthetic) -> NoReturn:
        """Train a network of this step again, to find where its weights ceased to be finite."""
        starts = (self._start(self.step, i) for i in range(self.config.outer.networks))
        step, start = next(islice(self._groups(starts), index, None))
        dropout = seed_of(self.seed, "dropout", self.step, index)
        raise Diverged("an inner weight", self.step, diverges_at(step, start, synthetic, self.order, dropout))

    def _update(self, synthetic: Synthetic, gradients: list[Tensor]) -> None:
        """Carry the gradients of what the loss sees back to the raw tensors, and let Adam step."""
        outputs = (synthetic.inputs, synthetic.labels, synthetic.rates)
        live = [(output, slope) for output, slope in zip(outputs, gradients, strict=True) if output.requires_grad]
        self._optimiser.zero_grad()
        torch.autograd.backward([output for output, _ in live], [slope for _, slope in live])
        self._clip({name: raw.grad for name, raw in self._raw.items() if raw.grad is not None})
        factor = decay(self.config.outer, self.step)
        for group in self._optimiser.param_groups:
            group["lr"] = group["base_lr"] * factor
        self._optimiser.step()

    def score(self) -> Score:
        """Score the set as it is on the validation split with networks A, and remember it if it is the best so far.

        A set on which no network's weights stay finite is never the best.
        """
        score = self.judge(self.synthetic_now(), "A")
        if score.diverged < score.n and (self.best is None or score.mean > self.best.score):
            kept = {name: value.clone() for name, value in self._average.values.items()}
            self.best = Best(self.step, score.mean, kept)
        return score

    def judge(self, synthetic: Synthetic, networks: NetworkSet) -> Score:
        """Score any set of this problem on the validation split with an evaluation set of networks."""
        self._judge = self._judge or Judge(self.dataset, "validation")
        starts = starts_to_score(self.network, self.config.network, self.known, networks, NETWORKS[networks])
        return self._judge.score(self._engine, starts, synthetic, self.order)

    @torch.no_grad()
    def synthetic_now(self) -> Synthetic:
        """The set as it would be kept now: itself, or its average over outer steps (`outer.average`); detached."""
        return materialise(self._average.values, self.config)

    @torch.no_grad()
    def synthetic_best(self) -> Synthetic:
        """The best set seen by `score`; the present one if there was no look yet."""
        return self.synthetic_now() if self.best is None else materialise(self.best.raw, self.config)

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on: tensors by name, and plain numbers."""
        state: dict[str, Any] = {"step": self.step, "loss": self.loss}
        state |= {f"norm.{name}": average for name, average in self._clip.averages.items()}
        state |= {f"raw.{name}": raw.detach() for name, raw in self._raw.items()}
        if self.config.outer.average:
            state |= {f"average.{name}": value for name, value in self._average.values.items()}
        for name, raw in self._raw.items():
            state |= {f"adam.{name}.{key}": value for key, value in self._optimiser.state[raw].items()}
        if self.best is not None:
            state |= {"best.step": self.best.step, "best.score": self.best.score}
            state |= {f"best.raw.{name}": raw for name, raw in self.best.raw.items()}
        return state

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of a distiller of the same problem, as given by `state_dict`."""
        self.step, self.loss = int(state["step"]), float(state["loss"])
        for name, raw in self._raw.items():
            raw.copy_(state[f"raw.{name}"])
            if self.config.outer.average:
                self._average.values[name].copy_(state[f"average.{name}"])
            prefix = f"adam.{name}."
            moments = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            # Adam counts its steps on the CPU, unless it is one kernel of a GPU; the rest lies where the tensor does.
            counts_at = self.device if self._optimiser.defaults["fused"] else "cpu"
            self._optimiser.state[raw] = {
                key: value.to(counts_at if key == "step" else self.device, copy=True) for key, value in moments.items()
            }
        self._clip.averages = {key.removeprefix("norm."): state[key] for key in state if key.startswith("norm.")}
        self.best = self._ahead = None
        if "best.step" in state:
            best = {name: state[f"best.raw.{name}"].to(self.device) for name in self._raw}
            self.best = Best(int(state["best.step"]), float(state["best.score"]), best)

    def _make_optimiser(self) -> torch.optim.Adam:
        outer = self.config.outer
        factors = {"inputs": 1.0, "labels": outer.label_lr, "rates": outer.rate_lr}
        groups = [
            {"params": [raw], "base_lr": outer.lr * factors[name], "lr": outer.lr * factors[name]}
            for name, raw in self._raw.items()
            if raw.requires_grad
        ]
        return torch.optim.Adam(groups, betas=(outer.beta1, outer.beta2), fused=self.device.type == "cuda")


def materialise(raw: dict[str, Tensor], config: DistillConfig) -> Synthetic:
    """Raw tensors as the loss sees them: labels through the softmax if there is one, rates through softplus."""
    labels = torch.softmax(raw["labels"], dim=-1) if config.labels.softmax else raw["labels"] * 1.0
    return Synthetic(raw["inputs"] * 1.0, labels, torch.nn.functional.softplus(raw["rates"]))


def decay(outer: OuterConfig, step: int) -> float:
    """The factor on the outer learning rate at an outer step."""
    match outer.decay:
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(step / outer.steps, 1.0)))
        case "step":
            return float(outer.decay_factor ** (step // outer.decay_every))
        case "none":
            return 1.0

"""The outer loop: improve the set by the gradient through the inner loop, one resumable step at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NoReturn

import torch
from torch import Tensor

from ddray.data import RealData
from ddray.distillation import state
from ddray.distillation.average import Average
from ddray.distillation.clip import Clip
from ddray.distillation.config import DistillConfig, EngineConfig, OuterConfig
from ddray.distillation.draws import Draws
from ddray.distillation.engine import make_engine, resolve_device
from ddray.distillation.evaluate import Judge, Part, Score, known_starts, part_for, starts_to_score
from ddray.distillation.initial import initial_tensors
from ddray.distillation.inner import InnerStep
from ddray.distillation.labels import sample_classes
from ddray.distillation.problem import check_problem
from ddray.distillation.real import RealBatches
from ddray.distillation.state import Best
from ddray.distillation.streams import NETWORKS, NetworkSet
from ddray.distillation.unroll import Synthetic, diverges_at
from ddray.errors import Diverged


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
        loss: outer loss of the last step, averaged over its networks.
        best: the best set seen by `score`, or None.
        raw: what is learned, by name; `synthetic` gives it as the inner loop sees it.
        average: its average over outer steps, or itself.
        optimiser: Adam of the outer loop.
        clip: what shortens the outer gradient.

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
        self._draws = Draws(self.network, config, self.batches, self.known, seed)
        self.raw = initial_tensors(config, self.dataset, self.classes, self.outputs, len(self.order), seed)
        self.average = Average(config.outer.average, self.raw)
        self.optimiser = self._make_optimiser()
        self.clip = Clip(config.outer)
        self._judges: dict[Part, Judge] = {}
        self.step = 0
        self.loss = math.nan
        self.best: Best | None = None

    def synthetic(self) -> Synthetic:
        """The set that learns, as the inner loop sees it."""
        return materialise(self.raw, self.config)

    def advance(self, steps: int = 1) -> None:
        """Take `steps` outer steps.

        Raises:
            Diverged: a loss, gradient or weight is no longer finite; the set stays as it was before that step.

        """
        for _ in range(steps):
            self._outer_step()

    def _outer_step(self) -> None:
        synthetic = self.synthetic()
        loss, gradient = self._mean_gradient(synthetic.detach())
        self._update(synthetic, gradient)
        self.loss = loss
        self.step += 1
        self.average.follow(self.step)

    def _mean_gradient(self, synthetic: Synthetic) -> tuple[float, Synthetic]:
        """The outer loss and its gradient with respect to the set, averaged over the networks of this outer step."""
        batch, starts = self._draws.at(self.step)
        count, finite = self.config.outer.networks, []
        mean_loss, mean_gradient = torch.zeros((), device=self.device), synthetic.zeros_like()
        for index, (step, start) in enumerate(self._groups(starts)):
            dropout, window = self._draws.dropout_seed(self.step, index), self._draws.window(self.step, index)
            weights, losses, gradient = self._engine.outer_gradient(step, start, synthetic, self.order, batch, dropout, window)
            finite.append(torch.isfinite(weights).all())
            mean_loss += losses.sum() / count
            for mean, part in zip(mean_gradient.parts(), gradient.parts(), strict=True):
                mean += part / count
        if self.device.type == "cuda":
            self._draws.draw_ahead(self.step + 1)
        return self._require_finite(mean_loss, mean_gradient, finite, synthetic), mean_gradient

    def _groups(self, starts: Iterable[Tensor]) -> Iterator[tuple[InnerStep, Tensor]]:
        """Networks alone or together; those with windows of their own go alone."""
        if self.config.outer.window is None:
            return self._engine.groups(starts)
        return ((self._engine.step, start) for start in starts)

    def _require_finite(self, loss: Tensor, gradient: Synthetic, trained: list[Tensor], synthetic: Synthetic) -> float:
        """The loss, if it, the weights that it was taken at and its gradient are all finite; the device is asked once.

        Args:
            loss: a scalar.
            gradient: with respect to the set.
            trained: whether each network's weights, or those of several side by side, stayed finite.
            synthetic: what they were trained on.

        Raises:
            Diverged: something is not.

        """
        found = torch.stack([loss, *trained, *(torch.isfinite(part).all() for part in gradient.parts())]).tolist()
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
        starts = (self._draws.start(self.step, i) for i in range(self.config.outer.networks))
        step, start = next(islice(self._groups(starts), index, None))
        dropout = self._draws.dropout_seed(self.step, index)
        raise Diverged("an inner weight", self.step, diverges_at(step, start, synthetic, self.order, dropout))

    def _update(self, synthetic: Synthetic, gradient: Synthetic) -> None:
        """Carry the gradient of what the loss sees back to the raw tensors, and let Adam step."""
        pairs = zip(synthetic.parts(), gradient.parts(), strict=True)
        learned = [(output, d_output) for output, d_output in pairs if output.requires_grad]
        self.optimiser.zero_grad()
        torch.autograd.backward([output for output, _ in learned], [d_output for _, d_output in learned])
        self.clip({name: raw.grad for name, raw in self.raw.items() if raw.grad is not None})
        factor = decay(self.config.outer, self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = group["base_lr"] * factor
        self.optimiser.step()

    def score(self) -> Score:
        """Score the set as it is on the validation split with networks A, and remember it if it is the best so far.

        A set on which no network's weights stay finite is never the best.
        """
        score = self.judge(self.synthetic_now(), "A")
        if score.diverged < score.n and (self.best is None or score.mean > self.best.score):
            kept = {name: value.clone() for name, value in self.average.values.items()}
            self.best = Best(self.step, score.mean, kept)
        return score

    def judge(self, synthetic: Synthetic, networks: NetworkSet) -> Score:
        """Score any set of this problem on the validation split with an evaluation set of networks."""
        part = part_for("validation", networks, known=self.known is not None)
        if part not in self._judges:
            self._judges[part] = Judge(self.dataset, "validation", part)
        starts = starts_to_score(self.network, self.config.network, self.known, networks, NETWORKS[networks])
        return self._judges[part].score(self._engine, starts, synthetic, self.order)

    @torch.no_grad()
    def synthetic_now(self) -> Synthetic:
        """The set as it would be kept now: itself, or its average over outer steps (`outer.average`); detached."""
        return materialise(self.average.values, self.config)

    @torch.no_grad()
    def synthetic_best(self) -> Synthetic:
        """The best set seen by `score`; the present one if there was no look yet."""
        return self.synthetic_now() if self.best is None else materialise(self.best.raw, self.config)

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on: tensors by name, and plain numbers."""
        return state.gathered(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state of a distiller of the same problem, as given by `state_dict`."""
        state.take_up(self, state_dict)

    def _make_optimiser(self) -> torch.optim.Adam:
        outer = self.config.outer
        factors = {"inputs": 1.0, "labels": outer.label_lr, "rates": outer.rate_lr}
        groups = [
            {"params": [raw], "base_lr": outer.lr * factors[name], "lr": outer.lr * factors[name]}
            for name, raw in self.raw.items()
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

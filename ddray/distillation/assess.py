"""A set on trial: its scores by both protocols, beside those of real samples, each look at the test split stamped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from ddray.data import load as load_dataset
from ddray.distillation.baselines import compare
from ddray.distillation.distilled_set import DistilledSet, check_same_data, load, stamp
from ddray.distillation.evaluate import PROTOCOLS, RETRAINED, Judge, Score, SplitName, judge_all, starts_to_score
from ddray.errors import RequestError
from ddray.networks import build


@dataclass(frozen=True)
class Assessment:
    """Scores on one split: as distilled, retrained, and of each kind of real samples."""

    distilled: DistilledSet
    arch: str
    scores: tuple[Score, ...]
    baselines: dict[str, tuple[Score, ...]]


def assess(
    place: Path, *, arch: str | None = None, nets: int | None = None, split: str = "validation", rate: float | None = None,
    epochs: int | None = None, baselines: bool = True, data: Path | None = None,
) -> Assessment:  # fmt: skip
    """Score the set in `place` with networks C; a look at the test split is stamped into its manifest, with its date.

    Raises:
        RequestError: not a set, other data than it was made from, another architecture for known networks, or other
            epochs without a rate.

    """
    if split not in ("validation", "test"):
        raise RequestError("--split", split, "validation or test")
    distilled = load(place)
    dataset = load_dataset(distilled.manifest.dataset.name, data)
    check_same_data(distilled.manifest.dataset, dataset)
    module = None
    if arch is not None and arch != distilled.manifest.network.arch:
        if distilled.known is not None:
            raise RequestError("--arch", arch, f"the set is for known networks of {distilled.manifest.network.arch}")
        module = build(arch, dataset.input_shape, dataset.classes).module
    network, count = distilled.build_network(module), distilled.networks_to_score(nets)
    config, known = distilled.manifest.distill_config, distilled.known
    synthetic, order = distilled.schedule(rate, epochs)
    judge = Judge(dataset, cast(SplitName, split))
    scores: list[Score] = []
    for protocol in PROTOCOLS:
        n = count if protocol == "as-distilled" else min(count, RETRAINED)
        starts = starts_to_score(network, config.network, known, "C", n)
        scores += judge_all([judge], network, starts, synthetic, order, protocol)
    outputs = distilled.manifest.network.outputs
    real = compare([judge], dataset, config, network, outputs, known, count) if baselines else {}
    if split == "test":
        recorded = distilled.manifest.model_copy(update={"scores": (*distilled.manifest.scores, *scores)})
        stamp(place, recorded)
        distilled = load(place)
    return Assessment(distilled, arch or distilled.manifest.network.arch, tuple(scores), real)

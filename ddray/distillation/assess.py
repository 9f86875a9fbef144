"""A set on trial: its scores by both protocols, beside those of real samples, each look at the test split stamped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from ddray.data import Dataset, RealData
from ddray.data import load as load_dataset
from ddray.distillation.baselines import compare
from ddray.distillation.distilled_set import DistilledSet, load
from ddray.distillation.engine import Engine, engine_for_scores, resolve_device
from ddray.distillation.evaluate import MOST, Judge, Score, SplitName, judge_all, part_for, starts_to_score
from ddray.distillation.set_files import stamp
from ddray.distillation.unroll import Synthetic
from ddray.errors import RequestError
from ddray.files import writable_folder
from ddray.networks import ARCHITECTURES, Network, build


@dataclass(frozen=True)
class Assessment:
    """Scores on one split: as distilled, retrained, and of each kind of real samples."""

    distilled: DistilledSet
    arch: str
    scores: tuple[Score, ...]
    baselines: dict[str, tuple[Score, ...]]


def assess(
    place: Path | str, *, arch: str | None = None, nets: int | None = None, split: str = "validation", rate: float | None = None,
    epochs: int | None = None, baselines: bool = True, data: Path | str | None = None, dataset: str | Path | RealData | None = None,
    device: str = "auto",
) -> Assessment:  # fmt: skip
    """Score the set in `place` with networks C; a look at the test split is stamped into its manifest, with its date.

    The data is that of the recorded name, or, where the name does not lead to it from here, what `dataset` is or names.
    `device` is where networks are trained and judged, as torch names it; by itself the GPU, where there is one.

    Raises:
        RequestError: not a set, other data than it was made from, another architecture for known networks, other epochs
            without a rate, or a device that is not here.

    """
    place = Path(place)
    if split not in ("validation", "test"):
        raise RequestError("--split", split, "validation or test")
    if split == "test":
        with writable_folder(place, "SET"):  # else the look could not be stamped
            pass
    distilled = load(place).to(resolve_device(device, "--device"))
    count = distilled.networks_to_score(nets)
    synthetic, order = distilled.schedule(rate, epochs)
    if dataset is None or isinstance(dataset, str | Path):
        dataset = load_dataset(distilled.manifest.dataset.name if dataset is None else dataset, data)
    dataset = distilled.real_data(dataset).to(distilled.inputs.device)
    network = _network(distilled, arch, dataset)
    config, known = distilled.manifest.distill_config, distilled.known
    engine = engine_for_scores(network, config.inner, distilled.manifest.engine, count * len(order))
    chosen = cast(SplitName, split)
    judge = Judge(dataset, chosen, part_for(chosen, "C", known=known is not None))
    otherwise = distilled.otherwise(rate, epochs, arch)
    scores = [s.model_copy(update={"otherwise": otherwise}) for s in scores_of(distilled, [judge], engine, count, synthetic, order)]
    outputs = distilled.manifest.network.outputs
    real = compare([judge], dataset, config, engine, outputs, known, count, order) if baselines else {}
    if split == "test":
        stamp(place, scores)
        distilled = load(place)
    return Assessment(distilled, arch or distilled.manifest.network.arch, tuple(scores), real)


def scores_of(
    distilled: DistilledSet, judges: Sequence[Judge], engine: Engine, count: int, synthetic: Synthetic,
    order: Sequence[int],
) -> list[Score]:  # fmt: skip
    """The scores of a set on several splits by each protocol, with networks C, `count` of them for the main one."""
    scores: list[Score] = []
    for protocol in distilled.protocols:
        n = min(count, MOST.get(protocol, count))
        starts = starts_to_score(engine.network, distilled.manifest.distill_config.network, distilled.known, "C", n)
        shown = distilled.in_words(synthetic) if protocol == "decoded" else synthetic
        scores += judge_all(judges, engine, starts, shown, order, protocol)
    return scores


def _network(distilled: DistilledSet, arch: str | None, dataset: Dataset) -> Network:
    """The recorded network, or another; code that a manifest names is imported only if the user names it as well."""
    record = distilled.manifest.network
    if arch is None:
        if record.arch not in ARCHITECTURES:
            raise RequestError("--arch", None, f"the set is for {record.arch}, which is not ours: name it with --arch")
        return distilled.build_network()
    if arch != record.arch and distilled.known is not None:
        raise RequestError("--arch", arch, f"the set is for known networks of {record.arch}")
    arguments = record.args if arch == record.arch else {}
    built = build(arch, dataset.input_shape, dataset.classes, arguments)
    with torch.no_grad():
        outputs = int(built(built.flatten(), torch.zeros((2, *dataset.input_shape))).shape[1])
    if outputs != record.outputs:
        raise RequestError(
            "--arch", arch, f"a network with {record.outputs} outputs, as the labels have; it has {outputs}"
        )
    return distilled.build_network(built.module)

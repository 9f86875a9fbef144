"""Distilled sentences read as words: for every position, the words whose vectors lie nearest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ddray.data.words import PADDING
from ddray.distillation.preview import caption, title
from ddray.errors import RequestError
from ddray.files import write_whole

if TYPE_CHECKING:
    from ddray.distillation.distilled_set import DistilledSet

SHOWN = 3
"""Words shown for a position."""
_POSITIONS = 2048  # to look up at a time


@torch.no_grad()
def nearest_words(inputs: Tensor, vectors: Tensor, count: int = 1) -> tuple[Tensor, Tensor]:
    """The words nearest to positions of sentences, by Euclidean distance.

    A word without a vector is nobody's neighbour; padding, the vector of zeros, is a word.

    Args:
        inputs: [..., D].
        vectors: [V, D], the table.
        count: how many, at most; fewer where the vocabulary has fewer.

    Returns:
        Numbers of words, int64 [..., count], the nearest first, and their distances [..., count].

    """
    vectors = vectors.to(inputs.device)
    known = (vectors != 0).any(-1)
    known[PADDING] = True
    candidates = torch.nonzero(known).flatten()
    table = vectors[candidates].double()
    found, distances = [], []
    for part in inputs.reshape(-1, inputs.shape[-1]).double().split(_POSITIONS):
        distance, index = torch.cdist(part, table).topk(min(count, len(candidates)), largest=False)
        found.append(candidates[index])
        distances.append(distance)
    shape = (*inputs.shape[:-1], -1)
    return torch.cat(found).view(shape), torch.cat(distances).to(inputs.dtype).view(shape)


def listing(distilled: DistilledSet) -> str:
    """Every sentence with the classes that its label speaks for, then its words, and for each position the nearest three."""
    text = distilled.manifest.text
    assert text is not None and distilled.vectors is not None
    numbers, distances = nearest_words(distilled.inputs.flatten(0, 1), distilled.vectors, SHOWN)
    lines = [
        f"{title(distilled, distilled.stored_samples)} · {text.max_length} words each · vectors: {text.vectors}",
        "",
    ]
    for index, label in enumerate(distilled.labels.flatten(0, 1)):
        step, sample = divmod(index, distilled.inputs.shape[1])
        weights = ", ".join(caption(label, distilled.manifest.dataset.class_names).splitlines())
        lines.append(f"step {step + 1}, sentence {sample + 1} · {weights}")
        lines.append("  " + " ".join(text.words[number] for number in numbers[index, :, 0].tolist()))
        lines += [
            f"  {place + 1:4d}  " + "   ".join(f"{text.words[n]} {d:.3g}" for n, d in zip(found, far, strict=True))
            for place, (found, far) in enumerate(zip(numbers[index].tolist(), distances[index].tolist(), strict=True))
        ]
        lines.append("")
    return "\n".join(lines)


def write_listing(distilled: DistilledSet, file: Path) -> Path:
    """Write `listing` into `file`.

    Raises:
        RequestError: another suffix than `.txt`.

    """
    if file.suffix != ".txt":
        raise RequestError("--out", str(file), "a .txt file: the set is text")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, listing(distilled))
    return file

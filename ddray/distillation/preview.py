"""A picture of a distilled set: every sample with the classes that its label speaks for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ddray.errors import MissingExtra, RequestError

if TYPE_CHECKING:
    from ddray.distillation.distilled_set import DistilledSet

_MOST_ROWS = 20


def draw(distilled: DistilledSet, file: Path) -> Path:
    """Draw up to 20 rows of samples (a row is a minibatch, or ten samples of one) into `file`, by its suffix.

    Raises:
        RequestError: a suffix that cannot be drawn.
        MissingExtra: matplotlib is not installed.

    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "a preview") from error
    if file.suffix.lstrip(".") not in FigureCanvasAgg.filetypes:
        raise RequestError("--out", str(file), "name a .png, .pdf or .svg file")
    images = pictures(distilled).flatten(0, 1)
    labels = distilled.labels.flatten(0, 1)
    columns = min(10, distilled.inputs.shape[1])
    rows = min(_MOST_ROWS, -(-len(images) // columns))
    figure = Figure(figsize=(1.15 * columns, 1.5 * rows + 0.3), dpi=100)
    axes = figure.subplots(rows, columns, squeeze=False)
    for index, axis in enumerate(axes.flat):
        axis.set_axis_off()
        if index < len(images):
            axis.imshow(images[index].permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set_title(caption(labels[index], distilled.manifest.dataset.class_names), fontsize=6)
    figure.suptitle(_title(distilled, shown=min(len(images), rows * columns)), fontsize=8)
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        figure.savefig(temporary, format=file.suffix.lstrip("."))
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
    return file


def pictures(distilled: DistilledSet) -> Tensor:
    """The inputs [S, n, C, H, W] as pictures in [0, 1]: each stretched to its own middle 98 % of values.

    Distilled images live far outside the range of real ones, so that undoing the normalisation would clip most of them.
    """
    x = distilled.inputs.detach().cpu().float()
    if x.dim() != 5 or x.shape[2] not in (1, 3):
        raise RequestError("set", distilled.manifest.dataset.name, "only images of one or three channels can be drawn")
    values = x.flatten(2).sort(dim=-1).values
    last = values.shape[-1] - 1
    low, high = values[..., int(0.01 * last)], values[..., int(0.99 * last)]
    low, high = (bound.reshape(*x.shape[:2], 1, 1, 1) for bound in (low, high))
    return ((x - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)


def caption(label: Tensor, class_names: tuple[str, ...]) -> str:
    """The up to three classes with the largest weights of a label [width]; a single logit is the second class."""
    if len(label) == 1:
        return f"{class_names[1]}: {float(label[0]):.1f}"
    weights, classes = torch.topk(label.cpu(), min(3, len(label)))
    return "\n".join(f"{class_names[c]}: {w:.1f}" for w, c in zip(weights.tolist(), classes.tolist(), strict=True))


def _title(distilled: DistilledSet, shown: int) -> str:
    record = distilled.manifest
    count = f"{distilled.stored_samples} samples" if shown == distilled.stored_samples else (
        f"{shown} of {distilled.stored_samples} samples"
    )  # fmt: skip
    return f"{record.dataset.name} · {record.network.arch} · {record.network.source} · {count}"

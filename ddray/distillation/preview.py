"""A picture of a distilled set: every sample with the classes that its label speaks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ddray.errors import MissingExtra, RequestError

if TYPE_CHECKING:
    from ddray.distillation.distilled_set import DistilledSet

_MOST_ROWS = 20
_CELL_INCHES, _TITLE_INCHES = 1.15, 0.3


def draw(distilled: DistilledSet, file: Path) -> Path:
    """Draw images: up to 20 rows of samples (a row is a minibatch, or ten samples of one) into `file`, by its suffix.

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
    images, labels = pictures(distilled).flatten(0, 1), distilled.labels.flatten(0, 1)
    columns = min(10, distilled.inputs.shape[1])
    rows = min(_MOST_ROWS, -(-len(images) // columns))
    height, width = images.shape[-2:]
    # Room beside each picture, and for three lines above it. All are one image: a subplot for each takes seconds.
    tall, wide = height + -(-height // 2), width + -(-width // 8)
    inches = _CELL_INCHES * columns, _CELL_INCHES / wide * tall * rows + _TITLE_INCHES
    figure = Figure(figsize=inches, dpi=100)
    axis = figure.add_axes((0, 0, 1, 1 - _TITLE_INCHES / inches[1]))
    axis.set_axis_off()
    canvas = torch.ones(rows * tall, columns * wide, 3)
    for index, picture in enumerate(images[: rows * columns]):
        row, column = divmod(index, columns)
        bottom, left = (row + 1) * tall, column * wide + (wide - width) // 2
        canvas[bottom - height : bottom, left : left + width] = picture.expand(3, -1, -1).permute(1, 2, 0)
        text = caption(labels[index], distilled.manifest.dataset.class_names)
        axis.text(left + width / 2, bottom - height - 1, text, fontsize=6, ha="center", va="bottom")
    axis.imshow(canvas.numpy(), interpolation="nearest", aspect="auto")
    heading = title(distilled, shown=min(len(images), rows * columns))
    figure.suptitle(heading, fontsize=8, y=1 - 0.25 * _TITLE_INCHES / inches[1])
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        figure.savefig(temporary, format=file.suffix.lstrip("."))
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
    return file


def drawable(input_shape: Sequence[int]) -> bool:
    """Whether inputs of a shape are images of one or three channels."""
    return len(input_shape) == 3 and input_shape[0] in (1, 3)


def pictures(distilled: DistilledSet) -> Tensor:
    """The inputs [S, n, C, H, W] as pictures in [0, 1]: each stretched to its own middle 98 % of values.

    Distilled images live far outside the range of real ones, so that undoing the normalisation would clip most of them.
    """
    x = distilled.inputs.detach().cpu().float()
    if not drawable(x.shape[2:]):
        raise RequestError("set", distilled.manifest.dataset.name, "only images of one or three channels can be drawn")
    values = x.flatten(2).sort(dim=-1).values
    last = values.shape[-1] - 1
    low, high = values[..., int(0.01 * last)], values[..., int(0.99 * last)]
    low, high = (bound.reshape(*x.shape[:2], 1, 1, 1) for bound in (low, high))
    return ((x - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)


def caption(label: Tensor, class_names: tuple[str, ...]) -> str:
    """The up to three classes with the largest weights of a label [width]; a single logit is the second class."""
    if len(label) == 1:
        return f"{class_names[1]}: {float(label[0]):z.1f}"
    weights, classes = torch.topk(label.cpu(), min(3, len(label)))
    return "\n".join(f"{class_names[c]}: {w:z.1f}" for w, c in zip(weights.tolist(), classes.tolist(), strict=True))


def title(distilled: DistilledSet, shown: int) -> str:
    """What a set is of, in one line."""
    record = distilled.manifest
    count = f"{distilled.stored_samples} samples" if shown == distilled.stored_samples else (
        f"{shown} of {distilled.stored_samples} samples"
    )  # fmt: skip
    return f"{record.dataset.name} · {record.network.arch} · {record.network.source} · {count}"

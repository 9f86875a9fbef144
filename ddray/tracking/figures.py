"""Pictures of a sweep: how its trials went, and what each searched parameter did."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ddray.errors import MissingExtra
from ddray.tracking.entries import Status, TrialEntry, as_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WINNER, _FINISHED, _FADED, _DIVERGED = "#c8442b", "#33658a", "#9fb4c4", "#7a4b94"
_MARGIN = 0.05  # of the axis, free at either end
_WIDE = 50.0  # a range of positive values spanning more than this is drawn on a logarithmic axis


def sweep_figures(entries: Sequence[TrialEntry], directory: Path) -> list[Path]:
    """Draw `curves.png`, and `parameters.png` if anything was searched, into `directory`.

    The winner is the finished trial with the highest value.

    Raises:
        MissingExtra: matplotlib is not installed.

    """
    winner = _winner(entries)
    directory.mkdir(parents=True, exist_ok=True)
    made = [_curves(entries, winner, directory / "curves.png")]
    keys = sorted({key for entry in entries for key in entry.searched})
    if keys:
        made.append(_parameters(entries, winner, keys, directory / "parameters.png"))
    return made


def _curves(entries: Sequence[TrialEntry], winner: TrialEntry | None, file: Path) -> Path:
    """Validation accuracy over outer steps, a line for each trial."""
    figure = _figure(9.0, 5.0)
    axes = figure.subplots()
    for entry in sorted(entries, key=lambda entry: entry is winner):  # the winner is drawn last, on top
        points = _accuracies(entry)
        if not points:
            continue
        steps, values = zip(*points, strict=True)
        colour, width, order = _look(entry, entry is winner)
        marker = "o" if len(points) == 1 else None
        alpha = 1.0 if entry is winner else 0.7
        axes.plot(steps, values, color=colour, linewidth=width, zorder=order, alpha=alpha, marker=marker, markersize=3)
        end = {"pruned": "|", "diverged": "X", "failed": "x"}.get(entry.status)
        if end:
            axes.plot(steps[-1:], values[-1:], marker=end, color=colour, markersize=7, zorder=order)
    axes.set_xlabel("outer step")
    axes.set_ylabel("validation accuracy")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    _legend(axes, entries, winner)
    return _save(figure, file)


def _parameters(entries: Sequence[TrialEntry], winner: TrialEntry | None, keys: Sequence[str], file: Path) -> Path:
    """The value of every trial against each searched parameter; trials without a value are crosses at the bottom."""
    columns = min(3, len(keys))
    rows = -(-len(keys) // columns)
    figure = _figure(3.6 * columns + 0.6, 2.9 * rows + 0.5)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for index, axes in enumerate(grid.flat):
        if index >= len(keys):
            axes.set_axis_off()
            continue
        _scatter(axes, entries, winner, keys[index])
        if index % columns == 0:
            axes.set_ylabel("value told to the study")
    figure.suptitle("filled: finished · open: stopped early · cross: diverged or failed · red: the best", fontsize=9)
    return _save(figure, file)


def _scatter(axes: Axes, entries: Sequence[TrialEntry], winner: TrialEntry | None, key: str) -> None:
    told = [entry for entry in entries if key in entry.searched and key in entry.params]
    places = _places(axes, [entry.params[key] for entry in told])
    for entry, x in sorted(zip(told, places, strict=True), key=lambda pair: pair[0] is winner):
        colour, _, order = _look(entry, entry is winner)
        if entry.status == "diverged" or entry.value is None or not math.isfinite(entry.value):
            axes.plot([x], [0.02], "x", color=colour, transform=axes.get_xaxis_transform(), markersize=5)
        else:
            face = "none" if entry.status == "pruned" else colour
            size = 70 if entry is winner else 24
            axes.scatter([x], [entry.value], s=size, facecolor=face, edgecolor=colour, zorder=order)
    axes.set_xlabel(key)
    axes.margins(y=0.12)
    axes.grid(alpha=0.25)


def _places(axes: Axes, values: Sequence[object]) -> list[float]:
    """Where values lie on the x axis: numbers on a plain or logarithmic scale, everything else by name."""
    numbers = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) == len(values):
        low, high = min(numbers, default=0.0), max(numbers, default=1.0)
        # Limits of our own: matplotlib warns where the points it has been given so far are all at one place.
        if low > 0 and high / low > _WIDE:
            axes.set_xscale("log")
            axes.set_xlim(low * (low / high) ** _MARGIN, high * (high / low) ** _MARGIN)
        else:
            if all(number.is_integer() for number in numbers):
                axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
            room = _MARGIN * (high - low) or 0.5 * abs(low) or 0.5
            axes.set_xlim(low - room, high + room)
        return numbers
    names = [as_text(value) for value in values]
    distinct = sorted(set(names))
    axes.set_xticks(range(len(distinct)), distinct, rotation=20 if len(distinct) > 3 else 0)
    axes.set_xlim(-0.6, len(distinct) - 0.4)
    # Spread by the golden ratio, so that trials of one choice do not cover each other.
    return [distinct.index(name) + 0.4 * ((0.618 * index) % 1 - 0.5) for index, name in enumerate(names)]


def _legend(axes: Axes, entries: Sequence[TrialEntry], winner: TrialEntry | None) -> None:
    """A line for every way in which trials ended, with their number."""
    from matplotlib.lines import Line2D

    handles = []
    if winner is not None:
        handles.append(
            Line2D([], [], color=_WINNER, linewidth=2.4, label=f"best: trial {winner.number}, {winner.value:.4g}")
        )
    looks: list[tuple[Status, str, str]] = [
        ("finished", "", "finished"),
        ("pruned", "|", "stopped early"),
        ("diverged", "X", "diverged"),
        ("failed", "x", "failed"),
        ("running", "", "still running"),
    ]
    for status, marker, words in looks:
        some = [entry for entry in entries if entry.status == status]
        if some:
            colour = _look(some[0], False)[0]
            handles.append(Line2D([], [], color=colour, marker=marker, label=f"{words} ({len(some)})"))
    axes.legend(handles=handles, loc="lower right", fontsize=8, framealpha=0.85)


def _look(entry: TrialEntry, is_winner: bool) -> tuple[str, float, int]:
    """Colour, line width and drawing order of a trial."""
    if is_winner:
        return _WINNER, 2.4, 5
    if entry.status == "diverged":
        return _DIVERGED, 1.0, 4
    return (_FINISHED, 1.2, 3) if entry.status == "finished" else (_FADED, 0.9, 2)


def _winner(entries: Sequence[TrialEntry]) -> TrialEntry | None:
    finished = [e for e in entries if e.status == "finished" and e.value is not None and math.isfinite(e.value)]
    return max(finished, key=lambda entry: (entry.value, -entry.number), default=None)


def _accuracies(entry: TrialEntry) -> list[tuple[int, float]]:
    points = [(step, metrics.get("val_accuracy", math.nan)) for step, metrics in sorted(entry.curves.items())]
    return [(step, value) for step, value in points if math.isfinite(value)]


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure  # without pyplot: no window, no global state
    except ImportError as error:
        raise MissingExtra("matplotlib", "the figures of a sweep") from error
    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def _save(figure: Figure, file: Path) -> Path:
    temporary = file.with_name(f".{file.name}.tmp")
    figure.savefig(temporary, format="png")
    temporary.replace(file)
    return file

"""Gains of every donor for every receiver as coloured cells: green helps, orange hurts, the number says how much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qvec_deploy.formatting import signed_text
from qvec_deploy.report import svg
from qvec_deploy.report.svg import WIDTH, Figure
from qvec_deploy.research.study.pages import notation

CHARACTER = 5.4  # units a character takes at font size 9, on the safe side
TOP, RIGHT, LEGEND = 6.0, 6.0, 38.0
TALL, FLAT = 30.0, 13.0  # of a cell: with numbers, and where there is no room for them
ROOM = 31.0  # width from which a cell holds its number
STRONGEST = 0.75  # opacity of the largest gain or loss: the number stays readable
LABEL = 12  # characters of a task's name beside the cells
SWATCHES = 9


@dataclass(frozen=True)
class HeatmapCell:
    """One donor for one receiver; all in percentage points.

    Attributes:
        gain: Over plain PTQ.
        error: Its standard error; None where it is not known.
    """

    donor: str
    receiver: str
    gain: float
    error: float | None


def heatmap(
    name: str, title: str, caption: str, cells: Sequence[HeatmapCell], largest: float, over: str = "seeds"
) -> Figure:
    """Donors down, receivers across.

    Args:
        name: Unique in the page.
        cells: The gains; pairs that are not there stay empty.
        largest: Gain or loss, points, with the strongest colour: one for all figures that are compared.
        over: What the standard errors are over.
    """
    receivers = list(dict.fromkeys(cell.receiver for cell in cells))
    donors = list(dict.fromkeys(cell.donor for cell in cells))
    donors.sort(key=lambda donor: receivers.index(donor) if donor in receivers else len(receivers))
    samples = tuple((one.donor, one.receiver, one.gain, one.error) for one in cells)
    wide = (WIDTH - _left(donors) - RIGHT) / len(receivers)
    if wide < ROOM:
        caption += " A minus sign marks a loss."
    elif any(cell.error is not None for cell in cells):
        caption += f" Small: standard error over {over}."
    drawing = _draw(name, cells, donors, receivers, largest)
    columns = ("donor", "receiver", "gain, points", f"standard error over {over}, points")
    return Figure(name, title, caption, drawing, columns, samples)


def colour_limit(gains: Sequence[float]) -> float:
    """The end of a colour scale that holds all gains: a round number of points, at least 1."""
    largest = max((abs(gain) for gain in gains), default=1.0)
    steps = (1, 2, 5, 10, 15, 20, 30, 40, 50, 60, 80, 100)
    return float(next((step for step in steps if step >= largest), 100))


def _draw(name: str, cells: Sequence[HeatmapCell], donors: list[str], receivers: list[str], largest: float) -> str:
    from matplotlib.figure import Figure as Canvas

    left = _left(donors)
    wide = (WIDTH - left - RIGHT) / len(receivers)
    numbered = wide >= ROOM
    upright = any(len(_label(receiver)) * CHARACTER > wide - 2 for receiver in receivers)
    below = CHARACTER * max(len(_label(receiver)) for receiver in receivers) + 8 if upright else 16.0
    tall = (TALL if numbered else FLAT) * len(donors)
    height = TOP + tall + below + LEGEND
    with svg.page_style():
        canvas = Canvas(figsize=(WIDTH / 72, height / 72))
        box = (left / WIDTH, (below + LEGEND) / height, (WIDTH - left - RIGHT) / WIDTH, tall / height)
        axes = canvas.add_axes(box)
        for cell in cells:
            place = receivers.index(cell.receiver), donors.index(cell.donor)
            _draw_cell(axes, place, cell, largest, numbered=numbered)
        _frame(axes, donors, receivers, upright=upright)
        _scale(canvas.add_axes((left / WIDTH, 26 / height, (WIDTH - left - RIGHT) / WIDTH, 7 / height)), largest)
        return svg.inline(canvas, name, _in_words(cells))


def _left(donors: Sequence[str]) -> float:
    """Room for the donors' names."""
    return CHARACTER * max(len(_label(donor)) for donor in donors) + 10


def _draw_cell(axes: Any, place: tuple[int, int], cell: HeatmapCell, largest: float, *, numbered: bool) -> None:
    from matplotlib.patches import Rectangle

    column, row = place
    strength = STRONGEST * min(abs(cell.gain) / largest, 1.0)
    color = svg.COLORS["patched" if cell.gain >= 0 else "ptq"]
    corner = (column - 0.5, row - 0.5)
    axes.add_patch(Rectangle(corner, 1, 1, facecolor=color, alpha=strength, linewidth=0))
    if not numbered:
        if cell.gain < 0:
            axes.text(column, row, "−", ha="center", va="center", fontsize=8)
        return
    lower = 0.0 if cell.error is None else 0.16
    axes.text(column, row - lower, notation.points(cell.gain), ha="center", va="center", fontsize=9.5)
    if cell.error is not None:
        axes.text(column, row + 0.29, f"±{cell.error:.1f}", ha="center", va="center", fontsize=7)


def _frame(axes: Any, donors: list[str], receivers: list[str], *, upright: bool) -> None:
    axes.set_xlim(-0.5, len(receivers) - 0.5)
    axes.set_ylim(len(donors) - 0.5, -0.5)
    axes.set_xticks(range(len(receivers)), [_label(name) for name in receivers], rotation=90 if upright else 0)
    axes.set_yticks(range(len(donors)), [_label(name) for name in donors])
    axes.tick_params(labelsize=9, length=0)
    _bare(axes)
    for place in range(len(receivers) + 1):
        axes.axvline(place - 0.5, color=svg.COLORS["line"], linewidth=0.5)
    for place in range(len(donors) + 1):
        axes.axhline(place - 0.5, color=svg.COLORS["line"], linewidth=0.5)


def _scale(axes: Any, largest: float) -> None:
    """What the colours mean, in steps."""
    from matplotlib.patches import Rectangle

    step = 2 * largest / SWATCHES
    for index in range(SWATCHES):
        start = -largest + index * step
        middle = start + step / 2
        color = svg.COLORS["patched" if middle >= 0 else "ptq"]
        strength = STRONGEST * abs(middle) / largest
        axes.add_patch(Rectangle((start, 0), step, 1, facecolor=color, alpha=strength, linewidth=0))
    axes.set_xlim(-largest, largest)
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    _bare(axes)
    ends = (-largest, -largest / 2, 0.0, largest / 2, largest)
    axes.set_xticks(ends, [signed_text(f"{end:+g}") if end else "0" for end in ends])
    axes.tick_params(labelsize=8, length=0, pad=2)
    axes.set_xlabel("gain over plain PTQ, points", fontsize=8, labelpad=1)


def _bare(axes: Any) -> None:
    axes.grid(visible=False)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)


def _label(task: str) -> str:
    return task if len(task) <= LABEL else task[: LABEL - 1] + "…"


def _in_words(cells: Sequence[HeatmapCell]) -> str:
    parts = (f"{one.donor} for {one.receiver}: {one.gain:+.1f} points" for one in cells)
    return signed_text("; ".join(parts))

"""Accuracy against latency and against size, with intervals and the Pareto front."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qvec_deploy.bench.results import Role
from qvec_deploy.bench.summary import CandidateRow
from qvec_deploy.formatting import BYTES_PER_MB
from qvec_deploy.report import svg
from qvec_deploy.report.svg import WIDTH, Figure

HEIGHT = 270.0
LABEL_PITCH = 13.0  # units between two labels
LOG_FROM = 10.0  # ratio of largest to smallest from which a logarithmic axis shows more

ORDER: tuple[Role, ...] = ("variant", "float", "ptq", "patched")  # later ones are drawn over earlier ones
FRONT = "The line is the front: nothing is better in both."
MARKERS = {"float": "s", "ptq": "D", "patched": "o", "variant": "^"}


@dataclass(frozen=True)
class Point:
    """A candidate in a plane.

    Attributes:
        x: The value as plotted, with its interval: low, value, high.
        ships: Whether it could be shipped; a control cannot, and is no part of the front.
    """

    name: str
    role: Role
    selected: bool
    x: tuple[float, float, float]
    y: tuple[float, float, float]
    ships: bool = True


Place = Callable[[CandidateRow], Point | None]


def trade_offs(rows: Sequence[CandidateRow]) -> tuple[Figure, ...]:
    """Accuracy against latency and against size, as far as they were measured."""
    batch = next((row.first_latency.batch_size for row in rows if row.first_latency), 1)
    captions = {
        "latency": f"Up and to the left is better; batch {batch}. {FRONT} Bars are 95 % intervals.",
        "size": f"Up and to the left is better. Size is of everything a device needs to store. {FRONT}",
    }
    return scatters(captions, lambda place: [point for row in rows if (point := place(row)) is not None])


def scatters(captions: Mapping[str, str], points: Callable[[Place], Sequence[Point]]) -> tuple[Figure, ...]:
    """A figure for each caption that has points."""
    drawn = (_figure(name, caption, points(AXES[name][0])) for name, caption in captions.items())
    return tuple(figure for figure in drawn if figure is not None)


def latency_point(row: CandidateRow) -> Point | None:
    """Accuracy against latency; None where one of them was not measured."""
    entry = row.first_latency
    if entry is None:
        return None
    median = entry.median_interval
    return _point(row, (median.low, median.value, median.high) if median else (entry.median_ms,) * 3)


def size_point(row: CandidateRow) -> Point | None:
    """Accuracy against size; None where accuracy was not measured."""
    return _point(row, (row.candidate.stored_bytes / BYTES_PER_MB,) * 3)


def _point(row: CandidateRow, x: tuple[float, float, float]) -> Point | None:
    if row.top1 is None:
        return None
    low, value, high = (100 * share for share in (row.top1.low, row.top1.value, row.top1.high))
    control = row.candidate.patch is not None and row.candidate.patch.control is not None
    return Point(row.candidate.name, row.candidate.role, row.selected, x, (low, value, high), ships=not control)


AXES: dict[str, tuple[Place, str]] = {
    "size": (size_point, "stored size, MB"),
    "latency": (latency_point, "median host latency, ms"),
}
"""By a figure's name: where it puts a candidate, and what its horizontal axis says; less is better."""


def _figure(name: str, caption: str, points: Sequence[Point]) -> Figure | None:
    if not points:
        return None
    ahead, x_label = {point.name for point in front(points)}, AXES[name][1]
    ends = tuple(f"{axis}{end}" for axis in (x_label, "top-1, %") for end in (", low", "", ", high"))
    samples = tuple((point.name, *point.x, *point.y, point.name in ahead) for point in points)
    columns = ("candidate", *ends, "on the front")
    return Figure(name, f"Accuracy and {name}", caption, _scatter(name, points, x_label), columns, samples)


def front(points: Sequence[Point]) -> list[Point]:
    """The Pareto front by ascending x: of what could be shipped, all that nothing else beats on both axes."""
    ahead: list[Point] = []
    for point in sorted((point for point in points if point.ships), key=lambda point: (point.x[1], -point.y[1])):
        if not ahead or point.y[1] > ahead[-1].y[1]:
            ahead.append(point)
    return ahead


@svg.drawn
def _scatter(name: str, points: Sequence[Point], x_label: str) -> str:
    with svg.drawing(HEIGHT) as drawing:
        labels_width = svg.CHARACTER * max(map(len, svg.labels([point.name for point in points]))) + 22
        axes = drawing.axes(left=38, right=labels_width, top=10, bottom=40)
        _scale(axes, points, log_allowed=name == "size")
        _draw_front(axes, front(points))
        for point in points:
            _draw(axes, point)
        _label(axes, points)
        axes.set_xlabel(x_label)
        axes.set_ylabel("top-1, %")
        description = "; ".join(f"{p.name}: {p.x[1]:.3g} {x_label}, {p.y[1]:.1f} % top-1" for p in points)
        return drawing.svg(name, description)


def _scale(axes: Any, points: Sequence[Point], *, log_allowed: bool) -> None:
    """Latency and size start at 0, so that distances are ratios; or are logarithmic where they span too much."""
    from matplotlib.ticker import MaxNLocator

    smallest, largest = min(point.x[0] for point in points), max(point.x[2] for point in points)
    if log_allowed and largest > LOG_FROM * smallest:
        svg.scale_logarithmic(axes, "x", smallest / 1.5, largest * 1.5)
    else:
        axes.set_xlim(0, 1.08 * largest)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    low, high = min(point.y[0] for point in points), max(point.y[2] for point in points)
    margin = max(0.06 * (high - low), 0.5)
    axes.set_ylim(max(low - margin, -1), min(high + margin, 101))
    axes.yaxis.set_major_locator(MaxNLocator(6))


def _draw_front(axes: Any, ahead: Sequence[Point]) -> None:
    """Steps from the bottom of the plot to its right side: what is reached at up to so many milliseconds or bytes."""
    if not ahead:
        return
    places = [ahead[0].x[1], *(point.x[1] for point in ahead), axes.get_xlim()[1]]
    heights = [axes.get_ylim()[0], *(point.y[1] for point in ahead), ahead[-1].y[1]]
    axes.plot(places, heights, drawstyle="steps-post", color=svg.COLORS["ink"], linewidth=1, alpha=0.45, zorder=2)


def _draw(axes: Any, point: Point) -> None:
    color = svg.COLORS[point.role]
    axes.plot([point.x[1]] * 2, [point.y[0], point.y[2]], color=color, linewidth=1.4, alpha=0.55, zorder=3)
    axes.plot([point.x[0], point.x[2]], [point.y[1]] * 2, color=color, linewidth=1.4, alpha=0.55, zorder=3)
    size = 9 if point.selected else 6.5
    axes.plot(
        [point.x[1]],
        [point.y[1]],
        MARKERS[point.role],
        color=color,
        markersize=size,
        markeredgecolor=svg.COLORS["surface"],
        markeredgewidth=0.6,
        zorder=ORDER.index(point.role) + (10 if point.selected else 4),
    )


def _label(axes: Any, points: Sequence[Point]) -> None:
    """Names in a column to the right, spread so that none covers another, each tied to its point by a thin line."""
    box = axes.get_position()
    height = box.height * HEIGHT
    low, high = axes.get_ylim()
    ordered = sorted(points, key=lambda point: point.y[1])
    heights = spread([(point.y[1] - low) / (high - low) * height for point in ordered], LABEL_PITCH, height)
    for point, label, y in zip(ordered, svg.labels([point.name for point in ordered]), heights, strict=True):
        axes.annotate(
            label,
            xy=(point.x[1], point.y[1]),
            xytext=(1 + 18 / (box.width * WIDTH), y / height),
            textcoords="axes fraction",
            va="center",
            fontsize=9,
            fontweight="bold" if point.selected else "normal",
            color=svg.COLORS["ink" if point.selected else "muted"],
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": svg.COLORS[point.role],
                "linewidth": 0.6,
                "alpha": 0.6,
                "shrinkA": 2,
                "relpos": (0, 0.5),
                "shrinkB": 5,
            },
        )


def spread(wanted: Sequence[float], pitch: float, height: float) -> list[float]:
    """Positions nearest to the `wanted` ones (ascending, least squares) that are `pitch` apart and within [0, height].

    With i * pitch taken off, "at least a pitch apart" reads "not descending", which is isotonic regression: the value
    at i is the largest, over starts up to i, of the least mean from there to an end from i on. Cutting the solution to
    bounds keeps it the nearest one. Too many labels for the height leave it at the top.
    """
    count = len(wanted)
    offsets = pitch * np.arange(count)
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(wanted) - offsets)])
    lengths = np.arange(1, count + 1) - np.arange(count)[:, None]
    means = (sums[1:] - sums[:-1, None]) / np.maximum(lengths, 1)
    nearest = [means[: i + 1, i:].min(axis=1).max() for i in range(count)]
    return [float(y) for y in np.clip(nearest, 0.0, max(height - offsets[-1], 0.0)) + offsets]

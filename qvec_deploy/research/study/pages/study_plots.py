"""A study's figures with axes: gains in a row each, curves over lambda, gain against similarity, cost of receivers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qvec_deploy.formatting import signed_text
from qvec_deploy.report import svg
from qvec_deploy.report.svg import WIDTH, Figure

CHARACTER = 5.4  # units a character takes at font size 9, on the safe side
ROW = 20.0
HEIGHT, LEGEND_ROW, HANDLE = 232.0, 14.0, 46.0  # HANDLE: of a legend's entry, less its text
LEFT, RIGHT, TOP, BOTTOM = 44.0, 12.0, 8.0, 40.0
LABEL = 36  # characters of a row's name

# Colour, line and mark, told apart without colour too.
LOOKS: tuple[tuple[str, Any, str], ...] = (
    ("patched", "-", "o"),
    ("variant", "--", "^"),
    ("ptq", "-.", "D"),
    ("float", ":", "s"),
    ("ink", (0, (5, 1, 1, 1, 1, 1)), "v"),
    ("patched", ":", "P"),
    ("variant", "-", "X"),
    ("ptq", (0, (1, 2)), "p"),
)


@dataclass(frozen=True)
class IntervalBar:
    """A value with its interval, in percentage points, in a row of its own.

    Attributes:
        low: Lower end; the value itself, as `high`, where there is no interval.
        look: Index into LOOKS: rows of one kind look alike.
    """

    name: str
    low: float
    value: float
    high: float
    look: int = 0

    @property
    def ends(self) -> str:
        """The interval behind the value; empty where there is none."""
        return "" if self.low == self.high else f" [{self.low:+.1f}, {self.high:+.1f}]"


@dataclass(frozen=True)
class CurveLine:
    """A curve: (x, value, low, high) per point, ascending; `look` is an index into LOOKS."""

    name: str
    points: tuple[tuple[float, float, float, float], ...]
    look: int = 0


@dataclass(frozen=True)
class PairPoint:
    """A donor for a receiver, as a point."""

    donor: str
    receiver: str
    x: float
    y: float


def interval_plot(name: str, title: str, caption: str, bars: Sequence[IntervalBar], label: str) -> Figure:
    """Values with intervals, a row each, and where nothing is gained.

    Args:
        name: Unique in the page.
        bars: The rows, from the top.
        label: Label of the axis, with its unit.
    """
    names = [_shorten(bar.name) for bar in bars]
    left, tall = CHARACTER * max(map(len, names)) + 10, ROW * len(bars)
    with svg.page_style():
        canvas, axes = _axes(TOP + tall + BOTTOM, left, tall)
        axes.axvline(0, color=svg.COLORS["ink"], linewidth=0.8, zorder=1)
        for place, bar in enumerate(bars):
            color, _, mark = LOOKS[bar.look]
            axes.plot([bar.low, bar.high], [place] * 2, color=svg.COLORS[color], linewidth=1.6, zorder=2)
            axes.plot([bar.value], [place], mark, color=svg.COLORS[color], markersize=5.5, zorder=3)
        axes.set_ylim(len(bars) - 0.5, -0.5)
        axes.set_yticks(range(len(bars)), names)
        axes.tick_params(labelsize=9, length=0, axis="y")
        axes.set_xlim(*_limits([0.0, *(end for bar in bars for end in (bar.low, bar.high))]))
        _ticks(axes.xaxis, 5)
        axes.set_xlabel(label)
        words = "; ".join(f"{bar.name}: {bar.value:+.1f}{bar.ends}" for bar in bars)
        drawing = svg.inline(canvas, name, signed_text(f"{label}: {words}"))
    samples = tuple((bar.name, bar.value, *((bar.low, bar.high) if bar.ends else (None, None))) for bar in bars)
    return Figure(name, title, caption, drawing, ("row", label, "low", "high"), samples)


def line_plot(
    name: str, title: str, caption: str, lines: Sequence[CurveLine], labels: tuple[str, str], *, signed: bool = True
) -> Figure:
    """Lines with intervals as bands.

    Args:
        name: Unique in the page.
        lines: Each with a look of its own.
        labels: Labels of x and y, with units.
        signed: Values are differences; without it they start at 0.
    """
    entry = HANDLE + CHARACTER * max(len(line.name) for line in lines)
    per_row = max(1, min(len(lines), int((WIDTH - LEFT) / entry)))
    legend = LEGEND_ROW * -(-len(lines) // per_row)
    with svg.page_style():
        canvas, axes = _axes(HEIGHT + legend, LEFT, HEIGHT - BOTTOM - TOP)
        axes.axhline(0, color=svg.COLORS["ink"], linewidth=0.8, zorder=1)
        for line in lines:
            _draw_line(axes, line)
        axes.set_ylim(*_limits([end for line in lines for _, _, *ends in line.points for end in ends]))
        whole = all(x.is_integer() for line in lines for x, *_ in line.points)
        _ticks(axes.xaxis, 9, integer=whole, steps=[1, 2, 5, 10] if whole else [1, 2, 2.5, 5, 10])
        _ticks(axes.yaxis, 6)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        place = {"loc": "lower left", "bbox_to_anchor": (0, 1.02), "borderpad": 0, "borderaxespad": 0}
        axes.legend(**place, ncols=per_row, frameon=False, fontsize=9)
        parts = []
        for line in lines:
            read = (f"{value:{'+' if signed else ''}.3g} at {x:g}" for x, value, _, _ in line.points)
            parts.append(f"{line.name}: {', '.join(read)}")
        drawing = svg.inline(canvas, name, signed_text(f"{labels[1]} over {labels[0]}. {'; '.join(parts)}"))
    samples = tuple((line.name, *point) for line in lines for point in line.points)
    return Figure(name, title, caption, drawing, ("curve", *labels, "low", "high"), samples)


def _draw_line(axes: Any, line: CurveLine) -> None:
    role, dashes, mark = LOOKS[line.look]
    color = svg.COLORS[role]
    places, values, lows, highs = zip(*line.points, strict=True)
    axes.fill_between(places, lows, highs, color=color, alpha=0.16, linewidth=0, zorder=2)
    style = {"marker": mark, "linestyle": dashes, "color": color, "linewidth": 1.4, "markersize": 3.5}
    axes.plot(places, values, **style, label=line.name, zorder=3)


def scatter_plot(
    name: str, title: str, caption: str, points: Sequence[PairPoint], labels: tuple[str, str], *, equal: bool = False
) -> Figure:
    """A point per pair; those that lose look different.

    Args:
        name: Unique in the page.
        labels: Labels of x and y, with units.
        equal: Draw where y equals x: for a prediction and its measurement.
    """
    with svg.page_style():
        canvas, axes = _axes(HEIGHT, LEFT, HEIGHT - BOTTOM - TOP)
        axes.axhline(0, color=svg.COLORS["ink"], linewidth=0.8, zorder=1)
        if equal:
            ends = (min(point.x for point in points), max(point.x for point in points))
            axes.plot(ends, ends, color=svg.COLORS["muted"], linewidth=1, dashes=(3, 2), zorder=1)
        for (color, mark), chosen in (
            (("patched", "o"), [point for point in points if point.y >= 0]),
            (("ptq", "D"), [point for point in points if point.y < 0]),
        ):
            places = [point.x for point in chosen], [point.y for point in chosen]
            (drawn,) = axes.plot(*places, mark, color=svg.COLORS[color], markersize=5.5, alpha=0.8, zorder=3)
            drawn.set(markeredgecolor=svg.COLORS["surface"], markeredgewidth=0.6)
        axes.set_xlim(*_limits([point.x for point in points]))
        axes.set_ylim(*_limits([point.y for point in points]))
        for axis in (axes.xaxis, axes.yaxis):
            _ticks(axis, 6)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        words = "; ".join(f"{p.donor} for {p.receiver}: {p.x:.3g}, {p.y:+.3g}" for p in points)
        drawing = svg.inline(canvas, name, signed_text(f"{labels[0]}, {labels[1]}. {words}"))
    samples = tuple((point.donor, point.receiver, point.x, point.y) for point in points)
    return Figure(name, title, caption, drawing, ("donor", "receiver", *labels), samples)


def _axes(height: float, left: float, tall: float) -> tuple[Any, Any]:
    """A canvas so high, and axes on it above the room for the labels."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(WIDTH / 72, height / 72))
    return canvas, canvas.add_axes((left / WIDTH, BOTTOM / height, (WIDTH - left - RIGHT) / WIDTH, tall / height))


def _ticks(axis: Any, most: int, **settings: Any) -> None:
    """At most so many intervals, and a minus sign: matplotlib's own is not there in every font."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(most, **settings))
    axis.set_major_formatter(lambda value, _: signed_text(f"{value:g}"))


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """A little beyond the values."""
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.5
    return low - margin, high + margin


def _shorten(name: str) -> str:
    return name if len(name) <= LABEL else name[: LABEL - 1] + "…"

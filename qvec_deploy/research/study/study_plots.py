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
class Bar:
    """A value with its interval, in percentage points, in a row of its own.

    Attributes:
        name: Of the row.
        low: Lower end; the value itself, as `high`, where there is no interval.
        value: The middle.
        high: Upper end.
        look: Index into LOOKS: rows of one kind look alike.
    """

    name: str
    low: float
    value: float
    high: float
    look: int = 0


@dataclass(frozen=True)
class Line:
    """A curve: (x, low, value, high) per point, ascending; `look` is an index into LOOKS."""

    name: str
    points: tuple[tuple[float, float, float, float], ...]
    look: int = 0


@dataclass(frozen=True)
class Spot:
    """A donor for a receiver, as a point."""

    donor: str
    receiver: str
    x: float
    y: float


def gains(name: str, title: str, caption: str, bars: Sequence[Bar], label: str) -> Figure:
    """Values with intervals, a row each, and where nothing is gained.

    Args:
        name: Unique in the page.
        title: Of the figure.
        caption: Of the figure.
        bars: The rows, from the top.
        label: Of the axis, with its unit.
    """
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import MaxNLocator

    names = [_shorten(bar.name) for bar in bars]
    left = CHARACTER * max(map(len, names)) + 10
    height = TOP + ROW * len(bars) + BOTTOM
    with svg.page_style():
        canvas = Canvas(figsize=(WIDTH / 72, height / 72))
        box = (left / WIDTH, BOTTOM / height, (WIDTH - left - RIGHT) / WIDTH, ROW * len(bars) / height)
        axes = canvas.add_axes(box)
        axes.axvline(0, color=svg.COLORS["ink"], linewidth=0.8, zorder=1)
        for place, bar in enumerate(bars):
            color, _, mark = LOOKS[bar.look]
            axes.plot([bar.low, bar.high], [place] * 2, color=svg.COLORS[color], linewidth=1.6, zorder=2)
            axes.plot([bar.value], [place], mark, color=svg.COLORS[color], markersize=5.5, zorder=3)
        axes.set_ylim(len(bars) - 0.5, -0.5)
        axes.set_yticks(range(len(bars)), names)
        axes.tick_params(labelsize=9, length=0, axis="y")
        _room(axes, [0.0, *(end for bar in bars for end in (bar.low, bar.high))], "x")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(_minus)
        axes.set_xlabel(label)
        words = "; ".join(f"{bar.name}: {bar.value:+.1f}{_ends(bar)}" for bar in bars)
        drawing = svg.inline(canvas, name, signed_text(f"{label}: {words}"))
    samples = tuple((bar.name, bar.value, *((bar.low, bar.high) if _ends(bar) else (None, None))) for bar in bars)
    return Figure(name, title, caption, drawing, ("row", label, "low", "high"), samples)


def _ends(bar: Bar) -> str:
    return "" if bar.low == bar.high else f" [{bar.low:+.1f}, {bar.high:+.1f}]"


def curves(
    name: str, title: str, caption: str, lines: Sequence[Line], labels: tuple[str, str], *, signed: bool = True
) -> Figure:
    """Lines with intervals as bands.

    Args:
        name: Unique in the page.
        title: Of the figure.
        caption: Of the figure.
        lines: Each with a look of its own.
        labels: Of the axes, x and y, with units.
        signed: Values are differences; without it they start at 0.
    """
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import MaxNLocator

    entry = HANDLE + CHARACTER * max(len(line.name) for line in lines)
    per_row = max(1, min(len(lines), int((WIDTH - LEFT) / entry)))
    legend = LEGEND_ROW * -(-len(lines) // per_row)
    height = HEIGHT + legend
    with svg.page_style():
        canvas = Canvas(figsize=(WIDTH / 72, height / 72))
        tall = (height - BOTTOM - TOP - legend) / height
        axes = canvas.add_axes((LEFT / WIDTH, BOTTOM / height, (WIDTH - LEFT - RIGHT) / WIDTH, tall))
        axes.axhline(0, color=svg.COLORS["ink"], linewidth=0.8, zorder=1)
        for line in lines:
            _line(axes, line, LOOKS[line.look])
        _room(axes, [end for line in lines for _, *ends in line.points for end in (ends[0], ends[2])], "y")
        whole = all(x.is_integer() for line in lines for x, *_ in line.points)
        axes.xaxis.set_major_locator(
            MaxNLocator(9, integer=whole, steps=[1, 2, 5, 10] if whole else [1, 2, 2.5, 5, 10])
        )
        axes.yaxis.set_major_locator(MaxNLocator(6))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(_minus)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        place = {"loc": "lower left", "bbox_to_anchor": (0, 1.02), "borderpad": 0, "borderaxespad": 0}
        axes.legend(**place, ncols=per_row, frameon=False, fontsize=9)
        drawing = svg.inline(canvas, name, _lines_in_words(lines, labels, signed=signed))
    samples = tuple((line.name, x, value, low, high) for line in lines for x, low, value, high in line.points)
    return Figure(name, title, caption, drawing, ("curve", *labels, "low", "high"), samples)


def _line(axes: Any, line: Line, look: tuple[str, Any, str]) -> None:
    role, dashes, mark = look
    color = svg.COLORS[role]
    places, lows, values, highs = zip(*line.points, strict=True)
    axes.fill_between(places, lows, highs, color=color, alpha=0.16, linewidth=0, zorder=2)
    axes.plot(
        places,
        values,
        marker=mark,
        linestyle=dashes,
        color=color,
        linewidth=1.4,
        markersize=3.5,
        label=line.name,
        zorder=3,
    )


def _lines_in_words(lines: Sequence[Line], labels: tuple[str, str], *, signed: bool) -> str:
    parts = []
    for line in lines:
        told = [f"{value:{'+' if signed else ''}.3g} at {x:g}" for x, _, value, _ in line.points]
        parts.append(f"{line.name}: {', '.join(told)}")
    return signed_text(f"{labels[1]} over {labels[0]}. {'; '.join(parts)}")


def cloud(
    name: str, title: str, caption: str, spots: Sequence[Spot], labels: tuple[str, str], *, equal: bool = False
) -> Figure:
    """A point per pair; those that lose look different.

    Args:
        name: Unique in the page.
        title: Of the figure.
        caption: Of the figure.
        spots: The pairs.
        labels: Of the axes, x and y, with units.
        equal: Draw where y equals x: for a prediction and its measurement.
    """
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import MaxNLocator

    with svg.page_style():
        canvas = Canvas(figsize=(WIDTH / 72, HEIGHT / 72))
        tall = (HEIGHT - BOTTOM - TOP) / HEIGHT
        axes = canvas.add_axes((LEFT / WIDTH, BOTTOM / HEIGHT, (WIDTH - LEFT - RIGHT) / WIDTH, tall))
        axes.axhline(0, color=svg.COLORS["ink"], linewidth=0.8, zorder=1)
        if equal:
            ends = (min(spot.x for spot in spots), max(spot.x for spot in spots))
            axes.plot(ends, ends, color=svg.COLORS["muted"], linewidth=1, dashes=(3, 2), zorder=1)
        for (color, mark), chosen in (
            (("patched", "o"), [spot for spot in spots if spot.y >= 0]),
            (("ptq", "D"), [spot for spot in spots if spot.y < 0]),
        ):
            places = [spot.x for spot in chosen], [spot.y for spot in chosen]
            (drawn,) = axes.plot(*places, mark, color=svg.COLORS[color], markersize=5.5, alpha=0.8, zorder=3)
            drawn.set(markeredgecolor=svg.COLORS["surface"], markeredgewidth=0.6)
        _room(axes, [spot.x for spot in spots], "x")
        _room(axes, [spot.y for spot in spots], "y")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(6))
            axis.set_major_formatter(_minus)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        words = "; ".join(f"{s.donor} for {s.receiver}: {s.x:.3g}, {s.y:+.3g}" for s in spots)
        drawing = svg.inline(canvas, name, signed_text(f"{labels[0]}, {labels[1]}. {words}"))
    samples = tuple((spot.donor, spot.receiver, spot.x, spot.y) for spot in spots)
    return Figure(name, title, caption, drawing, ("donor", "receiver", *labels), samples)


def _room(axes: Any, values: Sequence[float], along: str) -> None:
    """Limits a little beyond the values."""
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.5
    (axes.set_xlim if along == "x" else axes.set_ylim)(low - margin, high + margin)


def _minus(value: float, _place: float) -> str:
    """A tick's text with a minus sign; matplotlib's own carries one already, but not for every font."""
    return signed_text(f"{value:g}")


def _shorten(name: str) -> str:
    return name if len(name) <= LABEL else name[: LABEL - 1] + "…"

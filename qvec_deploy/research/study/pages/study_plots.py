"""A study's figures: gains in a row each, curves over lambda, points of pairs, and donors by receivers as cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qvec_deploy.formatting import signed_text
from qvec_deploy.report import svg
from qvec_deploy.report.svg import WIDTH, Figure
from qvec_deploy.research.study.analysis.pair_values import PairGain
from qvec_deploy.research.study.pages import notation

CHARACTER = 5.4  # units a character takes at font size 9, on the safe side
ROW, ROW_LABEL = 20.0, 36  # ROW_LABEL, as CELL_LABEL: characters of a name
HEIGHT, LEGEND_ROW, HANDLE = 232.0, 14.0, 46.0  # HANDLE: of a legend's entry, less its text
LEFT, RIGHT, TOP, BOTTOM = 44.0, 12.0, 8.0, 40.0

CELL_TOP, CELL_RIGHT, SCALE = 6.0, 6.0, 38.0  # SCALE: room for what the colours mean
TALL, FLAT = 30.0, 13.0  # of a cell: with numbers, and where there is no room for them
ROOM = 31.0  # width from which a cell holds its number
STRONGEST = 0.75  # opacity of the largest gain or loss: the number stays readable
CELL_LABEL = 12
SWATCHES = 9
LIMITS = (1, 2, 5, 10, 15, 20, 30, 40, 50, 60, 80, 100)

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
ZERO = {"color": svg.COLORS["ink"], "linewidth": 0.8, "zorder": 1}


@dataclass(frozen=True)
class IntervalBar:
    """A value with its interval, in percentage points, in a row of its own; without one all three are the value.

    Attributes:
        look: Index into LOOKS: rows of one kind look alike.
    """

    name: str
    low: float
    value: float
    high: float
    look: int = 0


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
    """Values with intervals, a row each from the top, and where nothing is gained; `label` has the unit."""
    names = [_shorten(bar.name, ROW_LABEL) for bar in bars]
    with svg.drawing(TOP + ROW * len(bars) + BOTTOM) as page:
        axes = page.axes(_room(names), RIGHT, TOP, BOTTOM)
        axes.axvline(0, **ZERO)
        for place, bar in enumerate(bars):
            color, _, mark = LOOKS[bar.look]
            axes.plot([bar.low, bar.high], [place] * 2, color=svg.COLORS[color], linewidth=1.6, zorder=2)
            axes.plot([bar.value], [place], mark, color=svg.COLORS[color], markersize=5.5, zorder=3)
        svg.name_rows(axes, names)
        axes.set_xlim(*_limits([0.0, *(end for bar in bars for end in (bar.low, bar.high))]))
        _ticks(axes.xaxis, 5)
        axes.set_xlabel(label)
        read, samples = [], []
        for bar in bars:
            known = bar.low != bar.high
            read.append(f"{bar.name}: {bar.value:+.1f}" + (f" [{bar.low:+.1f}, {bar.high:+.1f}]" if known else ""))
            samples.append((bar.name, bar.value, *((bar.low, bar.high) if known else (None, None))))
        drawing = page.svg(name, signed_text(f"{label}: {'; '.join(read)}"))
    return Figure(name, title, caption, drawing, ("row", label, "low", "high"), tuple(samples))


def line_plot(
    name: str, title: str, caption: str, lines: Sequence[CurveLine], labels: tuple[str, str], *, signed: bool = True
) -> Figure:
    """Lines with intervals as bands.

    Args:
        labels: Labels of x and y, with units.
        signed: Values are differences; without it they start at 0.
    """
    entry = HANDLE + CHARACTER * max(len(line.name) for line in lines)
    per_row = max(1, min(len(lines), int((WIDTH - LEFT) / entry)))
    legend = LEGEND_ROW * -(-len(lines) // per_row)
    with svg.drawing(HEIGHT + legend) as page:
        axes = page.axes(LEFT, RIGHT, TOP + legend, BOTTOM)
        axes.axhline(0, **ZERO)
        read = []
        for line in lines:
            role, dashes, mark = LOOKS[line.look]
            color = svg.COLORS[role]
            places, values, lows, highs = zip(*line.points, strict=True)
            axes.fill_between(places, lows, highs, color=color, alpha=0.16, linewidth=0, zorder=2)
            style = {"marker": mark, "linestyle": dashes, "color": color, "linewidth": 1.4, "markersize": 3.5}
            axes.plot(places, values, **style, label=line.name, zorder=3)
            points = (f"{value:{'+' if signed else ''}.3g} at {x:g}" for x, value, _, _ in line.points)
            read.append(f"{line.name}: {', '.join(points)}")
        axes.set_ylim(*_limits([end for line in lines for _, _, *ends in line.points for end in ends]))
        whole = all(x.is_integer() for line in lines for x, *_ in line.points)
        _ticks(axes.xaxis, 9, integer=whole, steps=[1, 2, 5, 10] if whole else [1, 2, 2.5, 5, 10])
        _ticks(axes.yaxis, 6)
        axes.set(xlabel=labels[0], ylabel=labels[1])
        svg.legend(axes, columns=per_row, fontsize=9)
        drawing = page.svg(name, signed_text(f"{labels[1]} over {labels[0]}. {'; '.join(read)}"))
    samples = tuple((line.name, *point) for line in lines for point in line.points)
    return Figure(name, title, caption, drawing, ("curve", *labels, "low", "high"), samples)


def scatter_plot(
    name: str, title: str, caption: str, points: Sequence[PairPoint], labels: tuple[str, str], *, equal: bool = False
) -> Figure:
    """A point per pair; those that lose look different.

    Args:
        labels: Labels of x and y, with units.
        equal: Draw where y equals x: for a prediction and its measurement.
    """
    across = [point.x for point in points]
    with svg.drawing(HEIGHT) as page:
        axes = page.axes(LEFT, RIGHT, TOP, BOTTOM)
        axes.axhline(0, **ZERO)
        if equal:
            ends = (min(across), max(across))
            axes.plot(ends, ends, color=svg.COLORS["muted"], linewidth=1, dashes=(3, 2), zorder=1)
        for color, mark, loses in (("patched", "o", False), ("ptq", "D", True)):
            places = [(point.x, point.y) for point in points if (point.y < 0) == loses]
            style = {"color": svg.COLORS[color], "markersize": 5.5, "alpha": 0.8, "zorder": 3}
            (drawn,) = axes.plot([x for x, _ in places], [y for _, y in places], mark, **style)
            drawn.set(markeredgecolor=svg.COLORS["surface"], markeredgewidth=0.6)
        axes.set(xlim=_limits(across), ylim=_limits([point.y for point in points]), xlabel=labels[0], ylabel=labels[1])
        for axis in (axes.xaxis, axes.yaxis):
            _ticks(axis, 6)
        words = "; ".join(f"{p.donor} for {p.receiver}: {p.x:.3g}, {p.y:+.3g}" for p in points)
        drawing = page.svg(name, signed_text(f"{labels[0]}, {labels[1]}. {words}"))
    samples = tuple((point.donor, point.receiver, point.x, point.y) for point in points)
    return Figure(name, title, caption, drawing, ("donor", "receiver", *labels), samples)


def heatmap(name: str, title: str, caption: str, pairs: Sequence[PairGain], largest: float) -> Figure:
    """Donors down, receivers across: green helps, orange hurts, the number says how much, the small one how sure.

    Args:
        pairs: In the order of receivers; pairs that are not there stay empty.
        largest: Gain or loss, points, with the strongest colour: one for all figures that are compared.
    """
    receivers = list(dict.fromkeys(pair.receiver for pair in pairs))
    donors = list(dict.fromkeys(pair.donor for pair in pairs))
    donors.sort(key=lambda donor: receivers.index(donor) if donor in receivers else len(receivers))
    seeds = any(pair.seed_error is not None for pair in pairs)
    errors = [pair.seed_error if seeds else pair.image_error for pair in pairs]
    over = "seeds" if seeds else "test images"
    across, down = ([_shorten(task, CELL_LABEL) for task in tasks] for tasks in (receivers, donors))
    left = _room(down)
    wide = (WIDTH - left - CELL_RIGHT) / len(receivers)
    numbered = wide >= ROOM
    upright = any(len(label) * CHARACTER > wide - 2 for label in across)
    below = CHARACTER * max(map(len, across)) + 8 if upright else 16.0
    with svg.drawing(CELL_TOP + (TALL if numbered else FLAT) * len(donors) + below + SCALE) as page:
        axes = page.axes(left, CELL_RIGHT, CELL_TOP, below + SCALE)
        for pair, error in zip(pairs, errors, strict=True):
            column, row = receivers.index(pair.receiver), donors.index(pair.donor)
            _colour(axes, (column - 0.5, row - 0.5), 1, pair.gain, largest)
            if numbered:
                _number(axes, column, row, pair.gain, error)
            elif pair.gain < 0:
                axes.text(column, row, "−", ha="center", va="center", fontsize=8)
        _frame(axes, across, down, 90 if upright else 0)
        _scale(page.axes(left, CELL_RIGHT, page.height - 33, 26), largest)
        words = "; ".join(f"{one.donor} for {one.receiver}: {one.gain:+.1f} points" for one in pairs)
        drawing = page.svg(name, signed_text(words))
    caption += f" Small: standard error over {over}." if numbered else " A minus sign marks a loss."
    columns = ("donor", "receiver", "gain, points", f"standard error over {over}, points")
    samples = tuple((one.donor, one.receiver, one.gain, error) for one, error in zip(pairs, errors, strict=True))
    return Figure(name, title, caption, drawing, columns, samples)


def colour_limit(gains: Sequence[float]) -> float:
    """The end of a colour scale that holds all gains: a round number of points, at least 1."""
    largest = max((abs(gain) for gain in gains), default=1.0)
    return float(next((limit for limit in LIMITS if limit >= largest), 100))


def _colour(axes: Any, corner: tuple[float, float], width: float, gain: float, largest: float) -> None:
    from matplotlib.patches import Rectangle

    color = svg.COLORS["patched" if gain >= 0 else "ptq"]
    strength = STRONGEST * min(abs(gain) / largest, 1.0)
    axes.add_patch(Rectangle(corner, width, 1, facecolor=color, alpha=strength, linewidth=0))


def _number(axes: Any, column: int, row: int, gain: float, error: float | None) -> None:
    lower = 0.0 if error is None else 0.16
    axes.text(column, row - lower, notation.points(gain), ha="center", va="center", fontsize=9.5)
    if error is not None:
        axes.text(column, row + 0.29, f"±{error:.1f}", ha="center", va="center", fontsize=7)


def _frame(axes: Any, across: Sequence[str], down: Sequence[str], rotation: int) -> None:
    axes.set_xlim(-0.5, len(across) - 0.5)
    svg.name_columns(axes, across, rotation=rotation)
    svg.name_rows(axes, down)
    axes.tick_params(labelsize=9, length=0)
    _bare(axes)
    for place in range(len(across) + 1):
        axes.axvline(place - 0.5, color=svg.COLORS["line"], linewidth=0.5)
    for place in range(len(down) + 1):
        axes.axhline(place - 0.5, color=svg.COLORS["line"], linewidth=0.5)


def _scale(axes: Any, largest: float) -> None:
    """What the colours mean, in steps."""
    step = 2 * largest / SWATCHES
    for index in range(SWATCHES):
        start = -largest + index * step
        _colour(axes, (start, 0), step, start + step / 2, largest)
    axes.set(xlim=(-largest, largest), ylim=(0, 1))
    axes.set_yticks([])
    _bare(axes)
    ends = (-largest, -largest / 2, 0.0, largest / 2, largest)
    axes.set_xticks(ends, [signed_text(f"{end:+g}") if end else "0" for end in ends])
    axes.tick_params(labelsize=8, length=0, pad=2)
    axes.set_xlabel("gain over plain PTQ, points", fontsize=8, labelpad=1)


def _bare(axes: Any) -> None:
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)


def _room(names: Sequence[str]) -> float:
    """Width of names on the left."""
    return CHARACTER * max(map(len, names)) + 10


def _shorten(name: str, most: int) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


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

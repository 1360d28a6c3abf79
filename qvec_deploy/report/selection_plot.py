"""How the selection saw it: scores over lambda, one line per method; donors alone and their weights in the mix."""

from __future__ import annotations

from typing import Any

from qvec_deploy.bench.results import Report
from qvec_deploy.bench.selection import Selection, SelectionCurve
from qvec_deploy.formatting import short, three
from qvec_deploy.quantize.methods import calibrated_methods
from qvec_deploy.report import svg
from qvec_deploy.report.report_verdict import donor_names, factor, images_of, quantity
from qvec_deploy.report.svg import WIDTH, Figure

CURVE_HEIGHT, CURVE_TOP = 250.0, 10.0  # units
LEGEND_ROW, PER_ROW = 16.0, 4
ROW, DONORS_TOP, BOTTOM, LEFT, RIGHT, GAP = 20.0, 8.0, 42.0, 44.0, 14.0, 18.0
LOG_FROM = 10.0  # ratio of largest to smallest score from which a logarithmic axis shows more

# Colour, line and mark by method; the recipe's own comes first. Told apart without colour too.
LOOKS: tuple[tuple[str, Any, str], ...] = (
    ("patched", "-", "o"),
    ("variant", "--", "^"),
    ("ptq", "-.", "D"),
    ("float", ":", "s"),
    ("ink", (0, (5, 1, 1, 1, 1, 1)), "v"),
)


def selection_figures(report: Report) -> tuple[Figure, ...]:
    """Curves, and donors where there are several; none without a selection."""
    selection = report.selection
    if selection is None:
        return ()
    drawn = [_curves(selection)] if selection.curves else []
    if selection.donors:
        drawn.append(_donors(selection))
    return tuple(drawn)


def _curves(selection: Selection) -> Figure:
    caption = (
        f"Each λ that was tried, on {images_of(selection)}, which selected. Less is better. Large mark: the best λ of "
        "its method. Ring: λ = 0, no patch."
    )
    samples = tuple(
        (curve.method, point.lam, factor(selection) * point.score, point.lam == curve.best)
        for curve in selection.curves
        for point in curve.points
    )
    columns = ("method", "lambda", ", ".join(quantity(selection)), "best")
    return Figure("curves", "Score over λ", caption, _draw_curves(selection), columns, samples)


@svg.drawn
def _draw_curves(selection: Selection) -> str:
    scale, (what, unit) = factor(selection), quantity(selection)
    legend = LEGEND_ROW * -(-len(selection.curves) // PER_ROW)
    with svg.drawing(CURVE_HEIGHT + legend) as drawing:
        axes = drawing.axes(LEFT, RIGHT, CURVE_TOP + legend, BOTTOM)
        axes.axvline(0, color=svg.COLORS["muted"], linewidth=0.8, dashes=(2, 2), zorder=1)
        for index, curve in enumerate(selection.curves):
            _curve(axes, curve, scale, LOOKS[index % len(LOOKS)])
        _scale(axes, [scale * point.score for curve in selection.curves for point in curve.points])
        axes.set_xlabel("λ")
        axes.set_ylabel(f"{what}, {unit}")
        svg.legend(axes, columns=PER_ROW, fontsize=9)
        return drawing.svg("curves", _curves_in_words(selection))


def _curve(axes: Any, curve: SelectionCurve, scale: float, look: tuple[str, Any, str]) -> None:
    role, line, mark = look
    color = svg.COLORS[role]
    axes.plot(
        [point.lam for point in curve.points],
        [scale * point.score for point in curve.points],
        marker=mark,
        linestyle=line,
        color=color,
        linewidth=1.4,
        markersize=3.5,
        label=curve.method,
        zorder=3,
    )
    for point in curve.points:
        if point.lam == curve.best:
            axes.plot(
                [point.lam],
                [scale * point.score],
                mark,
                color=color,
                markersize=8,
                markeredgecolor=svg.COLORS["surface"],
                markeredgewidth=0.6,
                zorder=5,
            )
        if point.lam == 0:
            axes.plot([0], [scale * point.score], "o", color=color, markersize=12, markerfacecolor="none", zorder=4)


def _scale(axes: Any, scores: list[float]) -> None:
    """From 0, so that heights are ratios; logarithmic where far lambdas would press the rest flat."""
    from matplotlib.ticker import MaxNLocator

    smallest, largest = min(scores), max(scores)
    if smallest > 0 and largest > LOG_FROM * smallest:
        svg.scale_logarithmic(axes, "y", smallest / 1.4, largest * 1.4)
    else:
        axes.set_ylim(0, 1.1 * largest or 1)
        axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_locator(MaxNLocator(9, steps=[1, 2, 2.5, 5, 10]))


def _curves_in_words(selection: Selection) -> str:
    parts = []
    for curve in selection.curves:
        scores = {point.lam: point.score * factor(selection) for point in curve.points}
        parts.append(f"{curve.method}: {three(scores[curve.best])} at the best λ, {short(curve.best)}")
        if 0 in scores and curve.best != 0:
            parts[-1] += f"; {three(scores[0])} at λ = 0"
    what, unit = quantity(selection)
    return f"{what} in {unit}: {'; '.join(parts)}"


def _plain_score(selection: Selection) -> float | None:
    """Without any vector, by the rounding to nearest that donors are tried with; None where no curve tells."""
    own = selection.curves[0] if selection.curves else None
    if own is None or own.method in calibrated_methods():
        return None
    return next((point.score for point in own.points if point.lam == 0), None)


def _donors(selection: Selection) -> Figure:
    what, _ = quantity(selection)
    plain = " Dashed: without any vector." if _plain_score(selection) is not None else ""
    caption = (
        f"Left: {what} with each donor alone at λ = 1, on {images_of(selection)}, which selected; less is "
        f"better.{plain} Right: its weight in the mix."
    )
    samples = tuple((donor.name, factor(selection) * donor.score, donor.weight) for donor in selection.donors)
    columns = ("donor", ", ".join(quantity(selection)), "weight")
    return Figure("donors", "Donors", caption, _draw_donors(selection), columns, samples)


@svg.drawn
def _draw_donors(selection: Selection) -> str:
    from matplotlib.ticker import MaxNLocator

    what, unit = quantity(selection)
    scale, plain = factor(selection), _plain_score(selection)
    names = [svg.shorten(name) for name in donor_names(selection)]
    left = svg.CHARACTER * max(map(len, names)) + 10
    half = (WIDTH - left - RIGHT - GAP) / 2
    places = range(len(names))
    with svg.drawing(DONORS_TOP + ROW * len(names) + BOTTOM) as drawing:
        scores = drawing.axes(left, WIDTH - left - half, DONORS_TOP, BOTTOM)
        weights = drawing.axes(left + half + GAP, RIGHT, DONORS_TOP, BOTTOM)
        values = [scale * donor.score for donor in selection.donors]
        scores.plot(values, places, "o", color=svg.COLORS["variant"], markersize=6.5, zorder=3)
        if plain is not None:
            scores.axvline(scale * plain, color=svg.COLORS["ptq"], linewidth=1.2, dashes=(3, 2), zorder=2)
        scores.set_xlim(0, 1.1 * max(*values, scale * plain if plain is not None else 0) or 1)
        weights.barh(places, [donor.weight for donor in selection.donors], height=0.55, color=svg.COLORS["patched"])
        weights.axvline(0, color=svg.COLORS["muted"], linewidth=0.8)
        for axes, label in ((scores, f"{what}, {unit}"), (weights, "weight")):
            svg.name_rows(axes, names if axes is scores else [""] * len(names))
            axes.xaxis.set_major_locator(MaxNLocator(3))
            axes.tick_params(labelsize=9, axis="x")
            axes.set_xlabel(label)
        alone = "; ".join(
            f"{name}: {three(value)} {unit} alone, weight {donor.weight:.3f}"
            for name, value, donor in zip(donor_names(selection), values, selection.donors, strict=True)
        )
        return drawing.svg("donors", alone)

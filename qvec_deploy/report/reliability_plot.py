"""Reliability diagram: how often an engine is right where it says that it is so sure."""

from __future__ import annotations

from typing import Any

from qvec_deploy.bench.results import Candidate, Report
from qvec_deploy.report import svg
from qvec_deploy.report.accuracy_section import described
from qvec_deploy.report.svg import WIDTH, Figure

HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 300.0, 44.0, 12.0, 28.0, 42.0  # units
LARGEST = 110.0  # area of the mark of a bin with every image, in square points
SMALLEST = 5.0


def reliability(report: Report) -> Figure | None:
    """Of the described candidate and of the float receiver; None without bins."""
    full, shown = report.first("float"), described(report)
    both = {one.name: one for one in (full, shown) if one is not None and one.accuracy and one.accuracy.bins}
    if not both:
        return None
    samples = tuple(
        (name, index, entry.count, entry.correct, entry.confidence)
        for name, one in both.items()
        for index, entry in enumerate(one.accuracy.bins if one.accuracy else ())
    )
    caption = (
        "Share of right answers among images of about the same confidence (largest softmax probability). On the "
        "diagonal confidence is deserved, below it is too high. Larger marks stand for more images."
    )
    columns = ("candidate", "bin", "images", "right", "sum of confidence")
    return Figure("reliability", "Confidence and accuracy", caption, _draw(tuple(both.values())), columns, samples)


def _draw(candidates: tuple[Candidate, ...]) -> str:
    from matplotlib.figure import Figure as Canvas

    with svg.page_style():
        canvas = Canvas(figsize=(WIDTH / 72, HEIGHT / 72))
        box = (LEFT / WIDTH, BOTTOM / HEIGHT, (WIDTH - LEFT - RIGHT) / WIDTH, (HEIGHT - TOP - BOTTOM) / HEIGHT)
        axes = canvas.add_axes(box)
        axes.plot([0, 100], [0, 100], color=svg.COLORS["muted"], linewidth=0.8, dashes=(3, 3), zorder=2)
        for candidate in candidates:
            _line(axes, candidate)
        axes.set_xlim(0, 103)
        axes.set_ylim(0, 103)
        axes.set_xlabel("mean confidence, %")
        axes.set_ylabel("right answers, %")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.02), ncols=2, frameon=False, borderpad=0, borderaxespad=0)
        words = "; ".join(f"{one.name}: {_words(one)}" for one in candidates)
        return svg.inline(canvas, "reliability", words)


def _points(candidate: Candidate) -> list[tuple[float, float, int]]:
    bins = candidate.accuracy.bins if candidate.accuracy else ()
    return [(100 * bin.confidence / bin.count, 100 * bin.correct / bin.count, bin.count) for bin in bins if bin.count]


def _line(axes: Any, candidate: Candidate) -> None:
    points, color = _points(candidate), svg.COLORS[candidate.role]
    most = max(count for _, _, count in points)
    confidence, right, counts = zip(*points, strict=True)
    axes.plot(
        confidence,
        right,
        "--" if candidate.role == "float" else "-",
        color=color,
        linewidth=1.0,
        label=svg.shorten(candidate.name),
        zorder=3,
    )
    for x, y, count in zip(confidence, right, counts, strict=True):
        size = (SMALLEST + (LARGEST - SMALLEST) * count / most) ** 0.5
        axes.plot([x], [y], "o", color=color, markersize=size, markeredgecolor=svg.COLORS["surface"], zorder=4)


def _words(candidate: Candidate) -> str:
    return ", ".join(f"{right:.0f} % right at {confidence:.0f} %" for confidence, right, _ in _points(candidate))

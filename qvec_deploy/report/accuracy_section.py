"""What engines answered: all of them in one table, one of them class by class, change by change and by confidence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from qvec_deploy import formatting
from qvec_deploy.bench.results import AnswerChange, Candidate, ClassCount, Report
from qvec_deploy.bench.summary import CandidateRow
from qvec_deploy.formatting import NONE
from qvec_deploy.report import svg
from qvec_deploy.report.columns import share_cell
from qvec_deploy.report.page import Table
from qvec_deploy.report.svg import Figure

MOST_CLASSES = 20  # rows of the table by class; where there are more, those that changed most
MOST_PAYING = 3
"""Classes that are named where it is said which pay for the bits."""
HEIGHT = 300.0  # units
LARGEST = 110.0  # area of the mark of a bin with every image, in square points
SMALLEST = 5.0


def answers(report: Report, rows: Sequence[CandidateRow]) -> Table | None:
    """Top-1 and what else follows from the answers, a row per candidate; None where none was counted."""
    measured = [row for row in rows if row.top1 is not None]
    if not measured:
        return None
    count, plain = report.images, report.first("ptq")
    rival = plain.name if plain is not None else report.baseline
    columns: dict[str, Callable[[CandidateRow], str]] = {
        "Candidate": lambda row: row.candidate.name,
        "Top-1, %": lambda row: str(share_cell(row.top1, count)),
        "Top-5, %": lambda row: str(share_cell(row.top5, count)),
        "Calibration error, %": lambda row: _calibration(row, count),
        "Same answer as float, %": lambda row: str(share_cell(row.agreement, count)),
        f"Gained / lost to {rival}": lambda row: _pair(row.candidate, rival),
        "McNemar's p": lambda row: formatting.p_value(row.p_values[rival]) if rival in row.p_values else NONE,
    }
    told = {title: cell for title, cell in columns.items() if any(cell(row) != NONE for row in measured)}
    note = (
        f"n = {count:,} images, the same for all. Brackets are 95 % Wilson intervals. Gained and lost are images that "
        f"only the candidate, or only {rival}, gets right; p is of McNemar's exact test of the two counts."
    )
    note += "".join(f" {sentence}" for sentence in shared(report))
    return Table.of("Answers", measured, told, shipped=report.selected, note=note, titled=False)


def shared(report: Report) -> tuple[str, ...]:
    """Which candidates were not asked themselves, and why."""
    named: dict[str, list[str]] = {}
    for candidate in report.candidates:
        if candidate.answers_of is not None:
            named.setdefault(candidate.answers_of, []).append(candidate.name)
    return tuple(
        f"Answers of {', '.join(names)} are those of {other}: the same weights, and arithmetic that differs in the "
        "rounding of float32 alone."
        for other, names in named.items()
    )


def by_class(report: Report) -> Table | None:
    """The described candidate's right answers by class, beside the float receiver's; None where not counted."""
    shown, full = described(report), report.first("float")
    if shown is None or not shown.accuracy or not shown.accuracy.classes:
        return None
    before = {entry.label: entry for entry in full.accuracy.classes} if full is not None and full.accuracy else {}
    entries = sorted(shown.accuracy.classes, key=lambda entry: -abs(_drop(entry, before.get(entry.label))))
    some = entries[:MOST_CLASSES]
    if len(some) == len(entries):
        some.sort(key=lambda entry: entry.label)
    compared = full is not None and full is not shown and bool(before)
    columns: dict[str, Callable[[ClassCount], str]] = {
        "Class": lambda entry: class_name(report, entry.label),
        "Images": lambda entry: f"{entry.count:,}",
        "Right": lambda entry: f"{entry.correct:,}",
        f"{shown.name}, %": _share_right,
    }
    if full is not None and compared:
        columns[f"{full.name}, %"] = lambda entry: _share_right(before.get(entry.label))
        columns["Change, points"] = lambda entry: _change(entry, before.get(entry.label))
    rest = ""
    if len(some) < len(entries):
        rest = f", {'the ' * compared}{len(some)}{' that changed most' * compared} of {len(entries)}"
    note = f"Right answers of {shown.name} among the {report.images:,} images, by the class that is right{rest}."
    return Table.of(f"By class{rest}", some, columns, note=note, folded=True)


def class_costs(report: Report) -> tuple[str, ...]:
    """Which classes pay for the bits, a sentence; none where classes were not counted, or nothing was quantized."""
    shown, full = described(report), report.first("float")
    if shown is None or full is None or shown is full or not shown.accuracy or not full.accuracy:
        return ()
    before = {entry.label: entry.correct for entry in full.accuracy.classes}
    lost = {entry.label: before.get(entry.label, 0) - entry.correct for entry in shown.accuracy.classes}
    paying = sorted((label for label, count in lost.items() if count > 0), key=lambda label: -lost[label])
    if not paying:
        return ("No class has fewer right answers than with float.",) if lost else ()
    counts = {entry.label: entry for entry in shown.accuracy.classes}
    named = ", ".join(
        f"“{class_name(report, one.label)}” (right {before[one.label]:,} → {one.correct:,} of {one.count:,})"
        for one in map(counts.__getitem__, paying[:MOST_PAYING])
    )
    rest = f"; {len(paying) - MOST_PAYING} other classes lose less" if len(paying) > MOST_PAYING else ""
    return (f"The bits are paid for by {named}{rest}.",)


def changes(report: Report) -> Table | None:
    """Where the described candidate answers otherwise than the float receiver; None without such counts."""
    shown, full = described(report), report.first("float")
    if shown is None or full is None or full.name not in shown.paired:
        return None
    if shown.accuracy is None or not shown.accuracy.changes:
        return None
    entries = shown.accuracy.changes
    pair = shown.paired[full.name]
    total = pair.count - pair.agreeing  # the report keeps the most frequent kinds only
    some = sum(entry.count for entry in entries) < total
    rest = f"The {len(entries)} most frequent changes" if some else "Changes"
    note = (
        f"{rest} of the float receiver's answer to that of {shown.name}; {total:,} changed answers were counted among "
        f"{report.images:,} images. A change is a gain where only the new answer is right, and a loss where only the "
        "old one was."
    )
    columns: dict[str, Callable[[AnswerChange], str]] = {
        "Answer of float → now": lambda entry: " → ".join(
            class_name(report, label) for label in (entry.was, entry.now)
        ),
        "Images": lambda entry: f"{entry.count:,}",
        "Gained": lambda entry: f"{entry.gained:,}",
        "Lost": lambda entry: f"{entry.lost:,}",
        "Both wrong": lambda entry: f"{entry.count - entry.gained - entry.lost:,}",
    }
    return Table.of("Changed answers", entries, columns, note=note, folded=True)


def described(report: Report) -> Candidate | None:
    """Who is looked at closely: the selected candidate, else the patched one."""
    return report[report.selected] if report.selected is not None else report.first("patched")


def class_name(report: Report, label: int) -> str:
    """The dataset's name of a class, or its number."""
    return report.class_names[label] if label < len(report.class_names) else f"class {label}"


def _calibration(row: CandidateRow, count: int) -> str:
    return NONE if row.calibration_error is None else formatting.percent(row.calibration_error, count)


def _pair(candidate: Candidate, rival: str) -> str:
    pair = candidate.paired.get(rival)
    return NONE if pair is None else f"{pair.gained:,} / {pair.lost:,}"


def _drop(entry: ClassCount, before: ClassCount | None) -> float:
    return entry.correct / entry.count - (before.correct / before.count) if before is not None else 0.0


def _share_right(entry: ClassCount | None) -> str:
    return NONE if entry is None else formatting.percent(entry.correct / entry.count, entry.count)


def _change(entry: ClassCount, before: ClassCount | None) -> str:
    return NONE if before is None else formatting.points(_drop(entry, before), entry.count)


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


@svg.drawn
def _draw(candidates: tuple[Candidate, ...]) -> str:
    with svg.drawing(HEIGHT) as drawing:
        axes = drawing.axes(left=44, right=12, top=28, bottom=42)
        axes.plot([0, 100], [0, 100], color=svg.COLORS["muted"], linewidth=0.8, dashes=(3, 3), zorder=2)
        for candidate in candidates:
            _line(axes, candidate)
        axes.set_xlim(0, 103)
        axes.set_ylim(0, 103)
        axes.set_xlabel("mean confidence, %")
        axes.set_ylabel("right answers, %")
        svg.legend(axes)
        words = "; ".join(
            f"{one.name}: {', '.join(f'{right:.0f} % right at {sure:.0f} %' for sure, right, _ in _points(one))}"
            for one in candidates
        )
        return drawing.svg("reliability", words)


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

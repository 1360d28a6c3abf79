"""The comparison table, defined once: which columns there are and what stands in a cell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qvec_deploy import formatting
from qvec_deploy.bench.results import Report
from qvec_deploy.bench.summary import CandidateRow, LatencyRow
from qvec_deploy.formatting import NONE
from qvec_deploy.report import candidate_text


@dataclass(frozen=True)
class Cell:
    """A value, and beside it its interval or a remark."""

    text: str
    aside: str = ""

    def __str__(self) -> str:
        return f"{self.text} {self.aside}".rstrip()


@dataclass(frozen=True)
class Column:
    """A column of the comparison.

    Attributes:
        key: Stable name, for styling and for picking columns.
        title: Heading.
        unit: Below or behind the heading.
        cell: Text of a row.
    """

    key: str
    title: str
    unit: str
    cell: Callable[[CandidateRow], Cell]


def columns(report: Report, rows: Sequence[CandidateRow]) -> tuple[Column, ...]:
    """The columns after the candidate's name; those with something in a row."""
    return tuple(column for column in _columns(report) if any(column.cell(row).text != NONE for row in rows))


def _columns(report: Report) -> tuple[Column, ...]:
    count, plain = report.images, report.first("ptq")
    batch = next((f"batch {entry.batch_size}" for entry in report[report.baseline].latency), "")

    def top1(row: CandidateRow) -> Cell:
        estimate = row.top1
        if estimate is None:
            return Cell(NONE)
        return Cell(formatting.percent(estimate.value, count), formatting.percent_interval(estimate, count))

    def delta(row: CandidateRow) -> Cell:
        estimate = row.deltas.get(plain.name) if plain else None
        if estimate is None:
            return Cell(NONE)
        return Cell(formatting.points(estimate.value, count), formatting.points_interval(estimate, count))

    return (
        Column("bits", "Bits", "stored / run time", lambda row: Cell(candidate_text.bits(row.candidate))),
        Column("size", "Size", "MB", lambda row: Cell(formatting.megabytes(row.candidate.stored_bytes))),
        Column("top1", "Top-1", f"%, n = {count:,}", top1),
        Column("delta", f"Δ to {plain.name if plain else 'plain PTQ'}", "points", delta),
        Column("median", "Latency", f"median ms, {batch}".rstrip(", "), _latency(_median)),
        Column("p90", "p90", "ms", _latency(_p90)),
        Column("throughput", "Throughput", "images/s", _latency(lambda e: Cell(formatting.three(e.images_per_s)))),
        Column("speed_up", "Speed-up", f"over {report.baseline}", _speed_up),
        Column("load", "Load", "s", _load),
        Column("peak", "Peak memory", "MB", _peak),
    )


def batch_columns() -> tuple[tuple[str, Callable[[CandidateRow, LatencyRow], Cell]], ...]:
    """The columns of the table with a row per candidate and batch size."""
    return (
        ("Batch", lambda row, entry: Cell(str(entry.batch_size))),
        ("Samples", lambda row, entry: Cell(str(entry.samples))),
        ("Median ms", _median_interval),
        ("p90 ms", lambda row, entry: _p90(entry)),
        ("p99 ms", lambda row, entry: _p99(entry)),
        ("CoV %", lambda row, entry: Cell(f"{100 * entry.variation:.1f}")),
        ("Images/s", lambda row, entry: Cell(formatting.three(entry.images_per_s))),
        ("Speed-up", speed_up_cell),
    )


def speed_up_cell(row: CandidateRow, entry: LatencyRow) -> Cell:
    """Ratio of medians with its interval, or why there is none."""
    if row.baseline:
        return Cell("1", "(baseline)")
    if entry.speed_up is None:
        return Cell(NONE)
    return Cell(formatting.times(entry.speed_up.value), formatting.times_interval(entry.speed_up))


def _latency(cell: Callable[[LatencyRow], Cell]) -> Callable[[CandidateRow], Cell]:
    return lambda row: cell(row.first_latency) if row.first_latency else Cell(NONE)


def _median(entry: LatencyRow) -> Cell:
    return Cell(formatting.three(entry.median_ms))


def _median_interval(row: CandidateRow, entry: LatencyRow) -> Cell:
    interval = entry.median_interval
    aside = f"[{formatting.three(interval.low)}, {formatting.three(interval.high)}]" if interval else ""
    return Cell(formatting.three(entry.median_ms), aside)


def _p90(entry: LatencyRow) -> Cell:
    return Cell(NONE if entry.p90_ms is None else formatting.three(entry.p90_ms))


def _p99(entry: LatencyRow) -> Cell:
    if entry.p99_ms is None:
        return Cell(NONE, f"+{entry.missing_p99:,} samples")
    return Cell(formatting.three(entry.p99_ms))


def _speed_up(row: CandidateRow) -> Cell:
    return speed_up_cell(row, row.first_latency) if row.first_latency else Cell(NONE)


def _load(row: CandidateRow) -> Cell:
    footprint = row.candidate.footprint
    return Cell(f"{footprint.load_s:.2f}" if footprint else NONE)


def _peak(row: CandidateRow) -> Cell:
    footprint = row.candidate.footprint
    if footprint is None or footprint.peak_rss_bytes is None:
        return Cell(NONE)
    return Cell(formatting.megabytes(footprint.peak_rss_bytes))

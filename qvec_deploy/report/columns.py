"""COLUMNS: what the reports' tables say of a candidate. A new column is one row here, in every format.

The comparison of HTML and Markdown shows all that have something to say, the terminal and the overview of several
bundles those marked so, and the CSV the values of all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from qvec_deploy import formatting
from qvec_deploy.bench.footprint import Footprint
from qvec_deploy.bench.results import Report
from qvec_deploy.bench.statistics import Estimate
from qvec_deploy.bench.summary import CandidateRow, LatencyRow
from qvec_deploy.formatting import NONE
from qvec_deploy.report import candidate_text
from qvec_deploy.report.csv_text import Value
from qvec_deploy.report.page import CandidateLines, CandidateTable, TableCell

_PAGE, _TERMINAL = ("page",), ("terminal",)
_BOTH = (*_PAGE, *_TERMINAL)


@dataclass(frozen=True)
class Column:
    """A column of the tables of candidates.

    Attributes:
        title: What it is, or what it is in a report.
        places: Where it is shown: on a page, on the terminal, or both.
        values: What the CSV has, by its column; empty where the value is there already.
    """

    title: str | Callable[[Report], str]
    unit: str | Callable[[Report], str]
    cell: Callable[[Report, CandidateRow], str | TableCell]
    places: tuple[str, ...]
    values: Callable[[Report, CandidateRow], Mapping[str, Value]] = field(default=lambda report, row: {})

    def heading(self, report: Report) -> tuple[str, str]:
        """Title and unit."""
        title, unit = (each if isinstance(each, str) else each(report) for each in (self.title, self.unit))
        return title, unit

    def shown(self, report: Report, row: CandidateRow) -> TableCell:
        """What it says of a candidate."""
        return _as_cell(self.cell(report, row))


def column_values(report: Report, row: CandidateRow) -> dict[str, Value]:
    """What all columns give to the CSV."""
    return {key: value for column in COLUMNS for key, value in column.values(report, row).items()}


def comparison_table(
    report: Report, rows: Sequence[CandidateRow], *, on_terminal: bool = False, note: str = "", anchors: str = ""
) -> CandidateTable:
    """A row per candidate, with the columns that have something to say of one."""
    (place,) = _TERMINAL if on_terminal else _PAGE
    wanted = [column for column in COLUMNS if place in column.places]
    shown = [column for column in wanted if any(column.shown(report, row).text != NONE for row in rows)]
    return CandidateTable(
        "Comparison of candidates",
        tuple(column.heading(report) for column in shown),
        tuple(_lines(row, [tuple(column.shown(report, row) for column in shown)], explained=True) for row in rows),
        note,
        anchors,
    )


def batch_table(rows: Sequence[CandidateRow], note: str = "") -> CandidateTable | None:
    """A row per candidate and batch size; None where nothing was timed."""
    timed = [row for row in rows if row.latency]
    if not timed:
        return None
    lines = [
        _lines(row, [tuple(_as_cell(cell(row, entry)) for _, cell in BATCH_COLUMNS) for entry in row.latency])
        for row in timed
    ]
    titles = tuple((title, "") for title, _ in BATCH_COLUMNS)
    return CandidateTable("Latency by batch size", titles, tuple(lines), note)


def _lines(row: CandidateRow, lines: Sequence[tuple[TableCell, ...]], *, explained: bool = False) -> CandidateLines:
    what = candidate_text.in_short(row.candidate) if explained else ""
    return CandidateLines(row.candidate.name, what, row.candidate.role, row.selected, row.marks, tuple(lines))


def estimate_values(name: str, estimate: Estimate | None) -> dict[str, Value]:
    """A value and the ends of its interval, as the CSV has them."""
    ends = (estimate.value, estimate.low, estimate.high) if estimate is not None else (None, None, None)
    return dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))


def _as_cell(said: str | TableCell) -> TableCell:
    return TableCell(said) if isinstance(said, str) else said


def share_cell(share: Estimate | None, count: int) -> TableCell:
    """A share of `count` images in percent, with its interval."""
    if share is None:
        return TableCell(NONE)
    return TableCell(formatting.percent(share.value, count), formatting.percent_interval(share, count))


def _plain(report: Report) -> str:
    plain = report.first("ptq")
    return plain.name if plain is not None else ""


def _delta(report: Report, row: CandidateRow) -> TableCell:
    estimate, count = row.deltas.get(_plain(report)), report.images
    if estimate is None:
        return TableCell(NONE)
    return TableCell(formatting.points(estimate.value, count), formatting.points_interval(estimate, count))


def _latency(cell: Callable[[LatencyRow], str]) -> Callable[[Report, CandidateRow], str]:
    return lambda report, row: cell(row.first_latency) if row.first_latency else NONE


def _footprint(cell: Callable[[Footprint], str]) -> Callable[[Report, CandidateRow], str]:
    return lambda report, row: cell(row.candidate.footprint) if row.candidate.footprint else NONE


def _median_unit(report: Report) -> str:
    sizes = [entry.batch_size for entry in report[report.baseline].latency]
    return f"median ms, batch {sizes[0]}" if sizes else "median ms"


def _p90(entry: LatencyRow) -> str:
    return NONE if entry.p90_ms is None else entry.shown(entry.p90_ms)


def _peak(footprint: Footprint) -> str:
    return NONE if footprint.peak_rss_bytes is None else formatting.megabytes(footprint.peak_rss_bytes)


COLUMNS: tuple[Column, ...] = (
    Column("Bits", "stored", lambda report, row: formatting.short(row.candidate.stored_bits_per_weight), _TERMINAL),
    Column(
        "Bits",
        "stored / run time",
        lambda report, row: candidate_text.bits(row.candidate),
        _PAGE,
        lambda report, row: {
            "stored_bits_per_weight": row.candidate.stored_bits_per_weight,
            "runtime_bits_per_weight": row.candidate.runtime_bits_per_weight,
        },
    ),
    Column(
        "Size",
        "MB",
        lambda report, row: formatting.megabytes(row.candidate.stored_bytes),
        _BOTH,
        lambda report, row: {"stored_bytes": row.candidate.stored_bytes},
    ),
    Column(
        "Top-1",
        lambda report: f"%, n = {report.images:,}",
        lambda report, row: share_cell(row.top1, report.images),
        _BOTH,
        lambda report, row: estimate_values("top1", row.top1),
    ),
    Column(
        lambda report: f"Δ to {_plain(report) or 'plain PTQ'}",
        "points",
        _delta,
        _PAGE,
        lambda report, row: estimate_values("top1_minus_plain", row.deltas.get(_plain(report))),
    ),
    Column("Latency", _median_unit, _latency(lambda entry: entry.shown(entry.median_ms)), _BOTH),
    Column("p90", "ms", _latency(lambda entry: _p90(entry)), _PAGE),
    Column("Throughput", "images/s", _latency(lambda entry: entry.shown(entry.images_per_s)), _PAGE),
    Column(
        "Speed-up",
        lambda report: f"over {report.baseline}",
        lambda report, row: speed_up_cell(row, row.first_latency),
        _BOTH,
    ),
    Column(
        "Load",
        "s",
        _footprint(lambda footprint: f"{footprint.load_s:.2f}"),
        _PAGE,
        lambda report, row: {"load_s": getattr(row.candidate.footprint, "load_s", None)},
    ),
    Column(
        "Peak memory",
        "MB",
        _footprint(_peak),
        _BOTH,
        lambda report, row: {"peak_rss_bytes": getattr(row.candidate.footprint, "peak_rss_bytes", None)},
    ),
)


BATCH_COLUMNS: tuple[tuple[str, Callable[[CandidateRow, LatencyRow], str | TableCell]], ...] = (
    ("Batch", lambda row, entry: str(entry.batch_size)),
    ("Samples", lambda row, entry: str(entry.samples)),
    ("Median ms", lambda row, entry: _median_interval(entry)),
    ("p90 ms", lambda row, entry: _p90(entry)),
    ("p99 ms", lambda row, entry: _p99(entry)),
    ("CoV %", lambda row, entry: f"{100 * entry.variation:.1f}"),
    ("Images/s", lambda row, entry: entry.shown(entry.images_per_s)),
    ("Speed-up", lambda row, entry: speed_up_cell(row, entry)),
)
"""The columns of the table with a row per candidate and batch size."""


def speed_up_cell(row: CandidateRow, entry: LatencyRow | None) -> TableCell:
    """Ratio of medians with its interval, or why there is none."""
    if entry is not None and row.baseline:
        return TableCell("1", "(baseline)")
    if entry is None or entry.speed_up is None:
        return TableCell(NONE)
    return TableCell(formatting.times(entry.speed_up.value, entry.speed_up), formatting.times_interval(entry.speed_up))


def _median_interval(entry: LatencyRow) -> TableCell:
    interval = entry.median_interval
    aside = f"[{entry.shown(interval.low)}, {entry.shown(interval.high)}]" if interval else ""
    return TableCell(entry.shown(entry.median_ms), aside)


def _p99(entry: LatencyRow) -> TableCell:
    if entry.p99_ms is None:
        return TableCell(NONE, f"+{entry.missing_p99:,} samples")
    return TableCell(entry.shown(entry.p99_ms))

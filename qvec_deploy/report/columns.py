"""COLUMNS: what the reports' tables say of a candidate. A new column is one row here, in every format.

The comparison of HTML and Markdown shows all that have something to say, the terminal and the overview of several
bundles those marked so, and the CSV the values of all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from qvec_deploy import formatting
from qvec_deploy.bench.results import Report
from qvec_deploy.bench.statistics import Estimate
from qvec_deploy.bench.summary import CandidateRow, LatencyRow
from qvec_deploy.formatting import NONE
from qvec_deploy.report import candidate_text
from qvec_deploy.report.csv_text import Value
from qvec_deploy.report.page import CandidateLines, CandidateTable, TableCell


@dataclass(frozen=True)
class Column:
    """A column of the tables of candidates.

    Attributes:
        values: What the CSV has, by its column; empty where the value is there already.
    """

    key: str
    title: Callable[[Report], str]
    unit: Callable[[Report], str]
    cell: Callable[[Report, CandidateRow], TableCell]
    values: Callable[[Report, CandidateRow], Mapping[str, Value]] = field(default=lambda report, row: {})
    on_terminal: bool = False
    on_page: bool = True


def column_values(report: Report, row: CandidateRow) -> dict[str, Value]:
    """What all columns give to the CSV."""
    return {key: value for column in COLUMNS for key, value in column.values(report, row).items()}


def comparison_table(
    report: Report, rows: Sequence[CandidateRow], *, on_terminal: bool = False, note: str = "", anchors: str = ""
) -> CandidateTable:
    """A row per candidate, with the columns that have something to say of one."""
    wanted = [column for column in COLUMNS if (column.on_terminal if on_terminal else column.on_page)]
    shown = [column for column in wanted if any(column.cell(report, row).text != NONE for row in rows)]
    return CandidateTable(
        "Comparison of candidates",
        tuple((column.title(report), column.unit(report)) for column in shown),
        tuple(_lines(row, [tuple(column.cell(report, row) for column in shown)]) for row in rows),
        note,
        anchors,
    )


def batch_table(rows: Sequence[CandidateRow], note: str = "") -> CandidateTable | None:
    """A row per candidate and batch size; None where nothing was timed."""
    timed = [row for row in rows if row.latency]
    if not timed:
        return None
    lines = [
        _lines(row, [tuple(cell(row, entry) for _, cell in BATCH_COLUMNS) for entry in row.latency]) for row in timed
    ]
    titles = tuple((title, "") for title, _ in BATCH_COLUMNS)
    return CandidateTable("Latency by batch size", titles, tuple(lines), note)


def _lines(row: CandidateRow, lines: Sequence[tuple[TableCell, ...]]) -> CandidateLines:
    return CandidateLines(row.candidate.name, row.candidate.role, row.selected, row.marks, tuple(lines))


def estimate_values(name: str, estimate: Estimate | None) -> dict[str, Value]:
    """A value and the ends of its interval, as the CSV has them."""
    ends = (estimate.value, estimate.low, estimate.high) if estimate is not None else (None, None, None)
    return dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))


def _said(text: str) -> Callable[[Report], str]:
    return lambda report: text


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


def _latency(cell: Callable[[LatencyRow], TableCell]) -> Callable[[Report, CandidateRow], TableCell]:
    return lambda report, row: cell(row.first_latency) if row.first_latency else TableCell(NONE)


def _median_unit(report: Report) -> str:
    sizes = [entry.batch_size for entry in report[report.baseline].latency]
    return f"median ms, batch {sizes[0]}" if sizes else "median ms"


def _p90(entry: LatencyRow) -> TableCell:
    return TableCell(NONE if entry.p90_ms is None else formatting.three(entry.p90_ms))


def _throughput(entry: LatencyRow) -> TableCell:
    return TableCell(formatting.three(entry.images_per_s))


def _speed_up(report: Report, row: CandidateRow) -> TableCell:
    return speed_up_cell(row, row.first_latency) if row.first_latency else TableCell(NONE)


def _load(report: Report, row: CandidateRow) -> TableCell:
    footprint = row.candidate.footprint
    return TableCell(f"{footprint.load_s:.2f}" if footprint else NONE)


def _peak(report: Report, row: CandidateRow) -> TableCell:
    footprint = row.candidate.footprint
    known = footprint is not None and footprint.peak_rss_bytes is not None
    return TableCell(formatting.megabytes(footprint.peak_rss_bytes) if known else NONE)  # type: ignore[union-attr,arg-type]


COLUMNS: tuple[Column, ...] = (
    Column(
        "stored",
        _said("Bits"),
        _said("stored"),
        lambda report, row: TableCell(formatting.short(row.candidate.stored_bits_per_weight)),
        on_terminal=True,
        on_page=False,
    ),
    Column(
        "bits",
        _said("Bits"),
        _said("stored / run time"),
        lambda report, row: TableCell(candidate_text.bits(row.candidate)),
        lambda report, row: {
            "stored_bits_per_weight": row.candidate.stored_bits_per_weight,
            "runtime_bits_per_weight": row.candidate.runtime_bits_per_weight,
        },
    ),
    Column(
        "size",
        _said("Size"),
        _said("MB"),
        lambda report, row: TableCell(formatting.megabytes(row.candidate.stored_bytes)),
        lambda report, row: {"stored_bytes": row.candidate.stored_bytes},
        on_terminal=True,
    ),
    Column(
        "top1",
        _said("Top-1"),
        lambda report: f"%, n = {report.images:,}",
        lambda report, row: share_cell(row.top1, report.images),
        lambda report, row: estimate_values("top1", row.top1),
        on_terminal=True,
    ),
    Column(
        "delta",
        lambda report: f"Δ to {_plain(report) or 'plain PTQ'}",
        _said("points"),
        _delta,
        lambda report, row: estimate_values("top1_minus_plain", row.deltas.get(_plain(report))),
    ),
    Column(
        "median",
        _said("Latency"),
        _median_unit,
        _latency(lambda entry: TableCell(formatting.three(entry.median_ms))),
        on_terminal=True,
    ),
    Column("p90", _said("p90"), _said("ms"), _latency(_p90)),
    Column("throughput", _said("Throughput"), _said("images/s"), _latency(_throughput)),
    Column("speed_up", _said("Speed-up"), lambda report: f"over {report.baseline}", _speed_up, on_terminal=True),
    Column(
        "load",
        _said("Load"),
        _said("s"),
        _load,
        lambda report, row: {"load_s": row.candidate.footprint.load_s if row.candidate.footprint else None},
    ),
    Column(
        "peak",
        _said("Peak memory"),
        _said("MB"),
        _peak,
        lambda report, row: {
            "peak_rss_bytes": row.candidate.footprint.peak_rss_bytes if row.candidate.footprint else None
        },
        on_terminal=True,
    ),
)


BATCH_COLUMNS: tuple[tuple[str, Callable[[CandidateRow, LatencyRow], TableCell]], ...] = (
    ("Batch", lambda row, entry: TableCell(str(entry.batch_size))),
    ("Samples", lambda row, entry: TableCell(str(entry.samples))),
    ("Median ms", lambda row, entry: _median_interval(entry)),
    ("p90 ms", lambda row, entry: _p90(entry)),
    ("p99 ms", lambda row, entry: _p99(entry)),
    ("CoV %", lambda row, entry: TableCell(f"{100 * entry.variation:.1f}")),
    ("Images/s", lambda row, entry: _throughput(entry)),
    ("Speed-up", lambda row, entry: speed_up_cell(row, entry)),
)
"""The columns of the table with a row per candidate and batch size."""


def speed_up_cell(row: CandidateRow, entry: LatencyRow) -> TableCell:
    """Ratio of medians with its interval, or why there is none."""
    if row.baseline:
        return TableCell("1", "(baseline)")
    if entry.speed_up is None:
        return TableCell(NONE)
    return TableCell(formatting.times(entry.speed_up.value), formatting.times_interval(entry.speed_up))


def _median_interval(entry: LatencyRow) -> TableCell:
    interval = entry.median_interval
    aside = f"[{formatting.three(interval.low)}, {formatting.three(interval.high)}]" if interval else ""
    return TableCell(formatting.three(entry.median_ms), aside)


def _p99(entry: LatencyRow) -> TableCell:
    if entry.p99_ms is None:
        return TableCell(NONE, f"+{entry.missing_p99:,} samples")
    return TableCell(formatting.three(entry.p99_ms))

"""The selected candidate at a glance: four numbers, each with what to hold it against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qvec_deploy import formatting
from qvec_deploy.bench.results import Report
from qvec_deploy.bench.summary import DISTURBED, CandidateRow, LatencyRow
from qvec_deploy.report.table import speed_up_cell


@dataclass(frozen=True)
class HeadlineTile:
    """One of the numbers on top: what it is, the number, its unit, and what to hold it against."""

    term: str
    value: str
    unit: str
    notes: tuple[str, ...]


def tiles(report: Report, computed: Sequence[CandidateRow]) -> tuple[HeadlineTile, ...]:
    """The selected candidate at a glance; those that were measured."""
    row = next((row for row in computed if row.selected), None)
    if row is None:
        return ()
    made = (_top1(report, row), _size(report, row), _latency(report, row), _memory(row))
    return tuple(tile for tile in made if tile is not None)


def _top1(report: Report, row: CandidateRow) -> HeadlineTile | None:
    if row.top1 is None:
        return None
    count = report.images
    notes = [f"95 % interval {formatting.percent_interval(row.top1, count)}"]
    for other in (report.first("ptq"), report.first("float")):
        delta = row.deltas.get(other.name) if other else None
        if other is not None and delta is not None:
            interval = formatting.points_interval(delta, count)
            notes.append(f"{formatting.points(delta.value, count)} points to {other.name} {interval}")
    return HeadlineTile("Top-1 accuracy", formatting.percent(row.top1.value, count), "%", tuple(notes))


def _size(report: Report, row: CandidateRow) -> HeadlineTile:
    candidate, full = row.candidate, report.first("float")
    notes = [f"{formatting.short(candidate.stored_bits_per_weight)} bits per quantized weight"]
    if full is not None and full is not candidate:
        share = candidate.stored_bytes / full.stored_bytes
        notes.append(f"{100 * share:.0f} % of {full.name}, {formatting.megabytes(full.stored_bytes)} MB")
    return HeadlineTile("Stored size", formatting.megabytes(candidate.stored_bytes), "MB", tuple(notes))


def _latency(report: Report, row: CandidateRow) -> HeadlineTile | None:
    entry = row.first_latency
    if entry is None:
        return None
    notes = [f"median, batch {entry.batch_size}, {formatting.three(entry.images_per_s)} images/s"]
    if not row.baseline:
        notes.append(_speed(report, row, entry))
    if entry.disturbed:
        notes.append(DISTURBED)
    return HeadlineTile("Latency", formatting.three(entry.median_ms), "ms", tuple(notes))


def _speed(report: Report, row: CandidateRow, entry: LatencyRow) -> str:
    if entry.speed_up is None:
        return f"too few samples to compare with {report.baseline}"
    doubt = ": no clear difference" if entry.speed_up.contains(1.0) else ""
    return f"{speed_up_cell(row, entry)} over {report.baseline}{doubt}"


def _memory(row: CandidateRow) -> HeadlineTile | None:
    footprint = row.candidate.footprint
    if footprint is None or footprint.peak_rss_bytes is None:
        return None
    added = formatting.megabytes(footprint.peak_rss_bytes - footprint.baseline_rss_bytes)
    notes = (
        f"of which loading and running add {added} MB",
        f"{formatting.short(row.candidate.runtime_bits_per_weight)} bits per weight at run time",
        f"loads in {footprint.load_s:.2f} s",
    )
    return HeadlineTile("Peak memory", formatting.megabytes(footprint.peak_rss_bytes), "MB", notes)

"""Numbers as CSV: of a figure, of every candidate, of every sample."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from urllib.parse import quote

from qvec_deploy.bench.results import Candidate, Report
from qvec_deploy.bench.statistics import Estimate
from qvec_deploy.bench.summary import CandidateRow, LatencyRow, rows

Value = str | float | int | bool | None

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would run


def to_csv(columns: Sequence[str], lines: Iterable[Sequence[Value]]) -> str:
    """A table as RFC 4180 has it; numbers in full, None as an empty cell.

    A text that a spreadsheet would take for a formula gets an apostrophe before it.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\r\n")
    writer.writerow(columns)
    writer.writerows([_cell(value) for value in line] for line in lines)
    return stream.getvalue()


def data_uri(text: str) -> str:
    """A CSV inside a page."""
    return f"data:text/csv;charset=utf-8,{quote(text, safe=',:;/')}"


def candidates_csv(reports: Mapping[str, Report]) -> str:
    """One row per candidate and batch size with every derived number; one without batch where nothing was timed.

    Args:
        reports: By the name in the first column.
    """
    lines = [line for name, report in reports.items() for line in _lines(name, report)]
    columns = dict.fromkeys(column for line in lines for column in line)
    return to_csv(tuple(columns), ([line.get(column) for column in columns] for line in lines))


def samples_csv(reports: Mapping[str, Report]) -> str:
    """Every latency sample, in the order of the blocks, its parts beside it where an engine has them.

    Args:
        reports: By the name in the first column.
    """
    columns = ("report", "candidate", "batch_size", "block", "host_latency_ms")
    parts = ("enqueue_ms", "h2d_ms", "compute_ms", "d2h_ms")
    entries = [
        (name, candidate.name, entry)
        for name, report in reports.items()
        for candidate in report.candidates
        for entry in candidate.latency
    ]
    staged = any(entry.stages is not None for _, _, entry in entries)
    lines: list[tuple[Value, ...]] = []
    for name, candidate, entry in entries:
        beside = [getattr(entry.stages, part) if entry.stages else () for part in parts] if staged else []
        for block, sample in enumerate(entry.samples_ms):
            stages = (values[block] if block < len(values) else None for values in beside)
            lines.append((name, candidate, entry.batch_size, block, sample, *stages))
    return to_csv((*columns, *parts) if staged else columns, lines)


def _cell(value: Value) -> Value:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def _lines(name: str, report: Report) -> Iterator[dict[str, Value]]:
    for row in rows(report):
        own = {"report": name, **_of_candidate(report, row.candidate), **_of_answers(report, row)}
        predictions = {entry.batch_size: entry.ms for entry in row.candidate.predictions}
        for entry in row.latency or (None,):
            yield own | _of_latency(entry) | {"predicted_ms": predictions.get(entry.batch_size) if entry else None}


def _of_candidate(report: Report, candidate: Candidate) -> dict[str, Value]:
    scheme, patch, footprint = candidate.scheme, candidate.patch, candidate.footprint
    return {
        "candidate": candidate.name,
        "role": candidate.role,
        "selected": candidate.name == report.selected,
        "runtime": candidate.runtime,
        "lowering": candidate.lowering,
        "method": candidate.method if scheme else None,
        "bits": scheme.bits if scheme else None,
        "granularity": scheme.granularity if scheme else None,
        "lambda": patch.lam if patch else 0.0,
        "control": patch.control if patch else None,
        "stored_bytes": candidate.stored_bytes,
        "stored_bits_per_weight": candidate.stored_bits_per_weight,
        "runtime_bits_per_weight": candidate.runtime_bits_per_weight,
        "load_s": footprint.load_s if footprint else None,
        "peak_rss_bytes": footprint.peak_rss_bytes if footprint else None,
    }


def _of_answers(report: Report, row: CandidateRow) -> dict[str, Value]:
    plain, full, answers = report.first("ptq"), report.first("float"), row.candidate.accuracy
    found: dict[str, Value] = {
        "dataset": report.dataset,
        "split": report.split,
        "images": answers.count if answers else None,
        "correct": answers.correct if answers else None,
        **_estimate("top1", row.top1),
        **_estimate("top5", row.top5),
        "calibration_error": row.calibration_error,
        **_estimate("agreement_with_float", row.agreement),
    }
    for role, other in (("plain", plain), ("float", full)):
        name = other.name if other is not None else ""
        found |= _estimate(f"top1_minus_{role}", row.deltas.get(name))
        found[f"mcnemar_p_{role}"] = row.p_values.get(name)
    return found


def _of_latency(entry: LatencyRow | None) -> dict[str, Value]:
    return {
        "batch_size": entry.batch_size if entry else None,
        "samples": entry.samples if entry else None,
        "median_ms": entry.median_ms if entry else None,
        "median_ms_low": entry.median_interval.low if entry and entry.median_interval else None,
        "median_ms_high": entry.median_interval.high if entry and entry.median_interval else None,
        "p90_ms": entry.p90_ms if entry else None,
        "p99_ms": entry.p99_ms if entry else None,
        "coefficient_of_variation": entry.variation if entry else None,
        "images_per_s": entry.images_per_s if entry else None,
        **_estimate("speed_up", entry.speed_up if entry else None),
    }


def _estimate(name: str, estimate: Estimate | None) -> dict[str, Value]:
    if estimate is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}

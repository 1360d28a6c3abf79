"""Reports as CSV: a row per candidate, and a row per latency sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qvec_deploy.bench.results import Candidate, Report
from qvec_deploy.bench.summary import CandidateRow, LatencyRow, rows
from qvec_deploy.report.columns import column_values, estimate_values
from qvec_deploy.report.csv_text import Value, to_csv

_ORDER = (
    *("report", "candidate", "role", "selected", "runtime", "lowering", "method", "bits", "granularity", "lambda"),
    *("control", "stored_bytes", "stored_bits_per_weight", "runtime_bits_per_weight", "load_s", "peak_rss_bytes"),
    *("dataset", "split", "images", "correct", "top1", "top1_low", "top1_high", "top5", "top5_low", "top5_high"),
    *("calibration_error", "agreement_with_float", "agreement_with_float_low", "agreement_with_float_high"),
    *("top1_minus_plain", "top1_minus_plain_low", "top1_minus_plain_high", "mcnemar_p_plain"),
    *("top1_minus_float", "top1_minus_float_low", "top1_minus_float_high", "mcnemar_p_float"),
)
"""Columns in the order that files have had from the first; new ones follow."""


def candidates_csv(reports: Mapping[str, Report]) -> str:
    """One row per candidate and batch size with every derived number; one without batch where nothing was timed."""
    lines = [line for name, report in reports.items() for line in _lines(name, report)]
    columns = dict.fromkeys(column for line in lines for column in line)
    return to_csv(tuple(columns), ([line.get(column) for column in columns] for line in lines))


def samples_csv(reports: Mapping[str, Report]) -> str:
    """Every latency sample, in the order of the blocks, its parts beside it where an engine has them."""
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


def _lines(name: str, report: Report) -> Iterator[dict[str, Value]]:
    for row in rows(report):
        answers = _of_answers(report, row)
        found = {"report": name, **_of_candidate(report, row.candidate), **answers, **column_values(report, row)}
        own = {key: found[key] for key in (*(key for key in _ORDER if key in found), *found)}
        predictions = {entry.batch_size: entry.ms for entry in row.candidate.predictions}
        for entry in row.latency or (None,):
            yield own | _of_latency(entry) | {"predicted_ms": predictions.get(entry.batch_size) if entry else None}


def _of_candidate(report: Report, candidate: Candidate) -> dict[str, Value]:
    scheme, patch = candidate.scheme, candidate.patch
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
    }


def _of_answers(report: Report, row: CandidateRow) -> dict[str, Value]:
    plain, full, answers = report.first("ptq"), report.first("float"), row.candidate.accuracy
    found: dict[str, Value] = {
        "dataset": report.dataset,
        "split": report.split,
        "images": answers.count if answers else None,
        "correct": answers.correct if answers else None,
        **estimate_values("top5", row.top5),
        "calibration_error": row.calibration_error,
        **estimate_values("agreement_with_float", row.agreement),
    }
    full_name = full.name if full is not None else ""
    found["mcnemar_p_plain"] = row.p_values.get(plain.name if plain is not None else "")
    found |= estimate_values("top1_minus_float", row.deltas.get(full_name))
    found["mcnemar_p_float"] = row.p_values.get(full_name)
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
        **estimate_values("speed_up", entry.speed_up if entry else None),
    }

"""Report -> rows: every derived number, computed once, for all formats."""

from __future__ import annotations

from dataclasses import dataclass

from qvec_deploy.measure.statistics import (
    Estimate,
    coefficient_of_variation,
    median,
    median_estimate,
    paired_difference,
    quantile,
    speed_up,
    throughput,
    wilson,
)
from qvec_deploy.report.values import Candidate, Report


@dataclass(frozen=True)
class LatencyRow:
    """One candidate's latency at one batch size.

    Attributes:
        batch_size: Images in a run.
        samples: How many were taken.
        median_ms: Host latency.
        median_interval: The median with its interval; None where the samples support none.
        p90_ms: None where the samples support none.
        images_per_s: Throughput of one caller who waits for each batch.
        variation: Standard deviation over mean.
        speed_up: Over the report's baseline; None where the samples support no interval. 1 exactly for the
            baseline itself.
    """

    batch_size: int
    samples: int
    median_ms: float
    median_interval: Estimate | None
    p90_ms: float | None
    images_per_s: float
    variation: float
    speed_up: Estimate | None


@dataclass(frozen=True)
class Row:
    """One candidate with what follows from its measurements.

    Attributes:
        candidate: The inputs.
        selected: Whether it is what the bundle ships.
        baseline: Whether it is what speed-ups are relative to.
        top1: A fraction, with its Wilson interval.
        deltas: By another candidate's name, this accuracy minus that one's on the same images, a fraction.
        latency: Per batch size, ascending.
        marks: Numbers of the warnings that concern it (see `numbered_warnings`).
    """

    candidate: Candidate
    selected: bool
    baseline: bool
    top1: Estimate | None
    deltas: dict[str, Estimate]
    latency: tuple[LatencyRow, ...]
    marks: tuple[int, ...]

    @property
    def first_latency(self) -> LatencyRow | None:
        """At the smallest batch size, the one that the main table shows."""
        return self.latency[0] if self.latency else None


@dataclass(frozen=True)
class NumberedWarning:
    """One kind of doubt, with everything it was found in."""

    number: int
    title: str
    remedy: str
    details: tuple[tuple[str, str], ...]


def rows(report: Report) -> tuple[Row, ...]:
    """A row per candidate, in the report's order."""
    warnings = numbered_warnings(report)
    return tuple(
        Row(
            candidate=candidate,
            selected=candidate.name == report.selected,
            baseline=candidate.name == report.baseline,
            top1=wilson(candidate.accuracy.correct, candidate.accuracy.count) if candidate.accuracy else None,
            deltas={
                other: paired_difference(pair.gained, pair.lost, pair.count) for other, pair in candidate.paired.items()
            },
            latency=_latency_rows(candidate, report[report.baseline]),
            marks=tuple(
                entry.number for entry in warnings if any(subject == candidate.name for subject, _ in entry.details)
            ),
        )
        for candidate in report.candidates
    )


def _latency_rows(candidate: Candidate, baseline: Candidate) -> tuple[LatencyRow, ...]:
    by_batch = {entry.batch_size: entry.samples_ms for entry in baseline.latency}
    return tuple(
        LatencyRow(
            batch_size=entry.batch_size,
            samples=len(entry.samples_ms),
            median_ms=median(entry.samples_ms),
            median_interval=median_estimate(entry.samples_ms),
            p90_ms=quantile(entry.samples_ms, 0.9),
            images_per_s=throughput(entry.batch_size, entry.samples_ms),
            variation=coefficient_of_variation(entry.samples_ms),
            speed_up=speed_up(by_batch[entry.batch_size], entry.samples_ms),
        )
        for entry in candidate.latency
    )


def numbered_warnings(report: Report) -> tuple[NumberedWarning, ...]:
    """The report's warnings, one entry per kind, numbered from 1 in order of appearance."""
    kinds = dict.fromkeys(finding.warning for finding in report.warnings)
    return tuple(
        NumberedWarning(
            number=number,
            title=kind.value,
            remedy=kind.remedy,
            details=tuple((entry.subject, entry.detail) for entry in report.warnings if entry.warning is kind),
        )
        for number, kind in enumerate(kinds, start=1)
    )

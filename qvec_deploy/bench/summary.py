"""Report -> rows: every derived number, computed once, for all formats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qvec_deploy import formatting
from qvec_deploy.bench.environment import Environment
from qvec_deploy.bench.latency import LatencySamples
from qvec_deploy.bench.results import Candidate, ConfidenceBin, Report
from qvec_deploy.bench.statistics import (
    Estimate,
    coefficient_of_variation,
    mcnemar,
    median,
    median_estimate,
    paired_difference,
    quantile,
    samples_missing,
    speed_up,
    throughput,
    wilson,
)
from qvec_deploy.bench.warnings import MeasurementWarning, latency_findings, machine_findings

DISTURBED = "measured on a disturbed machine"
"""Said of every speed that `disturbances` finds something in."""

HASH_SHOWN = 12
"""Digits of a hash that people read."""

UNSTEADY = (MeasurementWarning.WARM_UP_NOT_STABLE, MeasurementWarning.NOISY_SAMPLES, MeasurementWarning.DRIFT)


@dataclass(frozen=True)
class LatencyRow:
    """One candidate's latency at one batch size.

    Attributes:
        median_interval: The median with its interval; None where the samples support none.
        p90_ms: None where the samples support none.
        missing_p99: How many more samples p99 takes; 0 where it is supported.
        images_per_s: Throughput of one caller who waits for each batch.
        speed_up: Over the report's baseline; None where the samples support no interval. 1 exactly for the
            baseline itself.
        disturbed: What disturbed its samples or the baseline's (see `disturbances`): the speed-up may be wrong, however
            narrow its interval.
    """

    batch_size: int
    samples: int
    median_ms: float
    median_interval: Estimate | None
    p90_ms: float | None
    p99_ms: float | None
    missing_p99: int
    images_per_s: float
    variation: float
    speed_up: Estimate | None
    disturbed: tuple[MeasurementWarning, ...]

    def shown(self, value: float) -> str:
        """A time or a rate of these samples as text, with the digits that the median's interval supports."""
        return formatting.significant(value, formatting.supported_digits(self.median_ms, self.median_interval))


@dataclass(frozen=True)
class CandidateRow:
    """One candidate with what follows from its measurements.

    Attributes:
        top1: A fraction, with its Wilson interval.
        top5: Likewise; None where it was not counted.
        calibration_error: Expected calibration error, a fraction; None without bins.
        deltas: By another candidate's name, this accuracy minus that one's on the same images, a fraction.
        p_values: McNemar's p-value against another candidate, by its name.
        agreement: Share of images on which it answers as the float receiver does, with its Wilson interval; None for
            the receiver itself.
        latency: Per batch size, ascending.
        marks: Numbers of the warnings that concern it (see `numbered_warnings`).
    """

    candidate: Candidate
    selected: bool
    baseline: bool
    top1: Estimate | None
    top5: Estimate | None
    calibration_error: float | None
    deltas: dict[str, Estimate]
    p_values: dict[str, float]
    agreement: Estimate | None
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


def rows(report: Report) -> tuple[CandidateRow, ...]:
    """A row per candidate, in the report's order."""
    warnings = numbered_warnings(report)
    return tuple(_row(report, candidate, warnings) for candidate in report.candidates)


def _row(report: Report, candidate: Candidate, warnings: tuple[NumberedWarning, ...]) -> CandidateRow:
    answers, pairs, full = candidate.accuracy, candidate.paired, report.first("float")
    same = pairs.get(full.name) if full is not None else None
    return CandidateRow(
        candidate=candidate,
        selected=candidate.name == report.selected,
        baseline=candidate.name == report.baseline,
        top1=wilson(answers.correct, answers.count) if answers else None,
        top5=wilson(answers.top5, answers.count) if answers and answers.top5 is not None else None,
        calibration_error=calibration_error(answers.bins) if answers and answers.bins else None,
        deltas={other: paired_difference(pair.gained, pair.lost, pair.count) for other, pair in pairs.items()},
        p_values={other: mcnemar(pair.gained, pair.lost) for other, pair in pairs.items()},
        agreement=wilson(same.agreeing, same.count) if same is not None else None,
        latency=_latency_rows(candidate, report),
        marks=tuple(
            entry.number for entry in warnings if any(subject == candidate.name for subject, _ in entry.details)
        ),
    )


def _latency_rows(candidate: Candidate, report: Report) -> tuple[LatencyRow, ...]:
    by_batch = {entry.batch_size: entry for entry in report[report.baseline].latency}
    return tuple(
        LatencyRow(
            batch_size=entry.batch_size,
            samples=len(entry.samples_ms),
            median_ms=median(entry.samples_ms),
            median_interval=median_estimate(entry.samples_ms),
            p90_ms=quantile(entry.samples_ms, 0.9),
            p99_ms=quantile(entry.samples_ms, 0.99),
            missing_p99=samples_missing(len(entry.samples_ms), 0.99),
            images_per_s=throughput(entry.batch_size, entry.samples_ms),
            variation=coefficient_of_variation(entry.samples_ms),
            speed_up=speed_up(by_batch[entry.batch_size].samples_ms, entry.samples_ms),
            disturbed=disturbances(report.environment, by_batch[entry.batch_size], entry),
        )
        for entry in candidate.latency
    )


def dataset_named(report: Report) -> str:
    """Where the images of accuracy are from: their folder or data set, split and hash."""
    where = report.dataset if report.images_folder is None else f"{report.images_folder} ({report.dataset})"
    digest = f", sha256 {report.images_sha256[:HASH_SHOWN]}" if report.images_sha256 is not None else ""
    return f"{where}, split {report.split}{digest}"


def calibration_error(bins: Sequence[ConfidenceBin]) -> float:
    """Expected calibration error, 0 to 1: the mean over images of |accuracy - mean confidence| of their bin.

    Guo et al., On Calibration of Modern Neural Networks (ICML 2017), equation 3.
    """
    count = sum(entry.count for entry in bins)
    if not count:
        raise ValueError("no images, no calibration error")
    return sum(abs(entry.correct - entry.confidence) for entry in bins) / count


def disturbances(environment: Environment, *taken: LatencySamples) -> tuple[MeasurementWarning, ...]:
    """What disturbed samples that were taken together, as `measure.warnings` finds it in them; empty for nothing.

    A busy machine is named with what the samples show, and is no disturbance without it: the load average is one of a
    minute, and a build that has just ended is in it as well as work that goes on. Other work can slow one engine down
    more than another, so that an interval over blocks does not cover it.
    """
    shown = {
        finding.warning
        for entry in taken
        for finding in latency_findings({"": entry}, "")
        if finding.warning in UNSTEADY
    }
    machine = {finding.warning for finding in machine_findings(environment)}
    if MeasurementWarning.THROTTLED in machine:
        shown.add(MeasurementWarning.THROTTLED)
    if shown and MeasurementWarning.BUSY_MACHINE in machine:
        shown.add(MeasurementWarning.BUSY_MACHINE)
    return tuple(warning for warning in MeasurementWarning if warning in shown)


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

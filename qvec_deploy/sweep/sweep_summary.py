"""How the builds of a sweep ended, as values: a row for each, and the document `sweep.json`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qvec_deploy.bench.statistics import Estimate, median, speed_up
from qvec_deploy.bundle.bundle import Bundle
from qvec_deploy.bundle.write import require_engine, require_gates
from qvec_deploy.errors import QvecError, worst
from qvec_deploy.jobs.job import JobFailure, JobOutcome
from qvec_deploy.report.report_json import read_report_json

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class ShippedLatency:
    """Of the shipped engine at its smallest batch size.

    Attributes:
        samples: How many samples the median is taken of.
        speed_up: How many times faster than the float engine of the same build; None where the samples support no
            interval, and for the float engine itself.
    """

    batch_size: int
    samples: int
    median_ms: float
    speed_up: Estimate | None


@dataclass(frozen=True)
class SweepRow:
    """How one build ended.

    Attributes:
        verdict: `built`, `gate missed`, `no engine`, `failed`, or `pending` while it is not over.
        kept: Whether it is a bundle of an earlier run of the sweep.
        exit_code: What `build` alone would have given; None while it is not over.
        reason: Why it is not just `built`; else empty.
        correct: Right answers of the shipped engine, of so many images; None where accuracy was not measured.
        stored_bytes: Graph and weights together.
        gates: Gates passed, of `gates_asked`.
        details: The traceback of a bug.
    """

    name: str
    verdict: str
    kept: bool
    exit_code: int | None
    reason: str = ""
    hint: str = ""
    bundle: str | None = None
    shipped: str | None = None
    correct: int | None = None
    images: int = 0
    stored_bytes: int | None = None
    latency: ShippedLatency | None = None
    gates: int = 0
    gates_asked: int = 0
    seconds: float = 0.0
    details: str = ""

    @classmethod
    def failed(cls, name: str, failure: JobFailure) -> SweepRow:
        """Of a build that left no bundle."""
        reason = " ".join(failure.message.split())
        return cls(name, "failed", False, failure.exit_code, reason, failure.hint, details=failure.details)

    @classmethod
    def of_outcome(cls, outcome: JobOutcome) -> SweepRow:
        """Of a job: its failure, or the row that it returned as plain values."""
        if outcome.failure is not None:
            return cls.failed(outcome.job.name, outcome.failure)
        values = dict(outcome.result)
        if values["latency"] is not None:
            ratio = values["latency"]["speed_up"]
            values["latency"] = ShippedLatency(
                **{**values["latency"], "speed_up": Estimate(**ratio) if ratio else None}
            )
        return cls(**values)

    @classmethod
    def of_bundle(cls, bundle: Bundle, *, kept: bool, seconds: float) -> SweepRow:
        """Of a bundle that was built, or kept."""
        manifest = bundle.manifest
        ended: dict[str, Any] = {"verdict": "built", "exit_code": 0}
        try:
            require_engine(bundle)
            require_gates(bundle)
        except QvecError as error:
            verdict = "gate missed" if bundle.engine_missing() is None else "no engine"
            ended = {"verdict": verdict, "exit_code": error.exit_code, "reason": error.message, "hint": error.hint}
        return cls(
            name=manifest.name,
            kept=kept,
            bundle=str(bundle.directory),
            stored_bytes=manifest.stored_bytes,
            gates=sum(gate.passed for gate in manifest.gates),
            gates_asked=len(manifest.gates),
            seconds=seconds,
            **ended,
            **_shipped(bundle.directory / "report.json"),
        )


@dataclass(frozen=True)
class SweepSummary:
    """A sweep's outcome: a row for every recipe, in their order."""

    rows: tuple[SweepRow, ...]

    @property
    def exit_code(self) -> int:
        """That of the worst outcome so far."""
        return worst(row.exit_code for row in self.rows if row.exit_code is not None)

    def as_dict(self) -> dict[str, Any]:
        """As plain values; without an exit code while anything is pending."""
        over = all(row.exit_code is not None for row in self.rows)
        return {
            "schema_version": SCHEMA_VERSION,
            "exit_code": self.exit_code if over else None,
            "builds": [asdict(row) for row in self.rows],
        }


def _shipped(path: Path) -> dict[str, Any]:
    """Accuracy and latency of the shipped candidate; empty without a report."""
    if not path.is_file():
        return {}
    report = read_report_json(path)
    shipped = report[report.selected or report.baseline]
    found: dict[str, Any] = {"shipped": shipped.name}
    if shipped.accuracy is not None:
        found |= {"correct": shipped.accuracy.correct, "images": shipped.accuracy.count}
    if shipped.latency:
        own, baseline = shipped.latency[0], report[report.baseline].latency[0]
        ratio = speed_up(baseline.samples_ms, own.samples_ms) if shipped.name != report.baseline else None
        found["latency"] = ShippedLatency(own.batch_size, len(own.samples_ms), median(own.samples_ms), ratio)
    return found

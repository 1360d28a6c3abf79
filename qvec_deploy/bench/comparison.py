"""What a comparison of two bundles is made of; what follows from it (regressions, doubts) is derived."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from qvec_deploy.bench.accuracy import PairedAnswers
from qvec_deploy.bench.environment import Environment
from qvec_deploy.bench.latency import LatencySamples
from qvec_deploy.bench.statistics import Estimate, detectable_loss
from qvec_deploy.bench.verdicts import LEVEL, TOLERANCE, AccuracyVerdict, GateVerdict, SizeVerdict, Verdict
from qvec_deploy.bench.warnings import Finding
from qvec_deploy.io.files import canonical_json

COMPARISON_VERSION = 1

Group = Literal["recipe", "sources", "versions", "engine", "sizes", "selection", "gates", "environment"]
Source = Literal["stored", "measured", "same engine"]
Scalar = str | int | float | bool | None
Value = Scalar | list["Value"] | dict[str, "Value"]


@dataclass(frozen=True)
class Tolerances:
    """What does not matter.

    Attributes:
        level: Probability of a false alarm in each test.
        accuracy: Percentage points of top-1.
        size: Relative difference of bytes.
    """

    level: float = LEVEL
    latency: float = TOLERANCE
    accuracy: float = 0.5
    size: float = 0.01


@dataclass(frozen=True)
class Side:
    """One of the two bundles.

    Attributes:
        created: When it was built, as its manifest says.
        manifest_sha256: Of its manifest.json, which holds the hashes of everything else.
    """

    name: str
    created: str
    manifest_sha256: str
    runtime: str
    lowering: str
    method: str
    lam: float


@dataclass(frozen=True)
class Changed:
    """A field that differs; None where one bundle has no such field."""

    group: Group
    field: str
    old: Value
    new: Value


@dataclass(frozen=True)
class AccuracyChange:
    """Top-1 of NEW against OLD on the same images.

    Attributes:
        source: Where the answers are from; None where there are none.
        reason: Why it is UNSURE without a test, or why no test was needed; empty otherwise.
        old_correct: Right answers of OLD; None without answers.
        paired: NEW against OLD, image by image.
        difference: NEW minus OLD as a fraction, with its interval at the level of the comparison.
    """

    verdict: AccuracyVerdict
    source: Source | None
    reason: str = ""
    dataset: str = ""
    split: str = ""
    old_correct: int | None = None
    new_correct: int | None = None
    paired: PairedAnswers | None = None
    difference: Estimate | None = None
    p: float | None = None


@dataclass(frozen=True)
class LatencyChange:
    """Host latency of NEW against OLD at one batch size.

    Attributes:
        source: `measured`: here, interleaved. `stored`: where each was built, not paired.
        reason: Why it is UNSURE without a test, or what must be known about the test; empty otherwise.
        batch_size: Images in a run; None where nothing was measured at any.
        ratio: OLD's median over NEW's, with its interval at the level of the comparison.
        old: OLD's samples; None without any.
    """

    verdict: Verdict
    source: Source | None
    reason: str = ""
    batch_size: int | None = None
    ratio: Estimate | None = None
    old: LatencySamples | None = None
    new: LatencySamples | None = None


@dataclass(frozen=True)
class SizeChange:
    """Bytes a device needs to run the engine, and bits of a quantized weight."""

    verdict: SizeVerdict
    old_bytes: int
    new_bytes: int
    old_stored_bits: float
    new_stored_bits: float
    old_runtime_bits: float
    new_runtime_bits: float


@dataclass(frozen=True)
class GateChange:
    """A gate of either bundle.

    Attributes:
        old: Whether OLD passed it; None where OLD was not asked or not judged.
        wanted: What NEW's recipe asks for, or OLD's where NEW's does not.
        found: What was measured on NEW; empty where it was not judged.
    """

    name: str
    verdict: GateVerdict
    old: bool | None
    new: bool | None
    wanted: str
    found: str


@dataclass(frozen=True)
class Comparison:
    """NEW against OLD.

    Attributes:
        latency: One entry per batch size, ascending; never empty.
        environment: Where latency was measured for this comparison; None where it was not.
        warnings: Doubts about that measurement; their subjects are OLD, NEW and `machine`.
    """

    old: Side
    new: Side
    tolerances: Tolerances
    changes: tuple[Changed, ...]
    accuracy: AccuracyChange
    latency: tuple[LatencyChange, ...]
    size: SizeChange
    gates: tuple[GateChange, ...]
    environment: Environment | None
    warnings: tuple[Finding, ...]
    created_by: str
    version: int = COMPARISON_VERSION

    def regressions(self) -> list[str]:
        """What got worse by more than the tolerances, in words; empty where nothing did.

        A gate that NEW misses is one unless OLD missed it too. Latencies of separate runs are at most a doubt.
        """
        found = []
        tolerances, difference = self.tolerances, self.accuracy.difference
        if self.accuracy.verdict == "WORSE" and difference is not None:
            loss = -100 * difference.value
            if loss > tolerances.accuracy:
                found.append(f"accuracy is WORSE by {loss:.2f} points, more than {tolerances.accuracy:g}")
        for entry in self.latency:
            if entry.verdict == "SLOWER" and entry.source != "stored":
                found.append(f"latency{at_batch(entry)} is SLOWER by more than {100 * tolerances.latency:.3g} %")
        if self.size.verdict == "LARGER":
            growth = self.size.new_bytes / self.size.old_bytes - 1
            found.append(f"size is LARGER by {100 * growth:.3g} %, more than {100 * tolerances.size:.3g} %")
        for gate in self.gates:
            if gate.verdict == "MISSED" and gate.old is not False:
                found.append(f"gate {gate.name} is MISSED: wanted {gate.wanted}, found {gate.found}")
        return found

    def doubts(self) -> list[str]:
        """What nobody knows, or what was no better before, with the reason; empty where every verdict stands."""
        found = []
        if self.accuracy.verdict == "UNSURE":
            found.append(f"accuracy: {self.accuracy.reason or self._power()}")
        for entry in self.latency:
            if entry.verdict == "UNSURE":
                why = entry.reason or "more blocks or a quieter machine would decide"
                found.append(f"latency{at_batch(entry)}: {why}")
            elif entry.verdict == "SLOWER" and entry.source == "stored":
                found.append(f"latency{at_batch(entry)}: SLOWER in separate runs; compare without --stored")
        for gate in self.gates:
            if gate.verdict == "UNSURE":
                found.append(f"gate {gate.name}: not judged")
            elif gate.verdict == "MISSED" and gate.old is False:
                found.append(f"gate {gate.name}: still missed: wanted {gate.wanted}, found {gate.found}")
        return found

    def _power(self) -> str:
        """What a test of so many images can find at all."""
        paired = self.accuracy.paired
        if paired is None:
            return "more images would decide"
        loss = 100 * detectable_loss(paired.gained, paired.lost, paired.count, confidence=1 - self.tolerances.level)
        return f"{paired.count:,} images reveal a loss of {loss:.2g} points in four of five cases; more would decide"

    def outcome(self) -> str:
        """REGRESSION, UNSURE or OK, for all of it."""
        return "REGRESSION" if self.regressions() else ("UNSURE" if self.doubts() else "OK")


def at_batch(entry: LatencyChange) -> str:
    """` at batch size N`; empty where nothing was measured at any."""
    return "" if entry.batch_size is None else f" at batch size {entry.batch_size}"


def comparison_json(comparison: Comparison) -> bytes:
    """The comparison as canonical JSON, every sample included; `derived` repeats what follows from the rest."""
    derived = {
        "outcome": comparison.outcome(),
        "regressions": comparison.regressions(),
        "doubts": comparison.doubts(),
    }
    return canonical_json({"format": "qvec-comparison", **asdict(comparison), "derived": derived})

"""Whether what was built may be shipped: as the gates say, else the reader's own decision, with the reasons."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from qvec_deploy import formatting
from qvec_deploy.bench.results import Candidate, Report
from qvec_deploy.bench.statistics import mcnemar, paired_difference
from qvec_deploy.bench.warnings import RECEIVER_DOUBTS, MeasurementWarning

Verdict = Literal["ship", "do not ship", "you decide"]

FORBIDDING = (MeasurementWarning.UNVERIFIED,)
"""Doubts that no gate outweighs."""
LEVEL = 0.05  # of the test that plain quantization is better


@dataclass(frozen=True)
class Decision:
    """What follows from the measurements.

    Attributes:
        verdict: `ship` only where gates were asked for, one of them about accuracy, and all were passed.
        reasons: Why, a sentence each.
    """

    verdict: Verdict
    reasons: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """All of it in one line."""
        return f"{self.verdict.capitalize()}: {' '.join(self.reasons)}"


def decide(report: Report) -> Decision | None:
    """The decision about a build's engine; None where bundles were only measured."""
    if report.selected is None:
        return None
    shipped = report[report.selected]
    against = tuple(_against(report, shipped))
    if against:
        return Decision("do not ship", against)
    doubted = next((finding for finding in report.warnings if finding.warning in RECEIVER_DOUBTS), None)
    if doubted is not None:
        wrong = f"{doubted.subject} may be read wrong ({doubted.warning}), and nothing here means much then."
        return Decision("you decide", (wrong, doubted.detail, _weighed(report, shipped)))
    if shipped.emulated:
        unrun = f"{shipped.name} was not run: its accuracy was computed on the CPU, its speed is not known."
        return Decision("you decide", (unrun, _weighed(report, shipped)))
    if not report.gates:
        unjudged = f"the recipe asks for no gates, so nothing has judged {shipped.name}."
        return Decision("you decide", (unjudged, _weighed(report, shipped)))
    names = ", ".join(gate.name for gate in report.gates)
    counted = f"all {len(report.gates)} gates" if len(report.gates) > 1 else "its gate"
    passed = f"{shipped.name} passes {counted}: {names}."
    if not any(gate.name.startswith("beats ") or gate.name == "max_top1_drop" for gate in report.gates):
        return Decision("you decide", (passed, "No gate judges its accuracy.", _weighed(report, shipped)))
    return Decision("ship", (passed,))


def _against(report: Report, shipped: Candidate) -> Iterator[str]:
    missed = [gate for gate in report.gates if not gate.passed]
    if missed:
        told = "; ".join(f"{gate.name} (wanted {gate.wanted}, found {gate.found})" for gate in missed)
        total = len(report.gates)
        yield f"{shipped.name} misses {f'{len(missed)} of {total} gates' if total > 1 else 'its gate'}: {told}."
    for kind in FORBIDDING:
        found = [finding.detail for finding in report.warnings if finding.warning is kind]
        if found:
            yield " ".join(dict.fromkeys(found))
    plain = report.first("ptq")
    pair = shipped.paired.get(plain.name) if plain is not None and shipped.patch is not None else None
    if pair is not None and plain is not None:
        difference = paired_difference(pair.gained, pair.lost, pair.count)
        if difference.high < 0 and mcnemar(pair.gained, pair.lost) < LEVEL:
            points = formatting.points(-difference.value, pair.count).lstrip("+")
            yield f"without the patch, {plain.name} is {points} points better in the same room."


def _weighed(report: Report, shipped: Candidate) -> str:
    """Accuracy and size beside the float model's, as far as they were measured."""
    full = report.first("float")
    if shipped.accuracy is None:
        return "Its accuracy was not measured."
    pair = shipped.paired.get(full.name) if full is not None else None
    if full is None or pair is None:
        return f"It gives {shipped.accuracy.correct:,} of {shipped.accuracy.count:,} images the right class."
    difference = paired_difference(pair.gained, pair.lost, pair.count)
    points, interval = (
        formatting.points(difference.value, pair.count),
        formatting.points_interval(difference, pair.count),
    )
    size = f"{formatting.megabytes(shipped.stored_bytes)} MB instead of {formatting.megabytes(full.stored_bytes)} MB"
    unclear = ": no clear difference" if difference.contains(0.0) else ""
    return f"It takes {size}, and its top-1 differs from float's by {points} points {interval}{unclear}."

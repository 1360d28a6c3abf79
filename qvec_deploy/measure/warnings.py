"""The closed list of doubts about a measurement, each with its remedy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from qvec_deploy.measure.environment import Environment
from qvec_deploy.measure.latency import LatencySamples
from qvec_deploy.measure.statistics import (
    coefficient_of_variation,
    median,
    paired_difference,
    samples_needed,
    speed_up,
)

# trtexec warns at 2.5 % for GPU time; host latency on a CPU shared with an operating system is noisier.
NOISE_LIMIT = 0.10
DRIFT_LIMIT = 0.05  # a drift of this size is as large as the speed-ups people argue about
FIRST_SAMPLE_LIMIT = 2.0
HEADROOM = 0.02  # of top-1; at 4 bits the gap is about half of it, and the best vector cannot give back more


class MeasurementWarning(StrEnum):
    """Why a number deserves doubt."""

    BUSY_MACHINE = "busy machine"
    FREQUENCY_NOT_FIXED = "frequency not fixed"
    NOISY_SAMPLES = "noisy samples"
    DRIFT = "drift"
    SLOW_FIRST_SAMPLE = "slow first sample"
    TOO_FEW_SAMPLES = "too few samples"
    SPEED_UP_UNCLEAR = "speed-up unclear"
    ACCURACY_UNCLEAR = "accuracy difference unclear"
    NO_HEADROOM = "little to recover"
    LAMBDA_AT_EDGE = "lambda at the edge of its grid"
    METHOD_LIMITED = "method limited"
    UNVERIFIED = "unverified patch"
    COORDINATES_UNKNOWN = "vector without a sketch"

    @property
    def remedy(self) -> str:
        """What to do about it, one sentence."""
        return REMEDIES[self]


REMEDIES = {
    MeasurementWarning.BUSY_MACHINE: "Stop other work, wait a minute and measure again.",
    MeasurementWarning.FREQUENCY_NOT_FIXED: "Set the frequency governor to performance and measure again.",
    MeasurementWarning.NOISY_SAMPLES: "Use a quiet machine, fewer threads than cores, or more blocks.",
    MeasurementWarning.DRIFT: "Warm up longer; if it stays, look for thermal throttling or other work.",
    MeasurementWarning.SLOW_FIRST_SAMPLE: "Increase the warm-up.",
    MeasurementWarning.TOO_FEW_SAMPLES: "Increase the number of blocks.",
    MeasurementWarning.SPEED_UP_UNCLEAR: "Do not claim a difference in speed, or measure more blocks.",
    MeasurementWarning.ACCURACY_UNCLEAR: "Do not claim a difference in accuracy, or evaluate on more images.",
    MeasurementWarning.NO_HEADROOM: "A vector is not needed here: ship lambda 0.",
    MeasurementWarning.LAMBDA_AT_EDGE: "Widen select.lambdas.",
    MeasurementWarning.METHOD_LIMITED: "Choose another method or granularity.",
    MeasurementWarning.COORDINATES_UNKNOWN: "Make it again with `qvec-deploy vector extract`: nobody has compared "
    "the receiver's coordinates with its donor's.",
    MeasurementWarning.UNVERIFIED: "Give `images` of the receiver's task, unlabelled ones will do, or `evaluate`.",
}


@dataclass(frozen=True)
class Finding:
    """One doubt.

    Attributes:
        warning: Which.
        subject: The candidate it is about, or `machine`.
        detail: The numbers behind it, one sentence.
    """

    warning: MeasurementWarning
    subject: str
    detail: str


def machine_findings(environment: Environment) -> list[Finding]:
    """What the environment alone gives reason to doubt."""
    findings = []
    if environment.load_average > environment.usable_cores:
        load, cores = environment.load_average, environment.usable_cores
        detail = f"The load average before measuring was {load:g} on {cores} usable cores."
        findings.append(Finding(MeasurementWarning.BUSY_MACHINE, "machine", detail))
    if environment.governor not in (None, "performance"):
        detail = f"The frequency governor is {environment.governor}."
        findings.append(Finding(MeasurementWarning.FREQUENCY_NOT_FIXED, "machine", detail))
    return findings


def latency_findings(latency: Mapping[str, LatencySamples], baseline: str) -> list[Finding]:
    """Doubts about samples that were taken together.

    Args:
        latency: What `measure_latency` returned.
        baseline: The candidate others are compared with.
    """
    findings = []
    for name, measured in latency.items():
        samples, batch = measured.samples_ms, f"batch size {measured.batch_size}"
        for warning, detail in _sample_doubts(samples):
            findings.append(Finding(warning, name, f"{detail} ({batch})."))
        ratio = None if name == baseline else speed_up(latency[baseline].samples_ms, samples)
        if ratio is not None and ratio.contains(1.0):
            interval = f"{ratio.low:.3f} to {ratio.high:.3f}"
            detail = f"The interval of its speed-up over {baseline}, {interval}, contains 1 ({batch})."
            findings.append(Finding(MeasurementWarning.SPEED_UP_UNCLEAR, name, detail))
    return findings


def accuracy_findings(name: str, baseline: str, gained: int, lost: int, count: int) -> list[Finding]:
    """Doubt about the difference of two accuracies on the same images (see `accuracy.compare`)."""
    difference = paired_difference(gained, lost, count)
    if not difference.contains(0.0):
        return []
    low, high = 100 * difference.low, 100 * difference.high
    detail = f"The interval of its difference to {baseline}, {low:+.2f} to {high:+.2f} points, contains 0."
    return [Finding(MeasurementWarning.ACCURACY_UNCLEAR, name, detail)]


def headroom_finding(name: str, top1: float, float_top1: float) -> list[Finding]:
    """Whether plain PTQ loses so little that no vector can matter.

    Args:
        name: The plain candidate.
        top1: Its accuracy, a fraction.
        float_top1: The float receiver's, on the same images.
    """
    if float_top1 - top1 >= HEADROOM:
        return []
    detail = f"Without a vector it is {100 * (float_top1 - top1):.1f} points below the float receiver."
    return [Finding(MeasurementWarning.NO_HEADROOM, name, detail)]


def _sample_doubts(samples: tuple[float, ...]) -> list[tuple[MeasurementWarning, str]]:
    doubts = []
    missing = samples_needed(0.9) - len(samples)
    if missing > 0:
        detail = f"p90 needs {samples_needed(0.9)} samples and has {len(samples)}: {missing} more"
        doubts.append((MeasurementWarning.TOO_FEW_SAMPLES, detail))
    variation = coefficient_of_variation(samples)
    if variation > NOISE_LIMIT:
        doubts.append((MeasurementWarning.NOISY_SAMPLES, f"The standard deviation is {variation:.0%} of the mean"))
    half = len(samples) // 2
    if half >= samples_needed(0.5):  # below that a median of half the samples says little
        drift = median(samples[half:]) / median(samples[:half]) - 1
        if abs(drift) > DRIFT_LIMIT:
            detail = f"The second half's median differs from the first half's by {drift:+.1%}"
            doubts.append((MeasurementWarning.DRIFT, detail))
    if samples[0] > FIRST_SAMPLE_LIMIT * median(samples):
        detail = f"The first sample took {samples[0] / median(samples):.1f} times the median"
        doubts.append((MeasurementWarning.SLOW_FIRST_SAMPLE, detail))
    return doubts

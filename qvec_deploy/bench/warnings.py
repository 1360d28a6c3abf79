"""The closed list of doubts about a measurement, each with its remedy.

A provider that falls back is none of them: sessions on a GPU refuse to load when any node would run elsewhere, so
such an engine is never measured (IncompatibleError, exit 4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from qvec_deploy.bench import statistics
from qvec_deploy.bench.environment import Environment, GpuState
from qvec_deploy.bench.latency import LatencySamples
from qvec_deploy.datasets import OpenedDataset

# trtexec warns at 2.5 % for GPU time; host latency on a CPU shared with an operating system is noisier.
NOISE_LIMIT = 0.10
DRIFT_LIMIT = 0.05  # a drift of this size is as large as the speed-ups people argue about
FIRST_SAMPLE_LIMIT = 2.0
NAMED_CLASSES = 10
HEADROOM = 0.02  # of top-1; at 4 bits the gap is about half of it, and the best vector cannot give back more


class MeasurementWarning(StrEnum):
    """Why a number deserves doubt."""

    remedy: str

    def __new__(cls, value: str, remedy: str) -> MeasurementWarning:
        """A doubt, and what to do about it: one sentence."""
        member = str.__new__(cls, value)
        member._value_, member.remedy = value, remedy
        return member

    OTHER_CLASSES = (
        "answers of other classes",
        "Check in this order: the order of the classes (receiver.classes, or evaluate.class_order), whether the "
        "checkpoint's head is of these classes, receiver.preprocessing.",
    )
    NO_BETTER_THAN_GUESSING = (
        "no better than guessing",
        "Check in this order: receiver.preprocessing, the order of the classes (receiver.classes, or "
        "evaluate.class_order), whether the checkpoint's head is of these classes.",
    )
    FEWER_RIGHT_THAN_CLAIMED = (
        "far fewer right answers than its confidence claims",
        "Check in this order: receiver.preprocessing, the order of the classes (receiver.classes, or "
        "evaluate.class_order), whether the checkpoint's head is of these classes.",
    )
    FILES_LEFT_ASIDE = "files left aside", "Convert them to a picture format, or move them out of the folder."
    CLASSES_WITHOUT_IMAGES = (
        "classes without images",
        "Add images of them, or read accuracy as that of the other classes.",
    )
    BUSY_MACHINE = "busy machine", "Stop other work, wait a minute and measure again."
    FREQUENCY_NOT_FIXED = "frequency not fixed", "Set the frequency governor to performance and measure again."
    CLOCKS_NOT_LOCKED = "clocks not locked", "Lock them with `nvidia-smi --lock-gpu-clocks` and measure again."
    THROTTLED = "throttled", "Cool the GPU or raise its power limit, lock its clocks lower, and measure again."
    NOISY_SAMPLES = "noisy samples", "Use a quiet machine, fewer threads than cores, or more blocks."
    DRIFT = "drift", "Warm up longer; if it stays, look for thermal throttling or other work."
    SLOW_FIRST_SAMPLE = "slow first sample", "Increase the warm-up."
    WARM_UP_NOT_STABLE = "warm-up not stable", "Look for other work or a clock that wanders, or increase the warm-up."
    TOO_FEW_SAMPLES = "too few samples", "Increase the number of blocks."
    FEWER_SAMPLES = "fewer samples than asked", "Allow more time, or measure fewer candidates at a time."
    SPEED_UP_UNCLEAR = "speed-up unclear", "Do not claim a difference in speed, or measure more blocks."
    ACCURACY_UNCLEAR = (
        "accuracy difference unclear",
        "Do not claim a difference in accuracy, or evaluate on more images.",
    )
    EMULATED = (
        "emulated, not run",
        "Measure with `qvec-deploy bench` where the engine runs before anything is shipped.",
    )
    NO_HEADROOM = "little to recover", "A vector is not needed here: take lambda 0."
    LAMBDA_AT_EDGE = "lambda at the edge of its grid", "Widen select.lambdas."
    METHOD_LIMITED = "method limited", "Choose another method or granularity."
    UNVERIFIED = "unverified patch", "Give `images` of the receiver's task, unlabelled ones will do, or `evaluate`."
    COORDINATES_UNKNOWN = (
        "vector without a sketch",
        "Make it again with `qvec-deploy vector extract`: nobody has compared the receiver's coordinates with its "
        "donor's.",
    )


RECEIVER_DOUBTS = (
    MeasurementWarning.OTHER_CLASSES,
    MeasurementWarning.NO_BETTER_THAN_GUESSING,
    MeasurementWarning.FEWER_RIGHT_THAN_CLAIMED,
)
"""Doubts about the receiver itself: nothing that is measured against it means much."""
INPUT_DOUBTS = (*RECEIVER_DOUBTS, MeasurementWarning.FILES_LEFT_ASIDE, MeasurementWarning.CLASSES_WITHOUT_IMAGES)
"""Doubts about what went in, which are told in full wherever doubts are counted."""


@dataclass(frozen=True)
class Finding:
    """One doubt.

    Attributes:
        subject: The candidate it is about, or `machine`.
        detail: The numbers behind it, one sentence.
    """

    warning: MeasurementWarning
    subject: str
    detail: str


def image_findings(images: OpenedDataset | None) -> list[Finding]:
    """What there is to know about labelled images before their accuracy is read."""
    if images is None:
        return []
    findings = [Finding(MeasurementWarning.FILES_LEFT_ASIDE, "images", remark) for remark in images.remarks]
    if images.missing:
        count, named = len(images.missing), ", ".join(images.missing[:NAMED_CLASSES])
        more = f" and {count - NAMED_CLASSES:,} more" if count > NAMED_CLASSES else ""
        detail = f"{count:,} of {images.classes:,} classes {'has' if count == 1 else 'have'} no image: {named}{more}."
        findings.append(Finding(MeasurementWarning.CLASSES_WITHOUT_IMAGES, "images", detail))
    return findings


def emulation_findings(names: Sequence[str]) -> list[Finding]:
    """That engines were not run."""
    detail = "Accuracy was computed on the CPU in the engine's number formats; the engine was not run."
    return [Finding(MeasurementWarning.EMULATED, name, detail) for name in names]


def machine_findings(environment: Environment) -> list[Finding]:
    """What the environment alone gives reason to doubt."""
    findings = []
    # Held to some cores, a process does not know which ones the others load.
    held = environment.affinity is not None
    load, cores = environment.load_average, environment.logical_cores if held else environment.usable_cores
    if load > cores:
        detail = f"The load average before measuring was {load:g} on {cores} {'' if held else 'usable '}cores."
        findings.append(Finding(MeasurementWarning.BUSY_MACHINE, "machine", detail))
    if environment.governor not in (None, "performance"):
        detail = f"The frequency governor is {environment.governor}."
        findings.append(Finding(MeasurementWarning.FREQUENCY_NOT_FIXED, "machine", detail))
    if environment.gpu is not None:
        findings += _gpu_findings(environment.gpu)
    return findings


def _gpu_findings(gpu: GpuState) -> list[Finding]:
    findings = []
    if gpu.clocks_locked is False:
        clock = f" ({gpu.sm_clock_mhz:g} MHz after measuring)" if gpu.sm_clock_mhz is not None else ""
        detail = f"The clocks of the {gpu.name} are not locked{clock}."
        findings.append(Finding(MeasurementWarning.CLOCKS_NOT_LOCKED, "machine", detail))
    if gpu.throttling:
        detail = f"The {gpu.name} lowered its clocks while measuring: {', '.join(gpu.throttling)}."
        findings.append(Finding(MeasurementWarning.THROTTLED, "machine", detail))
    return findings


def latency_findings(
    latency: Mapping[str, LatencySamples], baseline: str, asked_blocks: int = 0, asked_s: float = 0.0
) -> list[Finding]:
    """Doubts about samples that were taken together.

    Args:
        asked_s: Seconds that they were to add up to.
    """
    findings = []
    for name, measured in latency.items():
        samples, batch = measured.samples_ms, f"batch size {measured.batch_size}"
        if not measured.settled:
            detail = f"After {measured.warmup} blocks of warm-up its times were still changing ({batch})."
            findings.append(Finding(MeasurementWarning.WARM_UP_NOT_STABLE, name, detail))
        taken_s = sum(samples) / 1e3
        if len(samples) < asked_blocks or taken_s < asked_s:
            seconds = f", {taken_s:.3g} of {asked_s:g} s" if asked_s else ""
            detail = f"The time was up after {len(samples):,} of {asked_blocks:,} samples{seconds} ({batch})."
            findings.append(Finding(MeasurementWarning.FEWER_SAMPLES, name, detail))
        for warning, detail in _sample_doubts(samples):
            findings.append(Finding(warning, name, f"{detail} ({batch})."))
        ratio = None if name == baseline else statistics.speed_up(latency[baseline].samples_ms, samples)
        if ratio is not None and ratio.contains(1.0):
            interval = f"{ratio.low:.3f} to {ratio.high:.3f}"
            detail = f"The interval of its speed-up over {baseline}, {interval}, contains 1 ({batch})."
            findings.append(Finding(MeasurementWarning.SPEED_UP_UNCLEAR, name, detail))
    return findings


def accuracy_findings(name: str, baseline: str, gained: int, lost: int, count: int) -> list[Finding]:
    """Doubt about the difference of two accuracies on the same images (see `accuracy.compare`)."""
    difference = statistics.paired_difference(gained, lost, count)
    if not difference.contains(0.0):
        return []
    low, high = 100 * difference.low, 100 * difference.high
    detail = f"The interval of its difference to {baseline}, {low:+.2f} to {high:+.2f} points, contains 0."
    return [Finding(MeasurementWarning.ACCURACY_UNCLEAR, name, detail)]


def headroom_finding(name: str, top1: float, float_top1: float) -> list[Finding]:
    """Whether plain PTQ loses so little that no vector can matter."""
    if float_top1 - top1 >= HEADROOM:
        return []
    detail = f"Without a vector it is {100 * (float_top1 - top1):.1f} points below the float receiver."
    return [Finding(MeasurementWarning.NO_HEADROOM, name, detail)]


def _sample_doubts(samples: tuple[float, ...]) -> list[tuple[MeasurementWarning, str]]:
    doubts = []
    missing = statistics.samples_missing(len(samples), 0.9)
    if missing:
        detail = f"p90 needs {statistics.samples_needed(0.9)} samples and has {len(samples)}: {missing} more"
        doubts.append((MeasurementWarning.TOO_FEW_SAMPLES, detail))
    variation = statistics.coefficient_of_variation(samples)
    if variation > NOISE_LIMIT:
        detail = f"The standard deviation is {100 * variation:.0f} % of the mean"
        doubts.append((MeasurementWarning.NOISY_SAMPLES, detail))
    half = len(samples) // 2
    if half >= statistics.samples_needed(0.5):  # below that a median of half the samples says little
        drift = statistics.median(samples[half:]) / statistics.median(samples[:half]) - 1
        if abs(drift) > DRIFT_LIMIT:
            detail = f"The second half's median differs from the first half's by {100 * drift:+.1f} %"
            doubts.append((MeasurementWarning.DRIFT, detail))
    if samples[0] > FIRST_SAMPLE_LIMIT * statistics.median(samples):
        detail = f"The first sample took {samples[0] / statistics.median(samples):.1f} times the median"
        doubts.append((MeasurementWarning.SLOW_FIRST_SAMPLE, detail))
    return doubts

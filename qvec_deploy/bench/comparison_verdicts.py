"""When accuracy, size and gates got better or worse: the one place that says so. Latency has `measure.verdict`."""

from __future__ import annotations

from enum import StrEnum

from qvec_deploy.bench.statistics import Estimate, mcnemar, paired_difference


class AccuracyVerdict(StrEnum):
    """What the paired test of two accuracies says."""

    BETTER = "BETTER"
    WORSE = "WORSE"
    SAME = "SAME"
    UNSURE = "UNSURE"


class SizeVerdict(StrEnum):
    """What two sizes say; they are counted, not sampled, so there is no doubt about them."""

    SMALLER = "SMALLER"
    LARGER = "LARGER"
    SAME = "SAME"


class GateVerdict(StrEnum):
    """What became of a gate."""

    PASSED = "PASSED"
    MISSED = "MISSED"
    UNSURE = "UNSURE"


def accuracy_verdict(
    gained: int, lost: int, count: int, *, level: float, tolerance: float
) -> tuple[AccuracyVerdict, Estimate, float]:
    """Compare two engines on the same images.

    The interval of the difference (Bonett & Price 2012, see `paired_difference`) at confidence 1 - `level` and
    McNemar's exact test decide together:

    - SAME: all of the interval lies within `tolerance` of zero. A difference that matters is ruled out.
    - BETTER or WORSE: not that, all of the interval lies on one side of zero, and McNemar's p is below `level`.
    - UNSURE: anything else. More images would decide.

    WORSE is a regression where the measured loss itself is beyond the tolerance (`Comparison.regressions`): it must
    be real, and it must matter. To ask that the whole interval lie beyond the tolerance would let most real losses
    pass: 5,000 images of which 4 % differ prove "worse than 0.5 points" only from a loss of about 1.2 points on.

    Args:
        level: Probability of BETTER or WORSE where there is no difference, at most.
        tolerance: Percentage points that do not matter.

    Returns:
        The verdict, the difference as a fraction with its interval, and McNemar's p.
    """
    difference = paired_difference(gained, lost, count, confidence=1 - level)
    p = mcnemar(gained, lost)
    limit = tolerance / 100
    if -limit <= difference.low and difference.high <= limit:
        return AccuracyVerdict.SAME, difference, p
    if p < level and difference.low > 0:
        return AccuracyVerdict.BETTER, difference, p
    if p < level and difference.high < 0:
        return AccuracyVerdict.WORSE, difference, p
    return AccuracyVerdict.UNSURE, difference, p


def size_verdict(old: int, new: int, tolerance: float) -> SizeVerdict:
    """Compare two sizes in bytes: SAME within `tolerance` times the old one."""
    if abs(new - old) <= tolerance * old:
        return SizeVerdict.SAME
    return SizeVerdict.LARGER if new > old else SizeVerdict.SMALLER


def gate_verdict(new: bool | None) -> GateVerdict:
    """What became of a gate: whether NEW passed it, UNSURE where it was not asked or not judged (None)."""
    if new is None:
        return GateVerdict.UNSURE
    return GateVerdict.PASSED if new else GateVerdict.MISSED

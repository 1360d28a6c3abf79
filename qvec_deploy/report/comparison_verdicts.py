"""When accuracy, size and gates got better or worse: the one place that says so. Latency has `measure.verdict`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum

import numpy as np

from qvec_deploy.measure.statistics import (
    BOOTSTRAP_SEED,
    VALUES_AT_ONCE,
    Estimate,
    mcnemar,
    median,
    paired_difference,
    samples_needed,
)

ENDS_REST_ON = 50  # resamples beyond each end of an interval


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
        gained: Images that only NEW gets right.
        lost: Images that only OLD gets right.
        count: All images.
        level: Probability of BETTER or WORSE where there is no difference, at most.
        tolerance: Percentage points that do not matter.

    Returns:
        The verdict, the difference as a fraction with its interval, and McNemar's p.

    Raises:
        ValueError: Counts that cannot be.
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


def unpaired_speed_up(old: Sequence[float], new: Sequence[float], *, level: float) -> Estimate | None:
    """How many times faster NEW is, from samples of separate runs: the ratio of the medians.

    A percentile bootstrap that draws from each run alone (Efron & Tibshirani 1993, chapter 13). It knows nothing of
    what differed between the runs, such as another load or temperature: that counts as a difference of the engines.

    Args:
        old: Milliseconds.
        new: Milliseconds.
        level: One minus the confidence of the interval.

    Returns:
        None below `samples_needed(0.5)` samples on either side, where a median has no interval.
    """
    if min(len(old), len(new)) < samples_needed(0.5):
        return None
    draw, resamples = np.random.default_rng(BOOTSTRAP_SEED), math.ceil(2 * ENDS_REST_ON / level)
    medians = []
    for samples in (np.asarray(old), np.asarray(new)):
        at_once = max(1, VALUES_AT_ONCE // len(samples))
        parts = [
            np.median(samples[draw.integers(0, len(samples), (min(at_once, resamples - done), len(samples)))], axis=1)
            for done in range(0, resamples, at_once)
        ]
        medians.append(np.concatenate(parts))
    low, high = np.quantile(medians[0] / medians[1], [level / 2, 1 - level / 2])
    return Estimate(median(old) / median(new), float(low), float(high))

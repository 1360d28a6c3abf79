"""Samples and counts -> the numbers a report prints, each with its interval. No clock, no I/O.

scipy is imported where it is used: it takes most of a second, and reading a report should not wait for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

CONFIDENCE = 0.95
RESAMPLES = 2000  # the ends of a 95 % interval rest on 50 resamples each
VALUES_AT_ONCE = 1 << 20  # bounds the bootstrap's memory however many blocks there are
BOOTSTRAP_SEED = 0  # a report computed twice from the same samples is the same report


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def contains(self, value: float) -> bool:
        """Whether the interval does not rule `value` out."""
        return self.low <= value <= self.high


def median(samples: Sequence[float]) -> float:
    """The middle sample, or the mean of the middle two."""
    return float(np.median(samples))


def throughput(batch_size: int, samples_ms: Sequence[float]) -> float:
    """Images per second of one caller who waits for each batch: batch size over the median latency."""
    return batch_size * 1000.0 / median(samples_ms)


def coefficient_of_variation(samples: Sequence[float]) -> float:
    """Standard deviation over mean (sample standard deviation; 0 for a single sample)."""
    return float(np.std(samples, ddof=1) / np.mean(samples)) if len(samples) > 1 else 0.0


def samples_needed(quantile: float) -> int:
    """Samples from which a distribution-free 95 % interval of a quantile exists at all.

    The largest of n samples lies below the q-quantile with probability q^n, so only q^n <= 2.5 % (and
    likewise for the smallest) leaves an order statistic to end the interval with: 6 for the median, 36 for
    p90, 368 for p99.
    Conover, Practical Nonparametric Statistics (1999), section 3.2.
    """
    tail = (1 - CONFIDENCE) / 2
    return math.ceil(math.log(tail) / math.log(max(quantile, 1 - quantile)))


def quantile(samples: Sequence[float], q: float) -> float | None:
    """The q-quantile, interpolated linearly, or None below `samples_needed(q)` samples."""
    return float(np.quantile(samples, q)) if len(samples) >= samples_needed(q) else None


def median_estimate(samples: Sequence[float]) -> Estimate | None:
    """The median with its distribution-free interval (order statistics); None below `samples_needed(0.5)`."""
    if len(samples) < samples_needed(0.5):
        return None
    from scipy import stats

    interval = stats.quantile_test(samples, q=0, p=0.5).confidence_interval(CONFIDENCE)
    return Estimate(median(samples), float(interval.low), float(interval.high))


def speed_up(baseline: Sequence[float], candidate: Sequence[float]) -> Estimate | None:
    """How many times faster the candidate is: baseline median over candidate median, from paired samples.

    The interval is a percentile bootstrap (Efron & Tibshirani 1993, chapter 13) over blocks: a resample draws
    blocks and takes both samples of each, so what disturbed a whole block cancels. It takes blocks as
    exchangeable; a drift within the measurement is what `warnings` looks for.

    Returns:
        None below `samples_needed(0.5)` blocks, where neither median has an interval.

    Raises:
        ValueError: The samples are not from the same blocks.
    """
    if len(baseline) != len(candidate):
        raise ValueError(f"{len(baseline)} and {len(candidate)} samples cannot be paired")
    count = len(baseline)
    if count < samples_needed(0.5):
        return None
    pairs, draw = np.array([baseline, candidate]), np.random.default_rng(BOOTSTRAP_SEED)
    ratios: list[Float64] = []
    at_once = max(1, VALUES_AT_ONCE // count)
    for done in range(0, RESAMPLES, at_once):
        blocks = draw.integers(0, count, (min(at_once, RESAMPLES - done), count))
        medians = np.median(pairs[:, blocks], axis=2)
        ratios.append(medians[0] / medians[1])
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(ratios), [tail, 1 - tail])
    return Estimate(median(baseline) / median(candidate), float(low), float(high))


def wilson(correct: int, count: int) -> Estimate:
    """A proportion with its Wilson score interval (E. B. Wilson, JASA 22, 1927), no continuity correction.

    Raises:
        ValueError: Not a count of successes.
    """
    from scipy import stats

    interval = stats.binomtest(correct, count).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(correct / count, float(interval.low), float(interval.high))


def paired_difference(gained: int, lost: int, count: int) -> Estimate:
    """Difference of two accuracies on the same images, with the adjusted Wald interval for pairs.

    Bonett & Price, Statistics in Medicine 31 (2012): one observation is added to each kind of disagreement.

    Args:
        gained: Images that only the candidate gets right.
        lost: Images that only the baseline gets right.
        count: All images.

    Returns:
        A fraction, (gained - lost) / count; the interval is cut to [-1, 1].

    Raises:
        ValueError: Counts that cannot be.
    """
    if min(gained, lost) < 0 or gained + lost > count or count < 1:
        raise ValueError(f"{gained} gained and {lost} lost of {count} images")
    from scipy import stats

    up, down = (gained + 1) / (count + 2), (lost + 1) / (count + 2)
    z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    spread = z * math.sqrt((up + down - (up - down) ** 2) / (count + 2))
    center = up - down
    return Estimate((gained - lost) / count, max(center - spread, -1.0), min(center + spread, 1.0))


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p-value of McNemar's exact test: are images gained and lost as often as each other?

    McNemar, Psychometrika 12 (1947), with the exact binomial distribution in place of chi-squared. 1.0 where the
    two never disagree.

    Args:
        gained: Images that only the candidate gets right.
        lost: Images that only the baseline gets right.
    """
    from scipy import stats

    return float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0

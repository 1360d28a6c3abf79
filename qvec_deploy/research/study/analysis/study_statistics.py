"""Tables of receivers and seeds -> intervals and tests. No cells, no I/O; everything random is seeded.

scipy is imported where it is used, so that reading a study's values does not wait for it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from qvec_deploy.bench.statistics import CONFIDENCE, Estimate
from qvec_deploy.research.study.analysis.pair_values import PermutationTest
from qvec_deploy.research.study.analysis.study_summary import PairedStatistics, PooledMean

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

RESAMPLES = 10_000
PERMUTATIONS = 10_000
SEED = 0  # a summary computed twice from the same cells is the same summary
AT_ONCE = 1 << 20  # values of one step of a bootstrap or a permutation test: bounds their memory
TINY = 1e-12


def ratio(numerator: Float64, denominator: Float64) -> Estimate | None:
    """Sum over sum, with its 95 % interval over receivers and seeds.

    Receivers and seeds are both taken to be drawn. The variance is that of sums over receivers plus that of sums over
    seeds, each from residuals of the ratio (Cochran, Sampling Techniques, 1977, chapter 6) divided by 1 less their
    weight (HC2: MacKinnon & White, Journal of Econometrics 29, 1985); what neither shares is counted twice, on the wide
    side. The interval is Student's, with degrees of freedom by Satterthwaite (Biometrics Bulletin 2, 1946) and no more
    than receivers less one. With one seed, which says nothing about other seeds, that of a mean is the t interval.

    How often it covers the truth, simulated with normal effects:

    * means, one seed: 95 % over receivers, with 2 of them or 22;
    * means, 2 to 5 seeds: 93 to 100 % where seeds differ less than receivers, the most where receivers do not differ or
      are only 2; 88 % where there are only 2 seeds, which differ as much as 22 receivers or five times as much as 6;
    * shares of a gap: 93 to 100 % where gaps differ up to threefold, 90 to 100 % up to twentyfold;
    * shares of wins, where not all are equal: 89 to 100 %.

    Args:
        numerator: (receivers, seeds); 0 where there is no cell.
        denominator: Likewise. 1 where there is a cell makes the ratio a mean. Receivers with neither do not count.

    Returns:
        The ends are the value itself where nothing varies. None where the denominator is not above 0, with one
        receiver, or where a receiver or a seed has all of the denominator, so that the others have none or less.
    """
    there = (numerator != 0) | (denominator != 0)
    place = np.ix_(there.any(axis=1), there.any(axis=0))
    part, of = numerator[place], denominator[place]
    total = float(of.sum())
    if total <= 0 or len(of) < 2:
        return None
    value = float(part.sum()) / total
    residuals, parts = (part - value * of) / total, []
    for axis in (1, 0):
        left, weights = residuals.sum(axis=axis), of.sum(axis=axis) / total
        if len(weights) > 1:  # one seed has no variance
            if weights.max() >= 1:
                return None
            parts.append((float((left**2 / (1 - weights)).sum()), len(weights) - 1))
    variance = sum(each for each, _ in parts)
    if variance <= (TINY * max(1.0, abs(value))) ** 2:
        return Estimate(value, value, value)
    freedom = variance**2 / sum(each**2 / free for each, free in parts)
    reach = t_quantile(min(freedom, len(of) - 1)) * math.sqrt(variance)
    return Estimate(value, value - reach, value + reach)


def share(part: Float64, of: Float64) -> Estimate | None:
    """How many of how many, 0 to 1: `ratio` with its interval cut to what a share can be."""
    found = ratio(part, of)
    return found and Estimate(found.value, max(found.low, 0.0), min(found.high, 1.0))


def mean(values: Float64) -> Estimate | None:
    """Mean over receivers and seeds (NaN: no cell), with the interval of `ratio`."""
    there = np.isfinite(values)
    return ratio(np.where(there, values, 0.0), there.astype(np.float64))


def t_quantile(freedom: float = math.inf) -> float:
    """Standard errors from a mean to the end of its 95 % interval: Student's t, or the normal distribution."""
    from scipy import stats

    return float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))


def seed_error(values: Float64) -> float | None:
    """Standard error over seeds of the mean over receivers: of those that have every seed.

    Args:
        values: (receivers, seeds), NaN where there is no cell.

    Returns:
        None with one seed, or where no receiver has all of them.
    """
    complete = values[np.isfinite(values).all(axis=1)]
    seeds = values.shape[1]
    if seeds < 2 or not len(complete):
        return None
    return float(complete.mean(axis=0).std(ddof=1) / math.sqrt(seeds))


def image_error(parts: Sequence[Float64], weights: Sequence[float]) -> float:
    """Standard error over images of a weighted sum of means, each over its own images.

    Args:
        parts: (images,) each, of one receiver, seeds averaged image by image: they share the images.
    """
    return math.sqrt(
        sum(
            (weight * float(part.std(ddof=1))) ** 2 / len(part)
            for part, weight in zip(parts, weights, strict=True)
            if len(part) > 1
        )
    )


def pooled(answers: Mapping[tuple[int, int], Float64], shape: tuple[int, int]) -> PooledMean:
    """A mean over cells with all its bars.

    Args:
        answers: By (receiver, seed) index: a value per test image, percentage points. Seeds of a receiver have the
            same images.
    """
    values = np.full(shape, np.nan)
    for place, part in answers.items():
        values[place] = part.mean()
    by_receiver: dict[int, list[Float64]] = {}
    for (receiver, _), part in answers.items():
        by_receiver.setdefault(receiver, []).append(part)
    error = image_error(
        [np.mean(parts, axis=0) for parts in by_receiver.values()],
        [len(parts) / len(answers) for parts in by_receiver.values()],
    )
    value, reach = float(np.nanmean(values)), t_quantile() * error
    return PooledMean(value, seed_error(values), Estimate(value, value - reach, value + reach), mean(values))


def paired(differences: Sequence[float]) -> PairedStatistics:
    """Student's paired t-test and Wilcoxon's signed-rank test of differences, one per receiver.

    Zero differences are dropped by Wilcoxon's test, as Wilcoxon did; where all are zero its p-value is 1.
    """
    from scipy import stats

    values = np.asarray(differences, np.float64)
    count, middle = len(values), float(np.mean(values))
    least = min(1.0, 2.0 ** (1 - count))
    if count < 2:
        return PairedStatistics(count, Estimate(middle, middle, middle), None, None, least)
    wilcoxon = float(stats.wilcoxon(values).pvalue) if np.any(values) else 1.0
    error = float(values.std(ddof=1)) / math.sqrt(count)
    if error <= TINY * max(1.0, abs(middle)):
        return PairedStatistics(count, Estimate(middle, middle, middle), None, wilcoxon, least)
    reach = t_quantile(count - 1) * error
    t_p = float(2 * stats.t.sf(abs(middle) / error, count - 1))
    return PairedStatistics(count, Estimate(middle, middle - reach, middle + reach), t_p, wilcoxon, least)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """P-values adjusted for being one of a family (Holm, Scandinavian Journal of Statistics 6, 1979).

    Args:
        p_values: Of the family; None where a test could not be made: it does not count.

    Returns:
        In the same order: the largest, over p-values up to it, of p times how many are at least as large; at most 1.
    """
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    running = 0.0
    for rank, (p, index) in enumerate(known):
        running = max(running, min(1.0, (len(known) - rank) * p))
        adjusted[index] = running
    return adjusted


def spearman(first: Float64, second: Float64, *, within: bool = False) -> Estimate | None:
    """Spearman's correlation of two tables of pairs of tasks, with its 95 % interval over tasks.

    Tasks are drawn with replacement, and with them the pairs between them (vertex bootstrap: Snijders & Borgatti,
    Connections 22, 1999), a task with itself left out; ranks stay those of the whole table. In simulations of 6, 10 and
    22 tasks with effects of donors and receivers the percentile interval covers the truth in 97 % or more.

    Args:
        first: (tasks, tasks): donors by receivers; NaN where there is no value. The diagonal is not looked at.
        within: Rank donors for each receiver by itself and average the correlations.

    Returns:
        None where one does not vary. The ends are the value itself where resamples are too often of that kind: there
        is no interval.
    """
    tasks = len(first)
    there = np.isfinite(first) & np.isfinite(second) & ~np.eye(tasks, dtype=np.bool_)
    x, y = _ranks(first, there, within), _ranks(second, there, within)
    value = float(_weighted(x, y, there[None].astype(np.float64), np.ones((1, tasks)), within)[0])
    if not math.isfinite(value):
        return None
    draw = np.random.default_rng(SEED)
    found: list[Float64] = []
    for count in _steps(RESAMPLES, tasks * tasks):
        drawn = draw.multinomial(tasks, np.full(tasks, 1 / tasks), count).astype(np.float64)
        weights = drawn[:, :, None] * drawn[:, None, :] * there
        found.append(_weighted(x, y, weights, drawn, within))
    resampled = np.concatenate(found)
    finite = resampled[np.isfinite(resampled)]
    if len(finite) < CONFIDENCE * RESAMPLES:
        return Estimate(value, value, value)
    low, high = (float(end) for end in np.quantile(finite, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]))
    return Estimate(value, min(low, value), max(high, value))


def qap(first: Float64, second: Float64, *, within: bool = False) -> PermutationTest:
    """Two-sided p-value of `spearman` when the tasks of `first` are relabelled (quadratic assignment procedure).

    Pairs share tasks, so they are not exchangeable one by one; tasks are (Hubert & Schultz, British Journal of
    Mathematical and Statistical Psychology 29, 1976). Rows and columns are permuted together. All permutations are
    tried where there are at most `PERMUTATIONS`; else that many are drawn, and the table as it is counts as one more.
    A task that is only donor or only receiver cannot be relabelled and is left out.

    Returns:
        Without a p-value unless every pair of at least three tasks has both values, and both vary.
    """
    there = np.isfinite(first) & np.isfinite(second) & ~np.eye(len(first), dtype=np.bool_)
    both = there.any(axis=0) & there.any(axis=1)
    kept = np.ix_(both, both)
    first, second, there = first[kept], second[kept], there[kept]
    tasks = len(first)
    off = ~np.eye(tasks, dtype=np.bool_)
    if tasks < 3 or not np.array_equal(there, off):
        return PermutationTest(None, 0, False)
    x, y = _standard(_ranks(first, off, within), off, within), _standard(_ranks(second, off, within), off, within)
    if not (x.any() and y.any()):
        return PermutationTest(None, 0, False)
    observed = abs(float((x * y).sum()))
    exact = math.factorial(tasks) <= PERMUTATIONS
    as_large, tried = 0, 0
    for order in _permutations(tasks, exact):
        moved = x[order[:, :, None], order[:, None, :]]
        as_large += int(np.count_nonzero(np.abs((moved * y).sum(axis=(1, 2))) >= observed - 1e-9))
        tried += len(order)
    p = as_large / tried if exact else (as_large + 1) / (tried + 1)
    return PermutationTest(p, tried, exact)


def _steps(total: int, size: int) -> Iterator[int]:
    """How many to do at once, of `total` with `size` values each."""
    at_once = max(1, AT_ONCE // size)
    for done in range(0, total, at_once):
        yield min(at_once, total - done)


def _permutations(tasks: int, exact: bool) -> Iterator[Int64]:
    """All permutations, or drawn ones: (some, tasks) at a time."""
    if exact:
        yield np.array(list(itertools.permutations(range(tasks))), np.int64)
        return
    draw = np.random.default_rng(SEED)
    for count in _steps(PERMUTATIONS, tasks * tasks):
        yield draw.permuted(np.tile(np.arange(tasks), (count, 1)), axis=1)


def _ranks(table: Float64, there: NDArray[np.bool_], within: bool) -> Float64:
    """Mid-ranks of the values that are there, 0 elsewhere: of all of them, or of each column by itself."""
    from scipy import stats

    ranks = np.zeros(table.shape)
    if not within:
        ranks[there] = stats.rankdata(table[there])
        return ranks
    for column in range(table.shape[1]):
        rows = there[:, column]
        ranks[rows, column] = stats.rankdata(table[rows, column])
    return ranks


def _weighted(x: Float64, y: Float64, weights: Float64, receivers: Float64, within: bool) -> Float64:
    """Pearson's correlation of ranks under weights (resamples, donors, receivers); NaN where one does not vary."""
    axes: int | tuple[int, int] = 1 if within else (1, 2)
    total = weights.sum(axis=axes, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        dx, dy = (np.where(weights > 0, v - (weights * v).sum(axis=axes, keepdims=True) / total, 0) for v in (x, y))
        spread = (weights * dx * dx).sum(axis=axes) * (weights * dy * dy).sum(axis=axes)
        found: Float64 = np.where(spread > TINY, (weights * dx * dy).sum(axis=axes) / np.sqrt(spread), np.nan)
        if not within:
            return found
        share = np.where(np.isfinite(found), receivers, 0.0)
        averaged: Float64 = (np.nan_to_num(found) * share).sum(axis=1) / share.sum(axis=1)
    return averaged


def _standard(ranks: Float64, off: NDArray[np.bool_], within: bool) -> Float64:
    """Ranks with mean 0 and norm 1, of all or of each column; 0 on the diagonal and where they do not vary."""
    axes = 0 if within else None
    count = off.sum(axis=axes)
    centred = np.where(off, ranks - ranks.sum(axis=axes) / count, 0.0)
    norm = np.sqrt((centred**2).sum(axis=axes))
    standard: Float64 = centred / np.where(norm > TINY, norm, 1.0)
    return standard

"""Intervals and tests of the study, against hand-computed cases and scipy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from qvec_deploy.research.study.analysis import study_statistics as statistics
from qvec_deploy.research.study.analysis.study_statistics import (
    holm,
    image_error,
    mean,
    paired,
    pooled,
    qap,
    ratio,
    seed_error,
    share,
    spearman,
    t_quantile,
)

OFF = {tasks: ~np.eye(tasks, dtype=bool) for tasks in range(3, 9)}


def tables(tasks: int, seed: int, tie: float = 0.6) -> tuple[np.ndarray, np.ndarray]:
    """Two tables of pairs that have something to do with each other."""
    draw = np.random.default_rng(seed)
    first = draw.standard_normal((tasks, tasks))
    return first, tie * first + draw.standard_normal((tasks, tasks)) + draw.standard_normal(tasks)


def test_a_ratio_is_a_sum_over_a_sum() -> None:
    found = ratio(np.array([[1.0, 2.0], [3.0, 6.0]]), np.array([[2.0, 2.0], [4.0, 4.0]]))
    assert found is not None
    assert found.value == 1.0
    receivers = 1 / (1 - 1 / 3) + 1 / (1 - 2 / 3)  # residuals -1 and 1, a third and two thirds of the denominator
    seeds = 4 / (1 - 1 / 2) + 4 / (1 - 1 / 2)  # residuals -2 and 2
    reach = stats.t.ppf(0.975, 1) * math.sqrt(receivers + seeds) / 12
    assert (found.low, found.high) == pytest.approx((1 - reach, 1 + reach))


@pytest.mark.parametrize("receivers", [2, 3, 6])
def test_a_mean_of_one_seed_has_the_t_interval(receivers: int) -> None:
    values = np.random.default_rng(receivers).standard_normal((receivers, 1))
    expected = stats.ttest_1samp(values[:, 0], 0.0).confidence_interval(0.95)
    found = mean(values)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_receivers_without_a_denominator_do_not_count() -> None:
    part, of = np.array([[1.0, 2.0], [3.0, 5.0], [0.0, 0.0]]), np.array([[2.0, 2.0], [2.0, 2.0], [0.0, 0.0]])
    assert ratio(part, of) == ratio(part[:2], of[:2])
    assert ratio(part[1:], of[1:]) is None  # one is left
    gappy = [np.insert(table, 1, 0.0, axis=1) for table in (part, of)]  # nor do seeds
    assert ratio(*gappy) == ratio(part, of)


def test_a_share_stays_between_0_and_1() -> None:
    won, of = np.array([[4.0], [5.0], [3.0]]), np.full((3, 1), 5.0)
    uncut, cut = ratio(won, of), share(won, of)
    assert uncut is not None
    assert cut is not None
    assert uncut.high > 1
    assert (cut.value, cut.low, cut.high) == (uncut.value, uncut.low, 1.0)
    all_win = share(of, of)
    assert all_win is not None
    assert (all_win.low, all_win.value, all_win.high) == (1.0, 1.0, 1.0)
    assert share(won[:1], of[:1]) is None


def test_a_ratio_of_equal_ratios_has_no_spread() -> None:
    denominator = np.array([[1.0, 2.0], [5.0, 9.0], [3.0, 3.0]])
    found = ratio(0.25 * denominator, denominator)
    assert found is not None
    assert (found.low, found.value, found.high) == pytest.approx((0.25, 0.25, 0.25))


@pytest.mark.parametrize(
    ("numerator", "denominator"),
    [
        ([[1.0, 2.0]], [[1.0, 1.0]]),  # one receiver
        ([[1.0], [1.0]], [[1.0], [-3.0]]),  # no gap in all
        ([[1.0], [1.0]], [[9.0], [-3.0]]),  # one receiver has more than all of the gap
        ([[1.0, 1.0], [1.0, 1.0]], [[9.0, -1.0], [9.0, -1.0]]),  # one seed has
        ([[1.0, 1.0], [0.0, 0.0]], [[1.0, 1.0], [0.0, 0.0]]),  # one receiver that counts
    ],
)
def test_a_ratio_that_means_nothing_is_not_given(numerator: list, denominator: list) -> None:
    assert ratio(np.array(numerator), np.array(denominator)) is None


def test_a_mean_leaves_out_cells_that_are_not_there() -> None:
    found = mean(np.array([[1.0, np.nan], [4.0, 7.0], [0.0, 3.0]]))
    assert found is not None
    assert found.value == pytest.approx(15 / 5)
    assert found.low < found.value < found.high


@pytest.mark.parametrize(
    ("receivers", "seeds", "spread", "least", "most"),
    [  # standard deviations of receivers, of seeds, of each pair of them
        (2, 1, (1.0, 0.0, 0.3), 0.93, 0.97),
        (3, 1, (1.0, 0.0, 0.3), 0.93, 0.97),
        (5, 1, (1.0, 0.0, 0.3), 0.93, 0.97),
        (22, 1, (1.0, 0.0, 0.3), 0.93, 0.97),
        (2, 3, (1.0, 0.3, 0.5), 0.95, 1.0),
        (6, 2, (1.0, 0.0, 0.5), 0.93, 0.99),
        (6, 2, (1.0, 0.3, 0.5), 0.93, 0.99),
        (6, 3, (1.0, 0.0, 0.5), 0.93, 0.98),
        (6, 3, (1.0, 1.0, 0.5), 0.92, 0.98),
        (6, 5, (1.0, 0.0, 0.5), 0.93, 0.98),
        (6, 5, (1.0, 1.0, 0.5), 0.93, 0.99),
        (6, 3, (0.0, 0.0, 1.0), 0.95, 1.0),
    ],
)
def test_how_often_the_interval_of_a_mean_covers_the_truth(
    receivers: int, seeds: int, spread: tuple[float, float, float], least: float, most: float
) -> None:
    draw, covered = np.random.default_rng(10 * receivers + seeds), 0
    for _ in range(800):
        shapes = ((receivers, 1), (1, seeds), (receivers, seeds))
        found = mean(sum(size * draw.standard_normal(shape) for size, shape in zip(spread, shapes, strict=True)))
        assert found is not None
        covered += found.contains(0.0)
    assert least <= covered / 800 <= most


def test_how_often_the_interval_of_a_share_of_the_gap_covers_the_truth() -> None:
    draw, covered = np.random.default_rng(3), 0
    for _ in range(500):
        gap = 20 * np.exp(0.5 * draw.standard_normal((6, 1))) + draw.standard_normal((6, 3))
        shares = 0.3 + 0.2 * draw.standard_normal((6, 1)) + 0.05 * draw.standard_normal((6, 3))
        found = ratio(shares * gap, gap)
        assert found is not None
        covered += found.contains(0.3)
    assert 0.90 <= covered / 500 <= 0.98


def test_the_error_over_seeds() -> None:
    values = np.array([[1.0, 3.0, 5.0], [2.0, 2.0, 2.0], [9.0, np.nan, 0.0]])
    complete = np.array([1.5, 2.5, 3.5])  # of the two receivers that have every seed
    assert seed_error(values) == pytest.approx(complete.std(ddof=1) / math.sqrt(3))
    assert seed_error(values[:, :1]) is None
    assert seed_error(values[2:]) is None


def test_how_far_an_interval_reaches() -> None:
    assert t_quantile() == pytest.approx(1.959964)
    assert t_quantile(1) == pytest.approx(12.7062, abs=1e-4)


def test_images_are_resampled_within_receivers() -> None:
    first, second = np.array([0.0, 100.0, 100.0, 0.0]), np.array([100.0, 100.0, 0.0])
    expected = math.sqrt((0.5**2) * first.var(ddof=1) / 4 + (0.5**2) * second.var(ddof=1) / 3)
    assert image_error([first, second], [0.5, 0.5]) == pytest.approx(expected)
    assert image_error([np.array([100.0])], [1.0]) == 0.0


def test_a_mean_with_all_its_bars() -> None:
    parts = {
        (0, 0): np.array([0.0, 100.0, 100.0, 100.0]),
        (0, 1): np.array([0.0, 100.0, 0.0, 100.0]),
        (1, 0): np.array([0.0, 0.0]),
        (1, 1): np.array([100.0, 0.0]),
    }
    found = pooled(parts, (2, 2))
    assert found.value == pytest.approx((75 + 50 + 0 + 50) / 4)
    assert found.seed_error == pytest.approx(np.std([37.5, 50.0], ddof=1) / math.sqrt(2))
    by_receiver = [np.array([0.0, 100.0, 50.0, 100.0]), np.array([50.0, 0.0])]
    error = math.sqrt(sum(0.25 * part.var(ddof=1) / len(part) for part in by_receiver))
    assert found.images.high - found.value == pytest.approx(1.959964 * error)
    assert found.receivers is not None
    assert found.receivers.value == pytest.approx(found.value)


def test_paired_tests_are_scipys() -> None:
    first, second = np.random.default_rng(4).normal([[0.8], [0.0]], 1.0, (2, 7))
    found = paired((first - second).tolist())
    expected = stats.ttest_rel(first, second)
    interval = expected.confidence_interval(0.95)
    assert found.t_p == pytest.approx(expected.pvalue)
    assert found.difference.value == pytest.approx((first - second).mean())
    assert (found.difference.low, found.difference.high) == pytest.approx((interval.low, interval.high))
    assert found.wilcoxon_p == pytest.approx(stats.wilcoxon(first, second).pvalue)
    assert found.wilcoxon_least == 2 / 2**7


def test_six_receivers_cannot_give_less_than_a_thirtysecond() -> None:
    found = paired([1.0, 2.0, 3.0, 4.0, 5.0, 6.5])
    assert found.wilcoxon_p == found.wilcoxon_least == 1 / 32


def test_differences_that_cannot_be_tested() -> None:
    alone = paired([3.0]).difference
    assert (alone.low, alone.value, alone.high) == (3.0, 3.0, 3.0)
    assert paired([3.0]).t_p is None
    assert paired([3.0]).wilcoxon_p is None
    assert paired([2.0, 2.0, 2.0]).t_p is None
    assert paired([0.0, 0.0, 0.0]).wilcoxon_p == 1.0
    assert paired([0.0, 0.0]).difference.low == 0.0


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, None, 0.6]) == [1.0, None, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("seed", range(4))
def test_spearman_is_scipys(seed: int) -> None:
    first, second = tables(6, seed)
    found, within = spearman(first, second), spearman(first, second, within=True)
    columns = [stats.spearmanr(first[OFF[6][:, c], c], second[OFF[6][:, c], c]).statistic for c in range(6)]
    assert found is not None
    assert within is not None
    assert found.value == pytest.approx(stats.spearmanr(first[OFF[6]], second[OFF[6]]).statistic)
    assert within.value == pytest.approx(np.mean(columns))
    assert -1 <= found.low <= found.value <= found.high <= 1


def test_spearman_leaves_out_what_is_missing() -> None:
    first, second = tables(6, 9)
    first[:, 2] = np.nan
    there = OFF[6] & np.isfinite(first)
    found = spearman(first, second)
    assert found is not None
    assert found.value == pytest.approx(stats.spearmanr(first[there], second[there]).statistic)


def test_what_does_not_vary_has_no_correlation() -> None:
    assert spearman(np.ones((5, 5)), tables(5, 0)[1]) is None
    assert qap(np.ones((5, 5)), tables(5, 0)[1]).qap_p is None


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("tasks", [4, 5])
def test_exact_qap_is_scipys_permutation_test(tasks: int, within: bool) -> None:
    first, second = tables(tasks, 20 + tasks)

    def strength(order: np.ndarray) -> float:
        moved = first[np.ix_(order.astype(int), order.astype(int))]
        if not within:
            return abs(stats.spearmanr(moved[OFF[tasks]], second[OFF[tasks]]).statistic)
        rows = [OFF[tasks][:, column] for column in range(tasks)]
        return abs(np.mean([stats.spearmanr(moved[r, c], second[r, c]).statistic for c, r in enumerate(rows)]))

    expected = stats.permutation_test(
        (np.arange(tasks),),
        lambda order: round(strength(order), 9),
        permutation_type="pairings",
        alternative="greater",
        vectorized=False,
        n_resamples=np.inf,
    )
    found = qap(first, second, within=within)
    assert (found.exact, found.permutations) == (True, math.factorial(tasks))
    assert found.qap_p == pytest.approx(expected.pvalue)


def test_qap_tries_all_720_of_six_tasks_and_finds_what_is_there() -> None:
    first, _ = tables(6, 1)
    found = qap(first, first)
    assert (found.qap_p, found.permutations, found.exact) == (1 / 720, 720, True)


def test_drawn_permutations_come_near_to_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tables(6, 5, tie=0.3)
    exact = qap(first, second)
    monkeypatch.setattr(statistics, "PERMUTATIONS", 700)
    monkeypatch.setattr(statistics, "AT_ONCE", 36 * 50)  # in steps
    drawn = qap(first, second)
    assert exact.qap_p is not None
    assert (drawn.exact, drawn.permutations) == (False, 700)
    assert 0.01 < exact.qap_p < 0.99
    assert drawn.qap_p == pytest.approx(exact.qap_p, abs=0.06)
    assert drawn == qap(first, second)


def test_drawn_permutations_never_give_a_p_value_of_zero() -> None:
    first, _ = tables(8, 2)
    found = qap(first, first)
    assert (found.qap_p, found.permutations, found.exact) == (pytest.approx(1 / 10_001), 10_000, False)


def test_qap_needs_every_pair_and_leaves_out_tasks_that_are_only_donors() -> None:
    first, second = tables(6, 3)
    missing = first.copy()
    missing[1, 4] = np.nan
    assert qap(missing, second).qap_p is None
    only_donor = first.copy()
    only_donor[:, 5] = np.nan
    found = qap(only_donor, second)
    assert found is not None
    assert found == qap(first[:5, :5], second[:5, :5])
    only_donor[1, 4] = np.nan
    assert qap(only_donor, second).qap_p is None  # however many pairs the donor brings
    assert qap(first[:2, :2], second[:2, :2]).qap_p is None


def test_too_few_tasks_leave_a_correlation_without_an_interval() -> None:
    found = spearman(np.array([[np.nan, 1.0], [2.0, np.nan]]), np.array([[np.nan, 3.0], [4.0, np.nan]]))
    assert found is not None
    assert (found.low, found.value, found.high) == (1.0, 1.0, 1.0)


def test_permuting_tasks_of_both_tables_changes_nothing() -> None:
    first, second = tables(5, 8)
    for order in itertools.islice(itertools.permutations(range(5)), 3, 120, 40):
        moved = qap(first[np.ix_(order, order)], second[np.ix_(order, order)])
        assert moved == qap(first, second)

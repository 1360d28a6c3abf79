"""Every statistic against a published number, another implementation, or a simulation with a known truth."""

from collections import Counter

import numpy as np
import pytest
from scipy import stats

from qvec_deploy.bench import statistics
from qvec_deploy.bench.statistics import (
    Estimate,
    coefficient_of_variation,
    detectable_loss,
    mcnemar,
    median,
    median_estimate,
    paired_difference,
    quantile,
    run_length,
    samples_missing,
    samples_needed,
    speed_up,
    throughput,
    unpaired_speed_up,
    wilson,
)


def test_median_and_throughput():
    assert median([3.0, 1.0, 2.0]) == 2.0
    assert median([4.0, 1.0, 2.0, 3.0]) == 2.5
    assert throughput(8, [20.0, 10.0, 30.0]) == 400.0


def test_coefficient_of_variation():
    assert coefficient_of_variation([9.0, 10.0, 11.0]) == pytest.approx(0.1)
    assert coefficient_of_variation([5.0]) == 0.0


@pytest.mark.parametrize(("q", "needed"), [(0.5, 6), (0.9, 36), (0.1, 36), (0.99, 368)])
def test_samples_needed_is_where_an_interval_first_exists(q, needed):
    """scipy's distribution-free interval is the outside oracle: it has a NaN end just below, and none here."""
    assert samples_needed(q) == needed
    ends = {
        n: stats.quantile_test(np.arange(float(n)), q=0, p=q).confidence_interval(0.95) for n in (needed - 1, needed)
    }
    assert np.isnan(ends[needed - 1]).any()
    assert not np.isnan(ends[needed]).any()


def test_p90_is_refused_below_the_samples_that_support_it():
    assert quantile(range(35), 0.9) is None
    assert quantile(range(36), 0.9) == pytest.approx(31.5)


def test_median_estimate():
    assert median_estimate([1.0, 2.0, 3.0, 4.0, 5.0]) is None
    assert median_estimate([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == Estimate(3.5, 1.0, 6.0)
    # Conover's tables: of 100 ordered observations the 40th and 61st bound the median with 95 %.
    assert median_estimate(np.arange(1.0, 101.0)) == Estimate(50.5, 40.0, 61.0)


@pytest.mark.parametrize("count", [6, 7, 8, 9, 27, 60, 200, 1001])
def test_median_estimate_has_scipys_interval(count):
    samples = np.random.default_rng(10).lognormal(size=count).tolist()
    other = stats.quantile_test(samples, q=0, p=0.5).confidence_interval(0.95)
    assert median_estimate(samples) == Estimate(float(np.median(samples)), other.low, other.high)


@pytest.mark.parametrize(
    ("correct", "count", "low", "high"),
    [  # R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_against_newcombes_table(correct, count, low, high):
    estimate = wilson(correct, count)
    assert estimate.value == correct / count
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=5e-5)


def test_wilson_is_scipys():
    draw = np.random.default_rng(11)
    for count in (1, 20, 500, 50_000):
        for correct in {0, count, *draw.integers(0, count + 1, 10).tolist()}:
            other = stats.binomtest(correct, count).proportion_ci(0.95, method="wilson")
            estimate = wilson(correct, count)
            assert (estimate.low, estimate.high) == pytest.approx((other.low, other.high), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(("correct", "count"), [(0, 50), (50, 50)])
def test_wilson_contains_its_value_at_the_ends(correct, count):
    estimate = wilson(correct, count)
    assert estimate.contains(estimate.value)
    assert 0.0 <= estimate.low < estimate.high <= 1.0


def test_speed_up_of_exact_samples_is_exact():
    assert speed_up([10.0] * 6, [5.0] * 6) == Estimate(2.0, 2.0, 2.0)


def test_speed_up_needs_enough_blocks_and_pairs():
    assert speed_up([10.0] * 5, [5.0] * 5) is None
    with pytest.raises(ValueError, match="cannot be paired"):
        speed_up([10.0] * 6, [5.0] * 7)


def test_speed_up_pairs_by_block():
    """Blocks that differ 30-fold, and a candidate exactly twice as fast in each: pairing leaves no doubt at all."""
    baseline = np.exp(np.random.default_rng(0).normal(0.0, 1.0, 51))
    estimate = speed_up(baseline, baseline / 2)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((2.0, 2.0, 2.0))


def test_speed_up_agrees_with_scipys_bootstrap():
    draw = np.random.default_rng(1)
    noise = draw.normal(0.0, 0.1, 120)
    baseline, candidate = (np.exp(noise + draw.normal(m, 0.05, 120)) for m in (0.3, 0.0))
    other = stats.bootstrap(
        (baseline, candidate),
        lambda a, b, axis: np.median(a, axis=axis) / np.median(b, axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=20_000,
        random_state=np.random.default_rng(2),
    ).confidence_interval
    estimate = speed_up(baseline, candidate)
    assert (estimate.low, estimate.high) == pytest.approx((other.low, other.high), abs=0.005)


@pytest.mark.parametrize("truth", [1.0, 1.5])
def test_speed_up_interval_covers_the_truth(truth, monkeypatch):
    """Of 200 measurements of a known ratio about 95 % contain it; at 1 that is the A/A test."""
    monkeypatch.setattr(statistics, "RESAMPLES", 400)
    draw = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        block = draw.normal(0.0, 0.1, 60)  # what disturbs both samples of a block
        baseline, candidate = (np.exp(block + draw.normal(0.0, 0.05, 60)) for _ in range(2))
        covered += speed_up(truth * baseline, candidate).contains(truth)
    assert 184 <= covered <= 200


@pytest.mark.slow
def test_speed_up_interval_covers_the_truth_when_disturbances_outlast_a_block(monkeypatch):
    """Noise of either engine that is alike from block to block (AR(1), 0.6): blocks drawn singly are much worse."""
    monkeypatch.setattr(statistics, "RESAMPLES", 400)
    draw = np.random.default_rng(8)
    measured = []
    for _ in range(200):
        noise = draw.normal(0.0, 0.05, (2, 60))
        for block in range(1, 60):
            noise[:, block] = 0.6 * noise[:, block - 1] + 0.8 * noise[:, block]
        measured.append(np.exp(noise))
    covered = sum(speed_up(*samples).contains(1.0) for samples in measured)
    monkeypatch.setattr(statistics, "run_length", lambda count: 1)
    singly = sum(speed_up(*samples).contains(1.0) for samples in measured)
    assert covered >= 168
    assert singly <= covered - 15


def test_as_many_blocks_are_drawn_together_as_the_cube_root_says():
    assert [run_length(count) for count in (6, 26, 27, 60, 64, 65, 1000)] == [1, 1, 3, 4, 4, 5, 10]


@pytest.mark.parametrize(("count", "more"), [(0, 368), (60, 308), (367, 1), (368, 0), (1000, 0)])
def test_how_many_samples_p99_takes_yet(count, more):
    assert samples_missing(count, 0.99) == more


def test_a_stricter_interval_takes_more_samples_and_is_wider():
    assert samples_needed(0.5, 0.99) == 8
    assert speed_up([10.0] * 7, [5.0] * 7, confidence=0.99) is None
    samples = np.exp(np.random.default_rng(9).normal(0.0, 0.2, (2, 40)))
    strict, usual = speed_up(*samples, confidence=0.99), speed_up(*samples)
    assert strict.value == usual.value
    assert strict.low < usual.low < usual.high < strict.high


def test_a_report_computed_twice_is_the_same():
    samples = np.exp(np.random.default_rng(4).normal(0.0, 0.2, (2, 40)))
    assert speed_up(*samples) == speed_up(*samples)


def test_paired_difference_by_hand():
    """Bonett & Price at 95 %: p12 = 11/102, p21 = 5/102, z = 1.959964."""
    estimate = paired_difference(10, 4, 100)
    up, down = 11 / 102, 5 / 102
    spread = 1.959964 * ((up + down - (up - down) ** 2) / 102) ** 0.5
    assert estimate.value == pytest.approx(0.06)
    assert (estimate.low, estimate.high) == pytest.approx((up - down - spread, up - down + spread), abs=1e-7)


def test_paired_difference_covers_the_truth():
    draw = np.random.default_rng(5)
    tables = draw.multinomial(300, [0.10, 0.04, 0.86], size=1000)
    covered = sum(paired_difference(gained, lost, 300).contains(0.06) for gained, lost, _ in tables)
    assert 930 <= covered <= 980


def test_paired_difference_is_cut_to_what_can_be():
    assert paired_difference(5, 0, 5).high == 1.0
    assert paired_difference(0, 5, 5).low == -1.0


@pytest.mark.parametrize("counts", [(-1, 0, 10), (0, -1, 10), (6, 5, 10), (0, 0, 0)])
def test_paired_difference_refuses_impossible_counts(counts):
    with pytest.raises(ValueError, match="gained"):
        paired_difference(*counts)


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [
        (8, 2, 2 * (1 + 10 + 45) / 2**10),  # 0, 1 or 2 of ten fair coins, and as many at the other end
        (2, 8, 2 * (1 + 10 + 45) / 2**10),
        (5, 0, 2 / 2**5),
        (0, 1, 1.0),
        (4, 4, 1.0),
        (0, 0, 1.0),
    ],
)
def test_mcnemar_by_hand(gained, lost, p):
    assert mcnemar(gained, lost) == pytest.approx(p)


def test_mcnemar_is_twice_the_smaller_binomial_tail():
    """The formula of statsmodels' exact test."""
    draw = np.random.default_rng(6)
    for gained, lost in draw.integers(0, 60, (40, 2)).tolist():
        expected = min(1.0, 2 * stats.binom.cdf(min(gained, lost), gained + lost, 0.5))
        assert mcnemar(gained, lost) == pytest.approx(expected)


def test_mcnemar_of_many_images_is_scipys():
    for gained, lost in ((0, 3000), (1400, 1600), (20_000, 20_400)):
        assert mcnemar(gained, lost) == pytest.approx(stats.binomtest(gained, gained + lost).pvalue, rel=1e-9)


def test_mcnemar_nears_the_chi_squared_test():
    """With continuity correction, as McNemar's test is usually given."""
    gained, lost = 460, 400
    statistic = (abs(gained - lost) - 1) ** 2 / (gained + lost)
    assert mcnemar(gained, lost) == pytest.approx(stats.chi2.sf(statistic, 1), abs=5e-4)


def test_mcnemar_rejects_as_rarely_as_its_level_where_there_is_no_difference():
    draw = np.random.default_rng(7)
    drawn = Counter(draw.binomial(80, 0.5, 2000).tolist())
    rejected = sum(count for gained, count in drawn.items() if mcnemar(gained, 80 - gained) < 0.05)
    assert 20 <= rejected <= 100  # exact: at most 5 % of 2000, and less because counts are whole


def test_unpaired_ratio_of_scripted_samples():
    generator = np.random.default_rng(2)
    old, new = generator.normal(10, 0.1, 200).tolist(), generator.normal(5, 0.05, 80).tolist()
    ratio = unpaired_speed_up(old, new, confidence=0.99)
    assert ratio.value == pytest.approx(float(np.median(old) / np.median(new)))
    assert ratio.low < ratio.value < ratio.high and ratio.contains(2.0)
    wide = unpaired_speed_up(old, new, confidence=0.999)
    assert wide.low < ratio.low and wide.high > ratio.high
    assert unpaired_speed_up(new, old, confidence=0.99).value == pytest.approx(1 / ratio.value)


@pytest.mark.slow
def test_unpaired_interval_covers():
    generator = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        samples = generator.lognormal(0, 0.1, (2, 60))
        covered += unpaired_speed_up(samples[0].tolist(), samples[1].tolist(), confidence=0.9).contains(1.0)
    assert 0.85 <= covered / 200 <= 0.97


def test_unpaired_samples_that_are_alike_in_a_row_are_drawn_in_runs(monkeypatch):
    generator = np.random.default_rng(4)
    noise = generator.normal(0, 0.15, (2, 60 + 4))
    lasting = [np.exp(np.convolve(own, np.ones(5), "valid") / 5**0.5).tolist() for own in noise]
    together = unpaired_speed_up(*lasting)
    monkeypatch.setattr(statistics, "run_length", lambda count: 1)
    singly = unpaired_speed_up(*lasting)
    assert together.high - together.low > 1.2 * (singly.high - singly.low)


def test_a_stricter_unpaired_interval_takes_more_samples():
    assert unpaired_speed_up([1.0] * 5, [1.0] * 60) is None
    assert unpaired_speed_up([1.0] * 6, [1.0] * 6) is not None
    assert unpaired_speed_up([1.0] * 7, [1.0] * 60, confidence=0.99) is None
    assert unpaired_speed_up([1.0] * 8, [1.0] * 60, confidence=0.99) is not None


@pytest.mark.parametrize(("count", "both"), [(500, 0.02), (1000, 0.02), (5000, 0.01)])
def test_the_loss_that_so_many_images_reveal_is_found_as_often_as_promised(count, both):
    kinds = round(both * count)
    loss = detectable_loss(kinds, kinds, count, confidence=0.99)
    draw, found = np.random.default_rng(5), 0
    for _ in range(300):
        gained, lost, _ = draw.multinomial(count, [both, both + loss, 1 - 2 * both - loss])
        found += mcnemar(gained, lost) < 0.01
    assert 0.72 <= found / 300 <= 0.88


def test_the_loss_that_images_reveal_falls_with_their_number_and_never_leaves_what_can_be():
    losses = [detectable_loss(0, 0, count, confidence=0.99) for count in (1, 20, 1000, 50_000)]
    assert 1 > losses[0] > losses[1] > losses[2] > losses[3] > 0
    assert detectable_loss(20, 60, 1000) == detectable_loss(60, 20, 1000) > detectable_loss(10, 60, 1000)

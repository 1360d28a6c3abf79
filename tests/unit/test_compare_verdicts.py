"""BETTER, WORSE, SAME, UNSURE: every word at its edges, and the statistics under them against other sources."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
from scipy import stats

from qvec_deploy.bench.statistics import paired_difference
from qvec_deploy.bench.verdicts import (
    AccuracyVerdict,
    GateVerdict,
    SizeVerdict,
    accuracy_verdict,
    gate_verdict,
    size_verdict,
)


@pytest.mark.parametrize(
    ("gained", "lost", "count", "word"),
    [
        (0, 0, 5000, "SAME"),
        (3, 5, 5000, "SAME"),
        (1, 4, 20, "UNSURE"),
        (0, 0, 20, "UNSURE"),  # 20 images that agree rule out nothing
        (150, 50, 5000, "BETTER"),
        (50, 150, 5000, "WORSE"),
        (95, 105, 5000, "UNSURE"),  # -0.2 points, but the interval passes -0.5
    ],
)
def test_words(gained: int, lost: int, count: int, word: AccuracyVerdict) -> None:
    assert accuracy_verdict(gained, lost, count, level=0.01, tolerance=0.5)[0] is word


def test_a_real_difference_within_the_tolerance_is_the_same() -> None:
    counts = (10, 60, 50_000)  # p < 0.0001, and a tenth of a point
    verdict, difference, p = accuracy_verdict(*counts, level=0.01, tolerance=0.5)
    assert verdict == "SAME" and p < 1e-4 and difference.high < 0
    assert accuracy_verdict(*counts, level=0.01, tolerance=0.05)[0] == "WORSE"


def test_the_level_decides() -> None:
    counts = (60, 90, 5000)  # p is about 0.018
    assert accuracy_verdict(*counts, level=0.05, tolerance=0.5)[0] == "WORSE"
    assert accuracy_verdict(*counts, level=0.01, tolerance=0.5)[0] == "UNSURE"


def test_swapping_the_bundles_swaps_the_words() -> None:
    swapped = {"BETTER": "WORSE", "WORSE": "BETTER"}
    generator = np.random.default_rng(0)
    for gained, lost in generator.integers(0, 200, (50, 2)).tolist():
        word, difference, p = accuracy_verdict(gained, lost, 5000, level=0.01, tolerance=0.5)
        other, mirrored, same_p = accuracy_verdict(lost, gained, 5000, level=0.01, tolerance=0.5)
        assert other is swapped.get(word, word) and same_p == pytest.approx(p)
        assert (mirrored.low, mirrored.high) == pytest.approx((-difference.high, -difference.low))


@pytest.mark.parametrize(("gained", "lost", "count"), [(0, 0, 1), (1, 0, 1), (3, 5, 40), (0, 9, 10), (120, 80, 5000)])
@pytest.mark.parametrize("level", [0.001, 0.01, 0.05, 0.2])
def test_the_interval_at_any_level_is_the_formula_of_bonett_and_price(
    gained: int, lost: int, count: int, level: float
) -> None:
    up, down, size = (gained + 1) / (count + 2), (lost + 1) / (count + 2), count + 2
    half = stats.norm.isf(level / 2) * math.sqrt((up + down - (up - down) ** 2) / size)
    found = paired_difference(gained, lost, count, confidence=1 - level)
    assert found.value == (gained - lost) / count
    ends = max(up - down - half, -1), min(up - down + half, 1)
    assert (found.low, found.high) == pytest.approx(ends)


def test_false_alarms_are_as_rare_as_the_level_says() -> None:
    generator = np.random.default_rng(1)
    wrong = 0
    for _ in range(500):
        discordant = generator.binomial(2000, 0.04)
        gained = generator.binomial(discordant, 0.5)
        word = accuracy_verdict(gained, discordant - gained, 2000, level=0.05, tolerance=0.0)[0]
        wrong += word in ("BETTER", "WORSE")
    assert 0.01 < wrong / 500 <= 0.05


def test_counts_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="gained"):
        accuracy_verdict(7, 7, 10, level=0.01, tolerance=0.5)


@pytest.mark.parametrize(
    ("new", "word"),
    [
        (1000, "SAME"),
        (1010, "SAME"),
        (1011, "LARGER"),
        (990, "SAME"),
        (989, "SMALLER"),
    ],
)
def test_sizes(new: int, word: SizeVerdict) -> None:
    assert size_verdict(1000, new, 0.01) is word


def test_any_other_byte_counts_at_tolerance_zero() -> None:
    assert size_verdict(1000, 1001, 0) == "LARGER" and size_verdict(1000, 1000, 0) == "SAME"


def test_gates() -> None:
    assert [gate_verdict(passed) for passed in (True, False, None)] == list(get_args(GateVerdict))

"""The word for a speed-up: from its interval, and right as often as it says."""

from __future__ import annotations

import numpy as np
import pytest

from qvec_deploy.bench import statistics
from qvec_deploy.bench.statistics import Estimate
from qvec_deploy.bench.verdicts import Verdict, blocks_missing, judge, latency_verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.021, 1.5, "FASTER"),
        (1.02, 1.5, "UNSURE"),  # all of the interval must lie beyond
        (0.5, 0.980, "SLOWER"),
        (0.5, 1 / 1.02, "UNSURE"),
        (1 / 1.02, 1.02, "SAME"),
        (1.005, 1.01, "SAME"),  # a difference, and one that does not matter
        (0.98, 1.0, "UNSURE"),
        (1.0, 1.03, "UNSURE"),
        (0.5, 2.0, "UNSURE"),
    ],
)
def test_the_interval_decides(low: float, high: float, verdict: Verdict) -> None:
    assert judge(Estimate((low + high) / 2, low, high), 0.02) is verdict


def test_too_few_samples_are_unsure() -> None:
    for level, paired in ((0.0001, True), (0.5, False)):
        few, enough = ([10.0] * 29, [1.0] * 29), ([10.0] * 30, [1.0] * 30)
        assert latency_verdict(*few, level=level, paired=paired) == ("UNSURE", None)
        faster = ("FASTER", Estimate(10.0, 10.0, 10.0))
        assert latency_verdict(*enough, level=level, paired=paired) == faster
    assert [blocks_missing([1.0] * 40, [1.0] * count) for count in (8, 29, 30, 50)] == [22, 1, 0, 0]


def test_separate_runs_need_not_be_as_long() -> None:
    verdict, ratio = latency_verdict([10.0] * 30, [20.0] * 45, paired=False)
    assert verdict == "SLOWER" and ratio == Estimate(0.5, 0.5, 0.5)


def test_the_level_widens_the_interval() -> None:
    draw = np.random.default_rng(0)
    baseline, candidate = np.exp(draw.normal(0.0, 0.1, (2, 60)))
    _, strict = latency_verdict(baseline, candidate, level=0.01)
    _, lax = latency_verdict(baseline, candidate, level=0.2)
    assert strict is not None and lax is not None
    assert strict.low < lax.low < lax.high < strict.high


def test_a_tolerance_of_nothing_calls_any_clear_difference() -> None:
    baseline = np.exp(np.random.default_rng(1).normal(0.0, 0.1, 60))
    assert latency_verdict(baseline, baseline / 1.01)[0] == "SAME"
    assert latency_verdict(baseline, baseline / 1.01, tolerance=0.0)[0] == "FASTER"
    assert latency_verdict(baseline / 1.01, baseline, tolerance=0.0)[0] == "SLOWER"


def test_other_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be paired"):
        latency_verdict([1.0] * 9, [1.0] * 10)


def _noisy(draw: np.random.Generator, count: int) -> np.ndarray:
    """Two engines that are the same, on a machine with spikes and with disturbances that outlast a block."""
    common = np.convolve(draw.normal(0.0, 0.1, count + 4), np.ones(5) / 5, "valid")
    own = draw.normal(0.0, 0.03, (2, count))
    spikes = draw.exponential(2.0, (2, count)) * (draw.random((2, count)) < 0.1)
    samples: np.ndarray = np.exp(common + own) + spikes
    return samples


@pytest.mark.slow
def test_one_engine_against_itself_raises_no_false_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 400)
    draw = np.random.default_rng(2)
    verdicts = [latency_verdict(*_noisy(draw, 60))[0] for _ in range(40)]
    assert set(verdicts) <= {"SAME", "UNSURE"}
    enough = [latency_verdict(*_noisy(draw, 600))[0] for _ in range(5)]
    assert set(enough) == {"SAME"}, "more blocks find out that there is no difference"


def test_a_difference_is_found() -> None:
    draw = np.random.default_rng(3)
    for factor, verdict in ((1.2, "FASTER"), (1 / 1.2, "SLOWER")):
        baseline, candidate = _noisy(draw, 100)
        assert latency_verdict(baseline * factor, candidate)[0] is verdict

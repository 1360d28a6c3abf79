"""MLPerf's scenarios, from samples."""

from __future__ import annotations

import pytest

from qvec_deploy.bench.latency import LatencySamples
from qvec_deploy.bench.scenarios import Scenario, ScenarioResult, blocks_by_the_rules, scenario_result

ONE = LatencySamples(1, tuple(float(i) for i in range(1, 101)))
EIGHT = LatencySamples(8, (20.0, 60.0))


def test_single_stream_is_p90_of_single_images() -> None:
    result = scenario_result(Scenario.SINGLE_STREAM, (ONE, EIGHT))
    assert result == ScenarioResult(
        Scenario.SINGLE_STREAM, "p90 latency", "ms", pytest.approx(90.1), 1, 100, pytest.approx(5.05)
    )
    assert result.counts == "100 queries in 5.05 s; the rules ask for 64 and 600 s"


def test_offline_is_all_images_over_all_time_at_the_largest_batch() -> None:
    result = scenario_result(Scenario.OFFLINE, (ONE, EIGHT))
    assert result == ScenarioResult(Scenario.OFFLINE, "throughput", "images/s", 200.0, 8, 16, 0.08)
    assert result.counts == "16 images in 0.08 s; the rules ask for 24,576 and 600 s"


def test_a_percentile_takes_its_samples() -> None:
    result = scenario_result(Scenario.SINGLE_STREAM, (LatencySamples(1, (1.0,) * 35),))
    assert result is not None and result.value is None


def test_single_stream_takes_single_images() -> None:
    assert scenario_result(Scenario.SINGLE_STREAM, (EIGHT,)) is None
    assert scenario_result(Scenario.OFFLINE, ()) is None


def test_runs_that_the_rules_take() -> None:
    assert blocks_by_the_rules(Scenario.SINGLE_STREAM, 1) == 64
    assert [blocks_by_the_rules(Scenario.OFFLINE, size) for size in (1, 32, 1000)] == [24_576, 768, 25]

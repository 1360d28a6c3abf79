"""MLPerf Inference's single-stream and offline scenarios, computed from latency samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from qvec_deploy.bench.latency import LatencySamples
from qvec_deploy.bench.statistics import quantile


class Scenario(StrEnum):
    """How queries come."""

    SINGLE_STREAM = "single_stream"
    OFFLINE = "offline"


LEAST_S = 600.0
LEAST_IMAGES = {Scenario.SINGLE_STREAM: 64, Scenario.OFFLINE: 24_576}
"""What MLPerf's rules ask of a run, beside `LEAST_S` seconds.

MLPerf Inference Rules, chapter 3 (github.com/mlcommons/inference_policies): single stream 600 s, offline one query of
at least 24,576 samples and 600 s. 64 is where LoadGen's early stopping first gives an estimate of p90 at all.
"""


@dataclass(frozen=True)
class ScenarioResult:
    """The metric of a scenario. It is named after MLPerf's, and no MLPerf result: LoadGen did not send the queries.

    Attributes:
        metric: `p90 latency` or `throughput`.
        value: None where the samples support none.
    """

    scenario: Scenario
    metric: str
    unit: str
    value: float | None
    batch_size: int
    images: int
    seconds: float

    @property
    def counts(self) -> str:
        """What was run beside what the rules ask for, in words."""
        what = "queries" if self.scenario is Scenario.SINGLE_STREAM else "images"
        return (
            f"{self.images:,} {what} in {self.seconds:.3g} s; "
            f"the rules ask for {LEAST_IMAGES[self.scenario]:,} and {LEAST_S:g} s"
        )


def scenario_result(scenario: Scenario, latency: Sequence[LatencySamples]) -> ScenarioResult | None:
    """A scenario's metric for one candidate.

    Single stream: one query of one image at a time; p90 of host latency. Offline: everything is there from the
    start and is run in the largest batches; images a second over all runs.

    Returns:
        None without samples at a batch size that the scenario takes: 1 for single stream, any for offline.
    """
    if scenario is Scenario.SINGLE_STREAM:
        entry = next((each for each in latency if each.batch_size == 1), None)
    else:
        entry = max(latency, key=lambda each: each.batch_size, default=None)
    if entry is None:
        return None
    images, seconds = entry.batch_size * len(entry.samples_ms), sum(entry.samples_ms) / 1e3
    if scenario is Scenario.SINGLE_STREAM:
        return ScenarioResult(scenario, "p90 latency", "ms", quantile(entry.samples_ms, 0.9), 1, images, seconds)
    return ScenarioResult(
        scenario, "throughput", "images/s", images / seconds if seconds else None, entry.batch_size, images, seconds
    )


def blocks_by_the_rules(scenario: Scenario, batch_size: int) -> int:
    """Runs of a batch size that the rules take; they must add up to `LEAST_S` seconds too."""
    return math.ceil(LEAST_IMAGES[scenario] / batch_size)

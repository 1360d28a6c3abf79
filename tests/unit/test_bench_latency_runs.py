"""Which batch sizes are timed, and how long, for what a recipe's `measure` asks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qvec_deploy.bench import latency_runs as timing
from qvec_deploy.bench.latency import LatencySamples
from qvec_deploy.bench.latency_runs import measure_latencies, timed_sizes
from qvec_deploy.progress import Progress
from qvec_deploy.recipe import Measure


class Session:
    input_shape = (3, 4, 4)

    def run(self, images: np.ndarray) -> np.ndarray:
        return np.zeros((len(images), 2), np.float32)


class Watch:
    def __init__(self) -> None:
        self.samples = 0

    def sample(self) -> None:
        self.samples += 1


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `measure_latency` is asked for, in place of measuring."""
    calls: list[dict[str, Any]] = []

    def record(sessions: dict[str, Any], images: np.ndarray, **options: Any) -> dict[str, LatencySamples]:
        calls.append({"batch": len(images), **options})
        return {name: LatencySamples(len(images), (1.0,)) for name in sessions}

    monkeypatch.setattr(timing, "measure_latency", record)
    return calls


def _measure(batch_sizes: tuple[int, ...], **fields: Any) -> list[dict[str, LatencySamples]]:
    return measure_latencies({"a": Session()}, None, batch_sizes, Measure(**fields), Progress())


def test_the_recipe_s_own_sizes_and_counts(asked: list[dict[str, Any]]) -> None:
    _measure((8, 2, 8), blocks=7, warmup=3, seed=5)
    for call in asked:
        del call["progress"]
    same = {"blocks": 7, "warmup": 3, "seed": 5, "min_seconds": 0.0, "max_seconds": None, "cold_l2": False}
    assert asked == [{"batch": 2, **same}, {"batch": 8, **same}]


def test_single_stream_adds_batches_of_one() -> None:
    assert timed_sizes((8,), Measure(scenarios=("single_stream",))) == [1, 8]
    assert timed_sizes((8,), Measure(scenarios=("offline",))) == [8]


def test_the_rules_are_for_the_sizes_that_their_scenarios_take(asked: list[dict[str, Any]]) -> None:
    _measure((2, 32), scenarios=("single_stream", "offline"), mlperf_rules=True)
    found = [(call["batch"], call["blocks"], call["min_seconds"]) for call in asked]
    assert found == [(1, 64, 600.0), (2, 60, 0.0), (32, 768, 600.0)]


def test_scenarios_alone_take_the_usual_counts(asked: list[dict[str, Any]]) -> None:
    _measure((1,), scenarios=("single_stream", "offline"))
    assert [(call["blocks"], call["min_seconds"]) for call in asked] == [(60, 0.0)]


def test_a_time_budget_is_divided(asked: list[dict[str, Any]]) -> None:
    _measure((1, 2, 4), max_seconds=30.0, l2="cold")
    assert [call["max_seconds"] for call in asked] == [10.0, 10.0, 10.0]
    assert all(call["cold_l2"] for call in asked)


def test_the_gpu_is_read_after_every_block() -> None:
    watch: Any = Watch()
    measure_latencies({"a": Session()}, None, (1, 2), Measure(blocks=3, warmup=0), Progress(), watch)
    assert watch.samples == 6

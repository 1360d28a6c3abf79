"""Runs taken apart, with a host and a device whose clocks are scripted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qvec_deploy.bench.latency import StageSamples, measure_latency
from qvec_deploy.errors import IncompatibleError

IMAGES = np.zeros((2, 3, 2, 2), np.float32)
LOGITS = np.zeros((2, 5), np.float32)


class Gpu:
    """Work takes the device time it is told, and handing it over takes host time; a mark stamps the device's clock."""

    def __init__(self, log: list[str] | None = None, name: str = "gpu") -> None:
        self.host_ns, self.device_ms, self.done = 0, 0.0, True
        self.log, self.name = log if log is not None else [], name
        self.runs = 0

    def clock(self) -> int:
        return self.host_ns

    def run(self, images: np.ndarray) -> np.ndarray:
        self.log.append(f"{self.name} run")
        self.host_ns += 10_000_000
        return LOGITS

    def stages(self, batch: int) -> Gpu | None:
        assert batch == len(IMAGES)
        return self

    def bring(self, images: np.ndarray) -> None:
        self.log.append(f"{self.name} stages")
        self.runs += 1
        self.host_ns += 500_000
        self.device_ms += 0.7  # idle

    def _work(self, host_ns: int, device_ms: float) -> None:
        self.host_ns += host_ns
        self.device_ms += device_ms
        self.done = False

    def put(self) -> None:
        self._work(20_000, 1.0)

    def enqueue(self) -> None:
        self._work(50_000 * self.runs, 5.0 + self.runs)

    def get(self) -> None:
        self._work(10_000, 0.25)

    def finish(self) -> np.ndarray:
        self.done = True
        self.host_ns += 9_000_000
        return LOGITS

    def mark(self) -> float:
        return self.device_ms

    def elapsed_ms(self, start: float, end: float) -> float:
        assert self.done, "a mark was read before the GPU came to it"
        return end - start


class Flushing(Gpu):
    def flush_l2(self) -> None:
        self.log.append(f"{self.name} flush")
        self.host_ns += 3_000_000


class Cpu:
    def __init__(self, log: list[str]) -> None:
        self.log = log

    def run(self, images: np.ndarray) -> np.ndarray:
        self.log.append("cpu run")
        return LOGITS


class Cut(Gpu):
    """A session that runs such a batch in pieces."""

    def stages(self, batch: int) -> None:
        return None


def measure(sessions: dict[str, Any], clock: Callable[[], int], **options: Any) -> Any:
    return measure_latency(sessions, IMAGES, **{"blocks": 3, "warmup": 0, "seed": 0, "clock": clock, **options})


def test_stages_are_what_lies_between_the_marks() -> None:
    gpu = Gpu()
    taken = measure({"gpu": gpu}, gpu.clock)["gpu"]
    assert taken.samples_ms == (10.0, 10.0, 10.0), "host latency is that of `run`, and of nothing else"
    expected = StageSamples((0.05, 0.1, 0.15), (1.0, 1.0, 1.0), (6.0, 7.0, 8.0), (0.25, 0.25, 0.25))
    for field in ("enqueue_ms", "h2d_ms", "compute_ms", "d2h_ms"):
        assert getattr(taken.stages, field) == pytest.approx(getattr(expected, field)), field


def test_warming_up_warms_the_stages_too_and_is_thrown_away() -> None:
    gpu = Gpu()
    taken = measure({"gpu": gpu}, gpu.clock, warmup=5)["gpu"]
    assert (taken.warmup, gpu.runs) == (10, 13)
    assert taken.stages.compute_ms == pytest.approx((16.0, 17.0, 18.0))


def test_stages_come_after_every_session_was_timed() -> None:
    log: list[str] = []
    gpu = Gpu(log)
    taken = measure({"cpu": Cpu(log), "gpu": gpu}, gpu.clock)
    blocks = [log[i : i + 3] for i in range(0, 9, 3)]
    assert all(sorted(block[:2]) == ["cpu run", "gpu run"] and block[2] == "gpu stages" for block in blocks)
    assert taken["cpu"].stages is None


def test_a_batch_that_is_run_in_pieces_has_no_stages() -> None:
    gpu = Cut()
    assert measure({"gpu": gpu}, gpu.clock)["gpu"].stages is None


def test_a_cold_cache_is_emptied_before_every_run_and_not_timed() -> None:
    log: list[str] = []
    gpu = Flushing(log)
    taken = measure({"gpu": gpu}, gpu.clock, cold_l2=True)["gpu"]
    assert log == ["gpu flush", "gpu run", "gpu flush", "gpu stages"] * 3
    assert taken.samples_ms == (10.0, 10.0, 10.0)
    assert taken.cold_l2


def test_a_warm_cache_is_left_alone() -> None:
    log: list[str] = []
    gpu = Flushing(log)
    assert not measure({"gpu": gpu}, gpu.clock)["gpu"].cold_l2
    assert "gpu flush" not in log


def test_a_cold_cache_is_refused_where_nothing_empties_it() -> None:
    gpu = Flushing()
    with pytest.raises(IncompatibleError, match="`cpu` cannot be measured with a cold L2 cache"):
        measure({"gpu": gpu, "cpu": Cpu([])}, gpu.clock, cold_l2=True)

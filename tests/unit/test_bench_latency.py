"""The clock, with sessions that "take" the time they are told: nothing here waits."""

import gc
from collections.abc import Sequence

import numpy as np
import pytest

from qvec_deploy.bench.latency import DEFINITIONS, LatencySamples, measure_latency
from qvec_deploy.errors import RecipeError

IMAGES = np.zeros((4, 3, 2, 2), np.float32)


class FakeClock:
    """Nanoseconds that pass only when a session says so."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


class FakeSession:
    """Takes the scripted milliseconds, the last of them from then on, and logs its name."""

    def __init__(self, name: str, durations_ms: Sequence[float], clock: FakeClock, log: list[str]) -> None:
        self.name, self.clock, self.log = name, clock, log
        self.durations_ms = list(durations_ms)

    def run(self, images: np.ndarray) -> np.ndarray:
        self.log.append(self.name)
        taken = self.durations_ms.pop(0) if len(self.durations_ms) > 1 else self.durations_ms[0]
        self.clock.now_ns += int(taken * 1e6)
        return np.zeros((len(images), 5), np.float32)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def sessions(clock: FakeClock, log: list[str], **durations_ms: Sequence[float]) -> dict[str, FakeSession]:
    return {name: FakeSession(name, taken, clock, log) for name, taken in durations_ms.items()}


def test_every_sample_is_kept_in_block_order_and_warmup_is_not(clock):
    scripted = sessions(clock, [], a=[*[99] * 10, 1, 2, 3], b=[*[98] * 10, 10.5, 20, 30])
    measured = measure_latency(scripted, IMAGES, blocks=3, warmup=2, seed=0, clock=clock)
    assert measured == {
        "a": LatencySamples(4, (1.0, 2.0, 3.0), warmup=10),
        "b": LatencySamples(4, (10.5, 20.0, 30.0), warmup=10),
    }
    assert list(measured) == ["a", "b"]


def test_a_block_is_every_session_once_in_changing_order(clock):
    log: list[str] = []
    measure_latency(sessions(clock, log, a=[1], b=[1], c=[1]), IMAGES, blocks=60, warmup=4, seed=0, clock=clock)
    blocks = [tuple(log[i : i + 3]) for i in range(0, len(log), 3)]
    assert len(blocks) == 70
    assert all(sorted(block) == ["a", "b", "c"] for block in blocks)
    assert len(set(blocks[10:])) == 6, "every order of three turns up"


@pytest.mark.parametrize(
    ("durations_ms", "warmup", "blocks", "warm"),
    [
        ([1], 5, 10, True),  # two windows of five are the least that can be compared
        ([1], 12, 15, True),  # as many as were asked for, and the window in which that was
        ([9, 1], 5, 10, True),  # one slow first run does not move a median of five
        ([*[9] * 5, *[3] * 5, 1], 5, 20, True),  # 9, 3, 1, 1
        ([*[9] * 5, *[3] * 5, 1], 1, 20, True),
        ([1], 0, 0, True),  # none asked for
        ([1.1**i for i in range(100)], 5, 50, False),  # never stable
        ([1.1**i for i in range(100)], 70, 70, False),
        ([1.04 ** (i // 5) for i in range(100)], 5, 10, True),  # 4 % from one window to the next is let pass
    ],
)
def test_warming_up_ends_when_times_are_stable(clock, durations_ms, warmup, blocks, warm):
    scripted = sessions(clock, [], a=durations_ms, steady=[1])
    measured = measure_latency(scripted, IMAGES, blocks=1, warmup=warmup, seed=0, clock=clock)
    assert [(taken.warmup, taken.settled) for taken in measured.values()] == [(blocks, warm), (blocks, True)]
    assert len(measured["a"].samples_ms) == 1


def test_a_time_budget_ends_the_measurement_and_a_quarter_of_it_the_warm_up(clock):
    scripted = sessions(clock, [], a=[100], b=[300])
    measured = measure_latency(scripted, IMAGES, blocks=50, warmup=5, seed=0, max_seconds=8, clock=clock)
    assert measured["a"] == LatencySamples(4, (100.0,) * 15, warmup=5, settled=False)
    assert measured["b"] == LatencySamples(4, (300.0,) * 15, warmup=5, settled=False)


def test_one_block_is_run_however_little_time_there_is(clock):
    measured = measure_latency(
        sessions(clock, [], a=[5]), IMAGES, blocks=9, warmup=0, seed=0, max_seconds=0.001, clock=clock
    )
    assert len(measured["a"].samples_ms) == 1


def test_a_time_that_is_large_enough_changes_nothing(clock):
    for budget in (None, 60):
        scripted = sessions(clock, [], a=[1, 2, 3, 4])
        measured = measure_latency(scripted, IMAGES, blocks=4, warmup=0, seed=0, max_seconds=budget, clock=clock)
        assert measured["a"].samples_ms == (1.0, 2.0, 3.0, 4.0)


def test_a_least_time_takes_more_blocks_than_asked_for(clock):
    seen: list[tuple[int, int]] = []
    measured = measure_latency(
        sessions(clock, [], quick=[10], slow=[40]),
        IMAGES,
        blocks=3,
        warmup=5,
        seed=0,
        min_seconds=0.1,
        clock=clock,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert [len(taken.samples_ms) for taken in measured.values()] == [10, 10], "until the quickest has 0.1 s"
    assert seen == [(block, 10) for block in range(1, 11)]


def test_every_word_has_one_meaning():
    assert list(DEFINITIONS) == ["host latency", "enqueue", "H2D", "GPU compute time", "D2H", "throughput"]
    assert all(text.endswith(".") for text in DEFINITIONS.values())


def test_the_order_depends_on_the_seed_alone(clock):
    logs: list[list[str]] = []
    for seed in (1, 1, 2):
        log: list[str] = []
        scripted = sessions(clock, log, a=[1], b=[1], c=[1])
        measure_latency(scripted, IMAGES, blocks=10, warmup=0, seed=seed, clock=clock)
        logs.append(log)
    assert logs[0] == logs[1] != logs[2]


def test_progress_is_told_after_every_block_and_never_timed(clock):
    seen: list[tuple[int, int]] = []

    def slow_progress(done: int, total: int) -> None:
        seen.append((done, total))
        clock.now_ns += 10**12

    measured = measure_latency(
        sessions(clock, [], a=[2]), IMAGES, blocks=3, warmup=1, seed=0, clock=clock, progress=slow_progress
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert measured["a"].samples_ms == (2.0, 2.0, 2.0)


def test_the_garbage_collector_is_off_while_timing_and_back_on_after_an_error(clock):
    states: list[bool] = []

    class Failing(FakeSession):
        def run(self, images: np.ndarray) -> np.ndarray:
            states.append(gc.isenabled())
            raise RuntimeError("broken")

    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="broken"):
        measure_latency({"a": Failing("a", [1], clock, [])}, IMAGES, blocks=1, warmup=0, seed=0, clock=clock)
    assert states == [False]
    assert gc.isenabled()


@pytest.mark.parametrize(("blocks", "warmup"), [(0, 0), (-1, 0), (1, -1)])
def test_counts_that_measure_nothing_are_refused(clock, blocks, warmup):
    with pytest.raises(RecipeError, match=r"blocks after"):
        measure_latency(sessions(clock, [], a=[1]), IMAGES, blocks=blocks, warmup=warmup, seed=0, clock=clock)


def test_nothing_to_measure_is_refused(clock):
    with pytest.raises(RecipeError, match="nothing to measure"):
        measure_latency({}, IMAGES, blocks=1, warmup=0, seed=0)
    with pytest.raises(RecipeError, match="nothing to measure"):
        measure_latency(sessions(clock, [], a=[1]), IMAGES[:0], blocks=1, warmup=0, seed=0, clock=clock)


def test_the_real_clock_measures_host_time():
    class Quick:
        def run(self, images: np.ndarray) -> np.ndarray:
            return images[:, 0, 0, :1]

    samples = measure_latency({"quick": Quick()}, IMAGES, blocks=5, warmup=1, seed=0)["quick"].samples_ms
    assert len(samples) == 5
    assert all(0 <= sample < 1000 for sample in samples)

"""The only clock: host latency of several sessions, interleaved at random, every sample kept."""

from __future__ import annotations

import contextlib
import gc
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from qvec_deploy.bench.runnable import Flushable, Prepares, Runnable, Staged, Stages
from qvec_deploy.bench.statistics import median
from qvec_deploy.errors import IncompatibleError, RecipeError
from qvec_deploy.tensors import Float32

Clock = Callable[[], int]
Progress = Callable[[int, int], None]

NANOSECONDS_PER_MS = 1e6
WARMUP_SHARE = 0.25  # of a time budget, at most
WINDOW = 5  # blocks; the median of five is not moved by one that was disturbed, nor by the first
SETTLED = 0.05  # two windows on a machine as noisy as `warnings` puts up with differ by that now and then
MOST_WINDOWS = 10


DEFINITIONS: Mapping[str, str] = {
    "host latency": "Wall time of one run, from an input array in host memory to logits in host memory: copies, "
    "kernels and synchronisation count, decoding and preprocessing do not.",
    "enqueue": "Host time to hand one run to the GPU, without copies and without waiting.",
    "H2D": "Time of the GPU's clock to copy the images from host to device.",
    "GPU compute time": "Time of the GPU's clock from the first kernel of a run to the end of its last; gaps in which "
    "the GPU waits for the host to hand over kernels count.",
    "D2H": "Time of the GPU's clock to copy the logits from device to host.",
    "throughput": "Images a second of one caller who waits for each batch: batch size over the median host latency.",
}
"""What each word means, for every runtime; trtexec's words, where it has one.

trtexec calls H2D + GPU compute time + D2H its `Latency`; our host latency is that plus the host's part, which is what
a caller waits for. Stages exist where a session can tell them apart (see `runnable.Staged`); they are taken in runs of
their own, one per block, after the timed ones: a median of H2D + GPU compute + D2H is not a part of the median of
host latency to the microsecond.
"""


@dataclass(frozen=True)
class StageSamples:
    """The parts of runs of a GPU engine, in milliseconds; one value per block (see `DEFINITIONS`).

    Attributes:
        enqueue_ms: Host time to put a run into the stream.
        h2d_ms: Device time of the copy to the GPU.
        compute_ms: Device time of the kernels ("GPU compute time").
        d2h_ms: Device time of the copy back.
    """

    enqueue_ms: tuple[float, ...]
    h2d_ms: tuple[float, ...]
    compute_ms: tuple[float, ...]
    d2h_ms: tuple[float, ...]


@dataclass(frozen=True)
class LatencySamples:
    """Every host latency of one candidate at one batch size.

    Attributes:
        samples_ms: Milliseconds of a run, one per block, in the order of the blocks. Sample i of every
            candidate of one measurement was taken in block i, which is what pairs them.
        stages: Its parts; None for an engine that has none, such as one on the CPU.
        warmup: Blocks that were run before and thrown away.
        settled: Whether its times had stopped changing by then.
        cold_l2: Whether the GPU's L2 cache was emptied before every run.
    """

    batch_size: int
    samples_ms: tuple[float, ...]
    stages: StageSamples | None = None
    warmup: int = 0
    settled: bool = True
    cold_l2: bool = False


def measure_latency(
    sessions: Mapping[str, Runnable],
    images: Float32,
    *,
    blocks: int,
    warmup: int,
    seed: int,
    min_seconds: float = 0.0,
    max_seconds: float | None = None,
    cold_l2: bool = False,
    clock: Clock = time.perf_counter_ns,
    progress: Progress | None = None,
) -> dict[str, LatencySamples]:
    """Time the sessions side by side, in the terms of `DEFINITIONS`.

    One block runs every session once, in an order drawn anew, so that drift of the machine hits all of them
    alike and no session always follows the same neighbour. A run therefore starts with caches that another
    session has used: the same handicap for all, and a little slower than one engine alone in a loop.

    Blocks are run and thrown away until all sessions are warm: `warmup` of them, then in fives until the medians of
    the last two fives agree within 5 %, for every session, at most `warmup_limit(warmup)`. With `warmup` 0, none.

    Args:
        images: (batch, channels, height, width) float32; the same array for every run.
        min_seconds: More blocks than asked for, until the samples of every session add up to this.
        max_seconds: Time for all of it, of which warming up may take a quarter; after that the block that runs is
            the last, however many were asked for. At least one is run.
        cold_l2: Empty the GPU's L2 cache before every run, outside the timed stretch.
        progress: Called with (blocks done, blocks) after each block, outside the timed stretches.
    """
    if not sessions or len(images) == 0:
        raise RecipeError("there is nothing to measure", hint="give at least one candidate and one image")
    if blocks < 1 or warmup < 0:
        raise RecipeError(
            f"{blocks} blocks after {warmup} of warm-up", hint="at least 1 block, and no negative warm-up"
        )
    measurement = _Measurement(sessions, images, seed, cold_l2, clock)
    with garbage_collector_off():
        deadline = _Deadline(clock, max_seconds)
        thrown_away, warm = measurement.warm_up(warmup, deadline)
        done = 0
        while done < blocks or measurement.shortest_s < min_seconds:
            measurement.block()
            done += 1
            if progress is not None:
                progress(done, measurement.blocks_expected(blocks, min_seconds))
            if deadline.passed(1.0):
                break
    return {
        name: LatencySamples(len(images), tuple(taken), measurement.stages_of(name), thrown_away, warm[name], cold_l2)
        for name, taken in measurement.host_ms.items()
    }


class _Deadline:
    """A time budget."""

    def __init__(self, clock: Clock, seconds: float | None) -> None:
        self._clock, self._seconds, self._start = clock, seconds, clock()

    def passed(self, share: float) -> bool:
        """Whether this share of the budget is used up; never without a budget."""
        if self._seconds is None:
            return False
        return (self._clock() - self._start) / 1e9 >= share * self._seconds


class _Measurement:
    """Sessions, and the samples taken of them so far."""

    def __init__(
        self, sessions: Mapping[str, Runnable], images: Float32, seed: int, cold_l2: bool, clock: Clock
    ) -> None:
        self._sessions, self._images, self._clock = sessions, images, clock
        self._taken = {
            name: session.prepare(images) if isinstance(session, Prepares) else images
            for name, session in sessions.items()
        }
        self._draw = random.Random(seed)
        self._flush = require_flushable(sessions) if cold_l2 else {}
        self._staged: dict[str, Stages] = {}
        for name, session in sessions.items():
            stages = session.stages(len(images)) if isinstance(session, Staged) else None
            if stages is not None:
                self._staged[name] = stages
        self.host_ms: dict[str, list[float]]
        self._total_ms: dict[str, float]
        self._stage_ms: dict[str, list[tuple[float, float, float, float]]]
        self._forget()

    @property
    def shortest_s(self) -> float:
        """Seconds that the samples of the quickest session add up to."""
        return min(self._total_ms.values()) / 1e3

    def blocks_expected(self, blocks: int, min_seconds: float) -> int:
        """How many blocks there will be in all, as far as can be told now."""
        done = len(next(iter(self.host_ms.values())))
        if not min_seconds:
            return blocks
        return max(blocks, done, round(done * min_seconds / max(self.shortest_s, 1e-9)))

    def block(self) -> None:
        """Run every session once for the clock, then every session that has stages once more for those."""
        clock = self._clock
        for name in self._shuffled(self._sessions):
            session = self._sessions[name]
            if name in self._flush:
                self._flush[name]()
            images = self._taken[name]
            start = clock()
            session.run(images)
            taken_ms = (clock() - start) / NANOSECONDS_PER_MS
            self.host_ms[name].append(taken_ms)
            self._total_ms[name] += taken_ms
        for name in self._shuffled(self._staged):
            if name in self._flush:
                self._flush[name]()
            self._stage_ms[name].append(time_stages(self._staged[name], self._images, clock))

    def warm_up(self, least: int, deadline: _Deadline) -> tuple[int, dict[str, bool]]:
        """Run blocks until every session is warm, and forget their samples; how many, and which sessions were."""
        limit = warmup_limit(least)
        warm = dict.fromkeys(self._sessions, not limit)
        done = 0
        while done < limit and not deadline.passed(WARMUP_SHARE):
            self.block()
            done += 1
            if done >= least and done % WINDOW == 0:
                warm = {name: settled(taken) for name, taken in self.host_ms.items()}
                if all(warm.values()):
                    break
        self._forget()
        return done, warm

    def _forget(self) -> None:
        self.host_ms = {name: [] for name in self._sessions}
        self._total_ms = dict.fromkeys(self._sessions, 0.0)
        self._stage_ms = {name: [] for name in self._staged}

    def stages_of(self, name: str) -> StageSamples | None:
        """The parts of a session's runs, one value per block."""
        return StageSamples(*zip(*self._stage_ms[name], strict=True)) if name in self._stage_ms else None

    def _shuffled(self, of: Mapping[str, object]) -> list[str]:
        return self._draw.sample(list(of), len(of))


def warmup_limit(warmup: int) -> int:
    """Blocks after which warming up is given up: 50, or as many as were asked for; none where none was."""
    return max(warmup, WINDOW * MOST_WINDOWS) if warmup else 0


def settled(samples: Sequence[float]) -> bool:
    """Whether warming up has done its work: the medians of the last two windows differ by less than `SETTLED`."""
    if len(samples) < 2 * WINDOW:
        return False
    before, last = median(samples[-2 * WINDOW : -WINDOW]), median(samples[-WINDOW:])
    return abs(last - before) <= SETTLED * before


def time_stages(stages: Stages, images: Float32, clock: Callable[[], int]) -> tuple[float, float, float, float]:
    """Run once with a mark between the parts: milliseconds, as in StageSamples.

    A mark costs the GPU a microsecond or two, which is why this is a run of its own and host latency is not taken
    from it.
    """
    stages.bring(images)
    begin = stages.mark()
    stages.put()
    arrived = stages.mark()
    start = clock()
    stages.enqueue()
    enqueue_ms = (clock() - start) / NANOSECONDS_PER_MS
    computed = stages.mark()
    stages.get()
    back = stages.mark()
    stages.finish()
    h2d_ms, compute_ms = stages.elapsed_ms(begin, arrived), stages.elapsed_ms(arrived, computed)
    return enqueue_ms, h2d_ms, compute_ms, stages.elapsed_ms(computed, back)


def require_flushable(sessions: Mapping[str, Runnable]) -> dict[str, Callable[[], None]]:
    """What empties each session's L2 cache, by candidate name."""
    flushes = {}
    for name, session in sessions.items():
        if not isinstance(session, Flushable):
            raise IncompatibleError(
                f"the engine `{name}` cannot be measured with a cold L2 cache",
                hint="only `torch-cuda` and `tensorrt` can empty it; set measure.l2 to warm",
            )
        flushes[name] = session.flush_l2
    return flushes


@contextlib.contextmanager
def garbage_collector_off() -> Iterator[None]:
    """Keep Python's collector, which pauses at moments of its own choosing, out of the block, as `timeit` does."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()

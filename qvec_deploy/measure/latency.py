"""The only clock: host latency of several sessions, interleaved at random, every sample kept."""

from __future__ import annotations

import contextlib
import gc
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from qvec_deploy.errors import RecipeError
from qvec_deploy.measure.runnable import Runnable
from qvec_deploy.tensors import Float32

Clock = Callable[[], int]
Progress = Callable[[int, int], None]

NANOSECONDS_PER_MS = 1e6


@dataclass(frozen=True)
class StageSamples:
    """The parts of every run of a GPU engine, in milliseconds and in trtexec's words; one value per block.

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
        batch_size: Images in a run.
        samples_ms: Milliseconds of a run, one per block, in the order of the blocks. Sample i of every
            candidate of one measurement was taken in block i, which is what pairs them.
        stages: Its parts; None for an engine that has none, such as one on the CPU.
        warmup: Blocks that were run before and thrown away.
    """

    batch_size: int
    samples_ms: tuple[float, ...]
    stages: StageSamples | None = None
    warmup: int = 0


def measure_latency(
    sessions: Mapping[str, Runnable],
    images: Float32,
    *,
    blocks: int,
    warmup: int,
    seed: int,
    clock: Clock = time.perf_counter_ns,
    progress: Progress | None = None,
) -> dict[str, LatencySamples]:
    """Time the sessions side by side.

    Host latency is the wall time from an input array in host memory to logits in host memory: whatever the
    session does in between counts (copies, kernels, synchronisation), and nothing else does (no decoding, no
    preprocessing, no queue). In trtexec's words: `Latency` with data transfers on, plus the call into the
    runtime.

    One block runs every session once, in an order drawn anew, so that drift of the machine hits all of them
    alike and no session always follows the same neighbour. A run therefore starts with caches that another
    session has used: the same handicap for all, and a little slower than one engine alone in a loop.

    Args:
        sessions: Loaded engines by candidate name.
        images: (batch, channels, height, width) float32; the same array for every run.
        blocks: Samples per session.
        warmup: Blocks run and thrown away first.
        seed: Of the orders.
        clock: Nanoseconds, monotonic. Tests script it.
        progress: Called with (blocks done, blocks) after each block, outside the timed stretches.

    Returns:
        Samples by candidate name, in the order of `sessions`.

    Raises:
        RecipeError: Nothing to measure, or counts that measure nothing.
    """
    if not sessions or len(images) == 0:
        raise RecipeError("there is nothing to measure", hint="give at least one candidate and one image")
    if blocks < 1 or warmup < 0:
        raise RecipeError(
            f"{blocks} blocks after {warmup} of warm-up", hint="at least 1 block, and no negative warm-up"
        )
    names, draw = list(sessions), random.Random(seed)
    for _ in range(warmup):
        for name in draw.sample(names, len(names)):
            sessions[name].run(images)
    samples: dict[str, list[float]] = {name: [] for name in names}
    with garbage_collector_off():
        for block in range(blocks):
            for name in draw.sample(names, len(names)):
                start = clock()
                sessions[name].run(images)
                samples[name].append((clock() - start) / NANOSECONDS_PER_MS)
            if progress is not None:
                progress(block + 1, blocks)
    return {name: LatencySamples(len(images), tuple(taken)) for name, taken in samples.items()}


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

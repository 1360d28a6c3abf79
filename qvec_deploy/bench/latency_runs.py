"""Every engine's latency at every batch size, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from qvec_deploy.bench.gpu_watch import GpuWatch
from qvec_deploy.bench.latency import LatencySamples, measure_latency
from qvec_deploy.bench.parity import parity_images
from qvec_deploy.bench.scenarios import LEAST_S, Scenario, blocks_by_the_rules
from qvec_deploy.datasets import Dataset
from qvec_deploy.progress import Progress
from qvec_deploy.recipe import Measure
from qvec_deploy.runtimes.session import Session
from qvec_deploy.tensors import Float32


def measure_latencies(
    sessions: Mapping[str, Session],
    images: Dataset | None,
    batch_sizes: Sequence[int],
    measure: Measure,
    progress: Progress,
    watch: GpuWatch | None = None,
) -> list[dict[str, LatencySamples]]:
    """Time all engines together, one batch size after the other; each gets an equal part of a time budget.

    Args:
        images: What to time with; generated images without any.

    Returns:
        Samples by candidate name, one mapping per batch size, ascending.
    """
    (shape,) = {session.input_shape for session in sessions.values()}
    sizes = timed_sizes(batch_sizes, measure)
    results = []
    with progress.stage("latency") as advance:

        def between(done: int, total: int) -> None:
            if watch is not None:
                watch.sample()
            advance(done, total)

        for batch_size in sizes:
            blocks, min_seconds = blocks_asked(batch_size, sizes, measure)
            results.append(
                measure_latency(
                    sessions,
                    _batch(images, batch_size, shape),
                    blocks=blocks,
                    warmup=measure.warmup,
                    seed=measure.seed,
                    min_seconds=min_seconds,
                    max_seconds=measure.max_seconds / len(sizes) if measure.max_seconds is not None else None,
                    cold_l2=measure.l2 == "cold",
                    progress=between,
                )
            )
    return results


def timed_sizes(batch_sizes: Sequence[int], measure: Measure) -> list[int]:
    """The batch sizes that are timed, ascending: those asked for, and 1 where single stream is asked for."""
    single = {1} if Scenario.SINGLE_STREAM in measure.scenarios else set()
    return sorted({*batch_sizes, *single})


def blocks_asked(batch_size: int, sizes: Sequence[int], measure: Measure) -> tuple[int, float]:
    """Blocks and seconds to measure a batch size for."""
    if not measure.mlperf_rules:
        return measure.blocks, 0.0
    taking = {Scenario.SINGLE_STREAM: 1, Scenario.OFFLINE: sizes[-1]}
    scenarios = [Scenario(name) for name in measure.scenarios if taking[Scenario(name)] == batch_size]
    blocks = max([measure.blocks, *(blocks_by_the_rules(scenario, batch_size) for scenario in scenarios)])
    return blocks, LEAST_S if scenarios else 0.0


def _batch(images: Dataset | None, batch_size: int, input_shape: tuple[int, int, int]) -> Float32:
    """Images to time with: real ones where there are some, repeated up to the batch size."""
    pool = images.take(range(min(batch_size, len(images))))[0] if images is not None else parity_images(input_shape)
    return np.resize(pool, (batch_size, *input_shape))

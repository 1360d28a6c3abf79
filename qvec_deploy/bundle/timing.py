"""Every engine's latency at every batch size, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from qvec_deploy.bundle.parity import parity_images
from qvec_deploy.bundle.progress import Progress
from qvec_deploy.datasets import Dataset
from qvec_deploy.measure.latency import LatencySamples, measure_latency
from qvec_deploy.recipe import Measure
from qvec_deploy.targets import Session
from qvec_deploy.tensors import Float32


def measure_latencies(
    sessions: Mapping[str, Session],
    images: Dataset | None,
    batch_sizes: Sequence[int],
    measure: Measure,
    progress: Progress,
) -> list[dict[str, LatencySamples]]:
    """Time all engines together, one batch size after the other.

    Args:
        sessions: Loaded engines by candidate name.
        images: What to time with; generated images without any.
        batch_sizes: Images in a run.
        measure: How.
        progress: Shows how far it is.

    Returns:
        Samples by candidate name, one mapping per batch size, ascending.
    """
    (shape,) = {session.input_shape for session in sessions.values()}
    results = []
    with progress.stage("latency") as advance:
        for batch_size in sorted(set(batch_sizes)):
            results.append(
                measure_latency(
                    sessions,
                    _batch(images, batch_size, shape),
                    blocks=measure.blocks,
                    warmup=measure.warmup,
                    seed=measure.seed,
                    progress=advance,
                )
            )
    return results


def _batch(images: Dataset | None, batch_size: int, input_shape: tuple[int, int, int]) -> Float32:
    """Images to time with: real ones where there are some, repeated up to the batch size."""
    pool = images.take(range(min(batch_size, len(images))))[0] if images is not None else parity_images(input_shape)
    return np.resize(pool, (batch_size, *input_shape))

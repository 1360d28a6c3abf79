"""Batches decoded in the background while an engine works on earlier ones."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from qvec_deploy.datasets.spec import Float32, Int64, OpenedDataset

AHEAD = 2
"""Batches in the making: memory holds these and the one in use, however many threads there are."""
_MOST_THREADS = 16

Part = Future[tuple[Float32, Int64]]


def prefetched(
    dataset: OpenedDataset, batch_size: int, *, rows: Int64 | None = None
) -> Generator[tuple[Float32, Int64]]:
    """Images in order, `batch_size` at a time, read ahead by threads; the last batch may be smaller.

    Args:
        rows: The images that are wanted; all of them by default.

    Raises:
        QvecError: As the dataset's `take`; all batches before have been given by then.
    """
    threads = min(_usable_cores(), batch_size, _MOST_THREADS) if dataset.parallel else 1
    wanted = np.arange(len(dataset)) if rows is None else rows
    starts = iter(range(0, len(wanted), batch_size))
    pool = ThreadPoolExecutor(threads, thread_name_prefix="images")
    pending: deque[list[Part]] = deque()

    def ask() -> None:
        start = next(starts, None)
        if start is not None:
            batch = wanted[start : start + batch_size]
            parts = np.array_split(batch, min(threads, len(batch)))
            pending.append([pool.submit(dataset.take, part) for part in parts])

    try:
        for _ in range(AHEAD):
            ask()
        while pending:
            batch = _joined(pending.popleft())
            ask()
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)


def _joined(parts: list[Part]) -> tuple[Float32, Int64]:
    if len(parts) == 1:
        return parts[0].result()
    images, labels = zip(*(part.result() for part in parts), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

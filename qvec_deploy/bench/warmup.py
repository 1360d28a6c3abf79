"""When an engine is warm: its times have stopped changing."""

from __future__ import annotations

from collections.abc import Sequence

from qvec_deploy.bench.statistics import median

WINDOW = 5  # blocks; the median of five is not moved by one that was disturbed, nor by the first
SETTLED = 0.05  # two windows on a machine as noisy as `warnings` puts up with differ by that now and then
MOST_WINDOWS = 10


def warmup_limit(warmup: int) -> int:
    """Blocks after which warming up is given up: 50, or as many as were asked for; none where none was."""
    return max(warmup, WINDOW * MOST_WINDOWS) if warmup else 0


def settled(samples: Sequence[float]) -> bool:
    """Whether warming up has done its work: the medians of the last two windows differ by less than `SETTLED`."""
    if len(samples) < 2 * WINDOW:
        return False
    before, last = median(samples[-2 * WINDOW : -WINDOW]), median(samples[-WINDOW:])
    return abs(last - before) <= SETTLED * before

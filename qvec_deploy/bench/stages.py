"""One run of a GPU engine, taken apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qvec_deploy.bench.runnable import Stages
from qvec_deploy.tensors import Float32

NANOSECONDS_PER_MS = 1e6


@dataclass(frozen=True)
class StageTimes:
    """The parts of one run, in milliseconds; the words are those of `latency.DEFINITIONS`."""

    enqueue_ms: float
    h2d_ms: float
    compute_ms: float
    d2h_ms: float


def time_stages(stages: Stages, images: Float32, clock: Callable[[], int]) -> StageTimes:
    """Run once with a mark between the parts.

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
    return StageTimes(
        enqueue_ms,
        h2d_ms=stages.elapsed_ms(begin, arrived),
        compute_ms=stages.elapsed_ms(arrived, computed),
        d2h_ms=stages.elapsed_ms(computed, back),
    )

"""Whether one engine is faster than another, in one word that may be acted on."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from qvec_deploy.bench.statistics import Estimate, speed_up, unpaired_speed_up

LEVEL = 0.01  # of a false alarm; a pipeline that cries wolf is switched off
TOLERANCE = 0.02
"""A difference below it is of no use to anybody, and may be none of the engine's.

Two loads of one file differ for good by where their weights happen to lie in memory: measured on a small ViT, the one
that was loaded first is slower by 0.25 %. More blocks make that ever clearer; only a tolerance keeps it from being
called a difference.
"""


LEAST_BLOCKS = 30
"""Below it there is no verdict, whatever the level: intervals are drawn block by block and are too narrow.

Simulated with one engine against itself, noise of 15 % and an autocorrelation of 0.6, at level 0.01: 8 blocks give a
false alarm in 15 %, 26 in 6 %, 30 in 1 %, 60 in 2 %.
"""


class Verdict(StrEnum):
    """What the interval of a speed-up says."""

    FASTER = "FASTER"
    SLOWER = "SLOWER"
    SAME = "SAME"
    UNSURE = "UNSURE"


def latency_verdict(
    baseline: Sequence[float],
    candidate: Sequence[float],
    *,
    level: float = LEVEL,
    tolerance: float = TOLERANCE,
    paired: bool = True,
) -> tuple[Verdict, Estimate | None]:
    """Compare two engines by their latencies.

    The interval of the speed-up at confidence 1 - `level` decides: FASTER where all of it lies above
    1 + `tolerance`, SLOWER where all of it lies below 1 / (1 + `tolerance`), SAME where it lies between the two,
    UNSURE otherwise. SAME is thus a finding (a difference beyond the tolerance is ruled out), UNSURE is the lack of
    one: more blocks, or a quieter machine, would decide.

    Args:
        baseline: Host latencies of the baseline, milliseconds, one per block.
        level: Probability of FASTER or SLOWER where there is no difference; above 0, below 1. Where noise lasts for
            several blocks it holds only roughly (see `LEAST_BLOCKS`), and unpaired samples hold no level at all.
        paired: Whether both were measured together, in the same blocks.

    Returns:
        The verdict, and the speed-up with its interval; UNSURE and None below `LEAST_BLOCKS`.
    """
    if paired and len(baseline) != len(candidate):
        raise ValueError(f"{len(baseline)} and {len(candidate)} samples cannot be paired")
    if blocks_missing(baseline, candidate):
        return Verdict.UNSURE, None
    ratio = (speed_up if paired else unpaired_speed_up)(baseline, candidate, confidence=1 - level)
    return judge(ratio, tolerance), ratio


def blocks_missing(baseline: Sequence[float], candidate: Sequence[float]) -> int:
    """How many more blocks a verdict takes; 0 where there are enough."""
    return max(0, LEAST_BLOCKS - min(len(baseline), len(candidate)))


def judge(ratio: Estimate | None, tolerance: float = TOLERANCE) -> Verdict:
    """What an interval of a speed-up says; UNSURE without one."""
    if ratio is None:
        return Verdict.UNSURE
    least, most = 1 / (1 + tolerance), 1 + tolerance
    if ratio.low > most:
        return Verdict.FASTER
    if ratio.high < least:
        return Verdict.SLOWER
    return Verdict.SAME if least <= ratio.low and ratio.high <= most else Verdict.UNSURE

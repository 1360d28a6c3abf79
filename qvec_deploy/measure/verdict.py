"""Whether one engine is faster than another, in one word that may be acted on."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from qvec_deploy.measure.statistics import Estimate, speed_up

LEVEL = 0.01  # of a false alarm; a pipeline that cries wolf is switched off
TOLERANCE = 0.02
"""A difference below it is of no use to anybody, and may be none of the engine's.

Two loads of one file differ for good by where their weights happen to lie in memory: measured on a small ViT, the one
that was loaded first is slower by 0.25 %. More blocks make that ever clearer; only a tolerance keeps it from being
called a difference.
"""


class Verdict(StrEnum):
    """What the interval of a speed-up says."""

    FASTER = "FASTER"
    SLOWER = "SLOWER"
    SAME = "SAME"
    UNSURE = "UNSURE"


def latency_verdict(
    baseline: Sequence[float], candidate: Sequence[float], *, level: float = LEVEL, tolerance: float = TOLERANCE
) -> tuple[Verdict, Estimate | None]:
    """Compare two engines that were measured together.

    The interval of the speed-up at confidence 1 - `level` decides: FASTER where all of it lies above
    1 + `tolerance`, SLOWER where all of it lies below 1 / (1 + `tolerance`), SAME where it lies between the two,
    UNSURE otherwise. SAME is thus a finding (a difference beyond the tolerance is ruled out), UNSURE is the lack of
    one: more blocks, or a quieter machine, would decide.

    Args:
        baseline: Host latencies of the baseline, milliseconds, one per block.
        candidate: The candidate's, from the same blocks.
        level: Probability of FASTER or SLOWER where there is no difference; above 0, below 1.
        tolerance: Relative difference that does not matter.

    Returns:
        The verdict, and the speed-up with its interval; UNSURE and None where there are too few samples for one.

    Raises:
        ValueError: The samples are not from the same blocks.
    """
    ratio = speed_up(baseline, candidate, confidence=1 - level)
    return judge(ratio, tolerance), ratio


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

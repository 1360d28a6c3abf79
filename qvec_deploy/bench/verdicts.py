"""When one engine is faster, more accurate or smaller than another, in one word that may be acted on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from qvec_deploy.bench.statistics import Estimate, mcnemar, paired_difference, speed_up, unpaired_speed_up

Verdict = Literal["FASTER", "SLOWER", "SAME", "UNSURE"]
AccuracyVerdict = Literal["BETTER", "WORSE", "SAME", "UNSURE"]
SizeVerdict = Literal["SMALLER", "LARGER", "SAME"]
GateVerdict = Literal["PASSED", "MISSED", "UNSURE"]

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

    Returns:
        The verdict, and the speed-up with its interval; UNSURE and None below `LEAST_BLOCKS`.
    """
    if paired and len(baseline) != len(candidate):
        raise ValueError(f"{len(baseline)} and {len(candidate)} samples cannot be paired")
    if blocks_missing(baseline, candidate):
        return "UNSURE", None
    ratio = (speed_up if paired else unpaired_speed_up)(baseline, candidate, confidence=1 - level)
    return judge(ratio, tolerance), ratio


def blocks_missing(baseline: Sequence[float], candidate: Sequence[float]) -> int:
    """How many more blocks a verdict takes; 0 where there are enough."""
    return max(0, LEAST_BLOCKS - min(len(baseline), len(candidate)))


def judge(ratio: Estimate | None, tolerance: float = TOLERANCE) -> Verdict:
    """What an interval of a speed-up says; UNSURE without one."""
    if ratio is None:
        return "UNSURE"
    least, most = 1 / (1 + tolerance), 1 + tolerance
    if ratio.low > most:
        return "FASTER"
    if ratio.high < least:
        return "SLOWER"
    return "SAME" if least <= ratio.low and ratio.high <= most else "UNSURE"


def accuracy_verdict(
    gained: int, lost: int, count: int, *, level: float, tolerance: float
) -> tuple[AccuracyVerdict, Estimate, float]:
    """Compare two engines on the same images.

    The interval of the difference (Bonett & Price 2012, see `paired_difference`) at confidence 1 - `level` and
    McNemar's exact test decide together:

    - SAME: all of the interval lies within `tolerance` of zero. A difference that matters is ruled out.
    - BETTER or WORSE: not that, all of the interval lies on one side of zero, and McNemar's p is below `level`.
    - UNSURE: anything else. More images would decide.

    WORSE is a regression where the measured loss itself is beyond the tolerance (`Comparison.regressions`): it must
    be real, and it must matter. To ask that the whole interval lie beyond the tolerance would let most real losses
    pass: 5,000 images of which 4 % differ prove "worse than 0.5 points" only from a loss of about 1.2 points on.

    Args:
        level: Probability of BETTER or WORSE where there is no difference, at most.
        tolerance: Percentage points that do not matter.

    Returns:
        The verdict, the difference as a fraction with its interval, and McNemar's p.
    """
    difference = paired_difference(gained, lost, count, confidence=1 - level)
    p = mcnemar(gained, lost)
    limit = tolerance / 100
    if -limit <= difference.low and difference.high <= limit:
        return "SAME", difference, p
    if p < level and difference.low > 0:
        return "BETTER", difference, p
    if p < level and difference.high < 0:
        return "WORSE", difference, p
    return "UNSURE", difference, p


def size_verdict(old: int, new: int, tolerance: float) -> SizeVerdict:
    """Compare two sizes in bytes: SAME within `tolerance` times the old one."""
    if abs(new - old) <= tolerance * old:
        return "SAME"
    return "LARGER" if new > old else "SMALLER"


def gate_verdict(new: bool | None) -> GateVerdict:
    """What became of a gate: whether NEW passed it, UNSURE where it was not asked or not judged (None)."""
    if new is None:
        return "UNSURE"
    return "PASSED" if new else "MISSED"

"""Pairs that lose at lambda 1, and why: the one home of the rules."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from qvec_deploy.research.study.analysis.pair_values import Cause, LambdaGain, LosingPair, PairGain
from qvec_deploy.research.study.analysis.setting_cells import SettingCells
from qvec_deploy.research.study.analysis.study_statistics import t_quantile
from qvec_deploy.research.study.analysis.study_summary import Headroom

NO_HEADROOM = 2.0
"""Points between plain PTQ and its own QAT, or float, below which there is nothing to win."""


def cause_of(
    receiver: Headroom, between: LambdaGain | None, negative: LambdaGain | None, *, apart: bool = False
) -> Cause:
    """Why a pair loses at lambda 1: the first rule that applies.

    1. `coordinates`: the donor was found not to share the receiver's coordinates; nothing else need be asked.
    2. `no headroom`: plain PTQ is within 2 points of the receiver's own QAT, or of its float model.
    3. `overshoot`: some lambda between 0 and 1 gains: the direction is right and the step too long.
    4. `anti-aligned`: none does, but some lambda below 0 gains: the vector points away from what helps.
    5. `useless`: nothing gains there. A gain beyond lambda 1 alone, after a loss at 1, is taken for chance.

    The gains at other lambdas are in hindsight, the best of several on test images: a gain within noise may make a
    useless pair look like one of 3 or 4, which is why the numbers stand beside the cause.

    Args:
        between: Best of 0 < lambda < 1; None where none was tried.
        negative: Best of lambda < 0; None where none was tried.
        apart: Whether a coordinate check found the pair apart.
    """
    if apart:
        return "coordinates"
    tops = [receiver.float_top1, *([] if receiver.own_qat_top1 is None else [receiver.own_qat_top1])]
    if min(tops) - receiver.plain_top1 < NO_HEADROOM:
        return "no headroom"
    if between is not None and between.gain > 0:
        return "overshoot"
    return "anti-aligned" if negative is not None and negative.gain > 0 else "useless"


def noise_of(pair: PairGain) -> float:
    """Half of the 95 % interval of a pair's gain over seeds and over images together, points.

    The variances add up. That over seeds rests on a few of them, that over images on hundreds: the quantile is of
    Student's t with degrees of freedom by Satterthwaite, from one less than the seeds (12.7 standard errors with two),
    where images hardly add anything, to 1.96 standard errors where seeds hardly do, or there is only one.
    """
    seeds, images = (pair.seed_error or 0.0) ** 2, pair.image_error**2
    freedom = (len(pair.lambdas) - 1) * ((seeds + images) / seeds) ** 2 if seeds else math.inf
    return t_quantile(freedom) * math.sqrt(seeds + images)


def losing_pairs_of(
    cells: SettingCells, at_one: Sequence[PairGain], headroom: Sequence[Headroom]
) -> tuple[LosingPair, ...]:
    """Every pair with a gain below 0 at lambda 1, seeds averaged; the worst first."""
    by_receiver = {entry.receiver: entry for entry in headroom}
    losing = sorted((pair for pair in at_one if pair.gain < 0), key=lambda pair: pair.gain)
    return tuple(_losing_pair(cells, pair, by_receiver[pair.receiver]) for pair in losing)


def _losing_pair(cells: SettingCells, pair: PairGain, receiver: Headroom) -> LosingPair:
    curve = mean_curve(cells, pair.donor, pair.receiver)
    between, negative = _best(curve, 0.0, 1.0), _best(curve, -math.inf, 0.0)
    relations = [trials.cell.relations.get(pair.donor) for trials in cells.of_receiver(pair.receiver)]
    apart = any(known and known.apart is not None for known in relations)  # one seed is enough: the mean has it in it
    noise = noise_of(pair)
    return LosingPair(
        donor=pair.donor,
        receiver=pair.receiver,
        gain=pair.gain,
        noise=noise,
        within_noise=-pair.gain <= noise,
        cause=cause_of(receiver, between, negative, apart=apart),
        float_top1=receiver.float_top1,
        own_qat_top1=receiver.own_qat_top1,
        plain_top1=receiver.plain_top1,
        best_between=between,
        best_negative=negative,
    )


def mean_curve(cells: SettingCells, donor: str, receiver: str) -> dict[float, float]:
    """Gain over plain by lambda for one donor and receiver, seeds averaged."""
    gains: dict[float, list[float]] = {}
    for trials in cells.of_receiver(receiver):
        for lam, trial in trials.pairs.get(donor, {}).items():
            gains.setdefault(lam, []).append(trials.gain(trial))
    return {lam: float(np.mean(values)) for lam, values in sorted(gains.items())}


def _best(curve: dict[float, float], above: float, below: float) -> LambdaGain | None:
    """The largest gain strictly between two lambdas; of equals the one nearest to 0."""
    inside = [LambdaGain(lam, gain) for lam, gain in curve.items() if above < lam < below]
    return max(inside, key=lambda point: (point.gain, -abs(point.lam)), default=None)

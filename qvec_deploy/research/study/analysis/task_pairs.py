"""Pairs of tasks: why some lose, whether similar ones help each other more, and whether Prop. 1 predicts how much."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from qvec_deploy.research.study.analysis.pair_values import (
    Cause,
    GainMatrix,
    LambdaGain,
    LosingPair,
    Measure,
    PairGain,
    PredictedPair,
    PropositionCheck,
    RankCorrelation,
    SimilarityTercile,
    SimilarPair,
    TaskSimilarity,
)
from qvec_deploy.research.study.analysis.row_key import PLAIN
from qvec_deploy.research.study.analysis.setting_cells import SettingCells
from qvec_deploy.research.study.analysis.study_statistics import qap, ratio, spearman, t_quantile
from qvec_deploy.research.study.analysis.study_summary import Headroom
from qvec_deploy.research.study.cell_values import Relation

Float64 = NDArray[np.float64]


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


MEASURES: tuple[tuple[Measure, str], ...] = (
    ("prototype_cosine", "cosine of class prototypes in the base"),
    ("task_vector_cosine", "cosine of task vectors"),
    ("vector_cosine", "cosine of quantization vectors"),
)
BINS = 3


def similarities_of(cells: SettingCells, at_one: Sequence[PairGain]) -> tuple[TaskSimilarity, ...]:
    """What every measure that was computed says about gains at lambda 1."""
    found = []
    for measure, label in MEASURES:
        cosine = related(cells, attrgetter(measure))
        points = tuple(
            SimilarPair(pair.donor, pair.receiver, cosine[pair.donor, pair.receiver], pair.gain)
            for pair in at_one
            if (pair.donor, pair.receiver) in cosine
        )
        if points:
            similar = cells.table((point.donor, point.receiver, point.similarity) for point in points)
            gains = cells.table((point.donor, point.receiver, point.gain) for point in points)
            correlations = correlate(similar, gains)
            found.append(TaskSimilarity(measure, label, points, correlations, terciles_of(cells, points)))
    return tuple(found)


def related(cells: SettingCells, of: Callable[[Relation], float | None]) -> dict[tuple[str, str], float]:
    """(donor, receiver) to a number of their relation, over the seeds that have it."""
    seen: dict[tuple[str, str], list[float]] = {}
    for trials in cells.by_place.values():
        for donor, relation in trials.cell.relations.items():
            value = of(relation)
            if value is not None:
                seen.setdefault((donor, trials.cell.request.receiver.name), []).append(value)
    return {pair: float(np.mean(values)) for pair, values in seen.items()}


def correlate(first: Float64, second: Float64) -> tuple[RankCorrelation, ...]:
    """Over all pairs, and within receivers; p-values not yet adjusted.

    Args:
        first: (tasks, tasks), as `second`, donors by receivers; its tasks are relabelled.
    """
    return tuple(
        RankCorrelation(
            over="within receivers" if within else "pairs",
            spearman=spearman(first, second, within=within),
            **vars(qap(first, second, within=within)),
        )
        for within in (False, True)
    )


def terciles_of(cells: SettingCells, points: Sequence[SimilarPair]) -> tuple[SimilarityTercile, ...]:
    """Terciles of similarity, as equal in size as can be; none below two pairs a tercile."""
    if len(points) < 2 * BINS:
        return ()
    ordered = sorted(points, key=lambda point: point.similarity)
    bounds = [round(index * len(ordered) / BINS) for index in range(BINS + 1)]
    return tuple(_tercile(cells, ordered[low:high]) for low, high in itertools.pairwise(bounds))


def _tercile(cells: SettingCells, points: Sequence[SimilarPair]) -> SimilarityTercile:
    """The mean weighs pairs with their seeds alike; receivers and seeds are drawn with the pairs they have here."""
    total, count = np.zeros(cells.shape), np.zeros(cells.shape)
    donors: dict[str, list[str]] = {}
    for point in points:
        donors.setdefault(point.receiver, []).append(point.donor)
    for place, trials in cells.by_place.items():
        for donor in donors.get(cells.receivers[place[0]], []):
            if (trial := trials.of_pairs("lambda_1").get(donor)) is not None:
                total[place] += trials.gain(trial)
                count[place] += 1
    return SimilarityTercile(
        low=points[0].similarity,
        high=points[-1].similarity,
        pairs=len(points),
        gain=float(total.sum() / count.sum()),
        interval=ratio(total, count),
        win_share=float(np.mean([point.gain > 0 for point in points])),
    )


def prediction_of(
    cells: SettingCells, matrices: Sequence[GainMatrix], headroom: Sequence[Headroom]
) -> PropositionCheck | None:
    """Prop. 1 against the share of the gap that a chosen lambda wins.

    The prediction is of the best lambda; the best of the test images would be in hindsight, so the one that selecting
    images chose stands for it. Receivers without headroom are left out.

    Returns:
        None where nothing was predicted, or no lambda chosen.
    """
    predicted = related(cells, lambda relation: relation.predicted_share)
    by_mode = {matrix.mode: matrix for matrix in matrices if matrix.baseline == PLAIN}
    chosen = by_mode.get("labelled") or by_mode.get("label_free")
    if not predicted or chosen is None or chosen.mode == "lambda_1":
        return None
    gaps = {entry.receiver: entry.gap for entry in headroom if entry.own_qat_top1 is not None}
    there = [pair for pair in chosen.pairs if (pair.donor, pair.receiver) in predicted and pair.receiver in gaps]
    points = tuple(
        PredictedPair(pair.donor, pair.receiver, predicted[pair.donor, pair.receiver], pair.gain / gaps[pair.receiver])
        for pair in there
        if gaps[pair.receiver] >= NO_HEADROOM
    )
    if not points:
        return None
    errors = np.array([point.predicted - point.measured for point in points])
    first = cells.table((point.donor, point.receiver, point.predicted) for point in points)
    second = cells.table((point.donor, point.receiver, point.measured) for point in points)
    return PropositionCheck(
        mode=chosen.mode,
        points=points,
        left_out=len(there) - len(points),
        correlations=correlate(first, second),
        mean_error=float(errors.mean()),
        mean_absolute_error=float(np.abs(errors).mean()),
    )

"""Do similar tasks help each other more, and does Prop. 1 predict how much?"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from qvec_deploy.research.study.analysis.losing_pairs import NO_HEADROOM
from qvec_deploy.research.study.analysis.pair_values import (
    GainMatrix,
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
from qvec_deploy.research.study.analysis.study_statistics import qap, ratio, spearman
from qvec_deploy.research.study.analysis.study_summary import Headroom
from qvec_deploy.research.study.cell_values import Relation

Float64 = NDArray[np.float64]

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

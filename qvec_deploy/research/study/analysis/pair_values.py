"""What a study says about single pairs of donor and receiver, as values: a part of its summary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qvec_deploy.bench.statistics import Estimate
from qvec_deploy.research.study.analysis.row_key import RowKey

Cause = Literal["coordinates", "no headroom", "overshoot", "anti-aligned", "useless"]
Mode = Literal["lambda_1", "label_free", "labelled"]
"""How lambda was chosen."""
Measure = Literal["prototype_cosine", "task_vector_cosine", "vector_cosine"]


@dataclass(frozen=True)
class PairGain:
    """One donor for one receiver, seeds averaged.

    Attributes:
        gain: Over the row that gains are over: plain, where nothing else is said.
        seed_error: Standard error over seeds; None with one.
        lambdas: The lambdas that were used, one per seed.
    """

    donor: str
    receiver: str
    gain: float
    seed_error: float | None
    image_error: float
    lambdas: tuple[float, ...]


@dataclass(frozen=True)
class GainMatrix:
    """Gains of every donor for every receiver over one row of the table.

    Attributes:
        pairs: In no order; a task with itself is not among them.
    """

    mode: Mode
    label: str
    baseline: RowKey
    tasks: tuple[str, ...]
    pairs: tuple[PairGain, ...]


@dataclass(frozen=True)
class SimilarPair:
    """A point of the similarity plot, seeds averaged: a cosine, and the gain over plain at lambda 1."""

    donor: str
    receiver: str
    similarity: float
    gain: float


@dataclass(frozen=True)
class SimilarityTercile:
    """Pairs of like similarity.

    Attributes:
        interval: The same with its interval over receivers and seeds; None where fewer than two receivers are there.
        win_share: Share of pairs that win, seeds averaged, 0 to 1.
    """

    low: float
    high: float
    pairs: int
    gain: float
    interval: Estimate | None
    win_share: float


@dataclass(frozen=True)
class PermutationTest:
    """A two-sided test of a correlation in which task labels are permuted, of tasks that are both donor and receiver.

    Attributes:
        qap_p: None where a pair of them is missing, or there are fewer than three.
        permutations: How many; all of them where `exact`.
    """

    qap_p: float | None
    permutations: int
    exact: bool


@dataclass(frozen=True, kw_only=True)
class RankCorrelation(PermutationTest):
    """Spearman's rank correlation of two quantities over pairs of tasks.

    Attributes:
        over: `pairs`: all pairs together. `within receivers`: donors are ranked for each receiver by itself and the
            correlations averaged, which is what choosing a donor needs.
        spearman: With a 95 % interval over tasks (vertex bootstrap); None where one of them does not vary. The ends are
            the value itself, no interval, where too few tasks were there to draw from.
        qap_adjusted: The p-value after Holm over all correlations of similarity in the study; None for Prop. 1.
    """

    over: Literal["pairs", "within receivers"]
    spearman: Estimate | None
    qap_adjusted: float | None = None


@dataclass(frozen=True)
class TaskSimilarity:
    """What one measure of similarity says about gains at lambda 1; terciles ascend, and are empty below six pairs."""

    measure: Measure
    label: str
    points: tuple[SimilarPair, ...]
    correlations: tuple[RankCorrelation, ...]
    bins: tuple[SimilarityTercile, ...]


@dataclass(frozen=True)
class LambdaGain:
    """A gain at a lambda, points, seeds averaged."""

    lam: float
    gain: float


@dataclass(frozen=True)
class LosingPair:
    """A pair that loses at lambda 1, seeds averaged, and why (rules: `task_pairs.cause_of`).

    Attributes:
        noise: How far chance alone, of seeds and images together, reaches with 95 %: `task_pairs.noise_of`, points.
        best_between: Best of 0 < lambda < 1, in hindsight, as `best_negative` of lambda < 0; None where none was tried.
    """

    donor: str
    receiver: str
    gain: float
    noise: float
    within_noise: bool
    cause: Cause
    float_top1: float
    own_qat_top1: float | None
    plain_top1: float
    best_between: LambdaGain | None
    best_negative: LambdaGain | None


@dataclass(frozen=True)
class PredictedPair:
    """Prop. 1 for one pair, seeds averaged.

    Attributes:
        predicted: Best share of the receiver's headroom, 0 to 1, by Prop. 1.
        measured: Share of its gap on test images, at the lambda that selecting images chose.
    """

    donor: str
    receiver: str
    predicted: float
    measured: float


@dataclass(frozen=True)
class PropositionCheck:
    """Prop. 1 held against what was measured.

    Attributes:
        mode: How lambda was chosen for the measured share: `labelled`, or `label_free` where no labels were looked at.
        left_out: Pairs of receivers without headroom: their shares mean nothing.
    """

    mode: Literal["label_free", "labelled"]
    points: tuple[PredictedPair, ...]
    left_out: int
    correlations: tuple[RankCorrelation, ...]
    mean_error: float
    mean_absolute_error: float

"""What a study says about single pairs of donor and receiver, as values: a part of its summary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qvec_deploy.bench.statistics import Estimate

Needs = Literal["nothing", "donors", "images", "labels", "training"]
"""What of the receiver's a row takes: `nothing` and `donors` none of its data (donors: other tasks' vectors), `images`
unlabelled ones, `labels` labelled ones, `training` a fine-tune of its own."""

Cause = Literal["coordinates", "no headroom", "overshoot", "anti-aligned", "useless"]


@dataclass(frozen=True)
class PairGain:
    """One donor for one receiver, seeds averaged.

    Attributes:
        donor: Task.
        receiver: Task.
        gain: Over the row that gains are over: plain, where nothing else is said.
        seed_error: Standard error over seeds; None with one.
        image_error: Standard error over test images.
        lambdas: That were used, one per seed.
    """

    donor: str
    receiver: str
    gain: float
    seed_error: float | None
    image_error: float
    lambdas: tuple[float, ...]


@dataclass(frozen=True)
class Matrix:
    """Gains of every donor for every receiver over one row of the table.

    Attributes:
        mode: How lambda was chosen: `lambda_1`, `label_free` or `labelled`.
        label: How lambda was chosen, in words.
        baseline: Key of the row that gains are over: `plain`, `mse`, `gptq/images`, ... (`choices.baseline`).
        tasks: Order of rows and columns.
        pairs: In no order; a task with itself is not among them.
    """

    mode: Literal["lambda_1", "label_free", "labelled"]
    label: str
    baseline: str
    tasks: tuple[str, ...]
    pairs: tuple[PairGain, ...]


@dataclass(frozen=True)
class SimilarPair:
    """A point of the similarity plot, seeds averaged.

    Attributes:
        donor: Task.
        receiver: Task.
        similarity: A cosine.
        gain: At lambda 1, over plain.
    """

    donor: str
    receiver: str
    similarity: float
    gain: float


@dataclass(frozen=True)
class Bin:
    """Pairs of like similarity.

    Attributes:
        low: Least similarity.
        high: Largest.
        pairs: How many.
        gain: Mean at lambda 1.
        interval: The same with its interval over receivers and seeds; None where fewer than two receivers are there.
        win_share: Of pairs (seeds averaged), 0 to 1.
    """

    low: float
    high: float
    pairs: int
    gain: float
    interval: Estimate | None
    win_share: float


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of two quantities over pairs of tasks.

    Attributes:
        over: `pairs`: all pairs together. `within receivers`: donors are ranked for each receiver by itself and the
            correlations averaged, which is what choosing a donor needs.
        spearman: With a 95 % interval over tasks (vertex bootstrap); None where one of them does not vary. The ends are
            the value itself, no interval, where too few tasks were there to draw from.
        qap_p: Two-sided p-value when task labels are permuted, of tasks that are both donor and receiver; None where a
            pair of them is missing, or there are fewer than three.
        qap_adjusted: The same after Holm over all correlations of similarity in the study; None for Prop. 1.
        permutations: How many; all of them where `exact`.
        exact: Whether they were all tried.
    """

    over: Literal["pairs", "within receivers"]
    spearman: Estimate | None
    qap_p: float | None
    qap_adjusted: float | None
    permutations: int
    exact: bool


@dataclass(frozen=True)
class Similarity:
    """What one measure of similarity says about gains at lambda 1.

    Attributes:
        measure: `prototype_cosine`, `task_vector_cosine` or `vector_cosine`.
        label: In words.
        points: Every pair.
        correlations: Over pairs and within receivers.
        bins: Terciles of similarity, ascending; empty below six pairs.
    """

    measure: Literal["prototype_cosine", "task_vector_cosine", "vector_cosine"]
    label: str
    points: tuple[SimilarPair, ...]
    correlations: tuple[Correlation, ...]
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class LambdaGain:
    """A gain at a lambda.

    Attributes:
        lam: Lambda.
        gain: Points, seeds averaged.
    """

    lam: float
    gain: float


@dataclass(frozen=True)
class Failure:
    """A pair that loses at lambda 1, seeds averaged, and why (rules: `failures.cause_of`).

    Attributes:
        donor: Task.
        receiver: Task.
        gain: At lambda 1, below 0.
        noise: How far chance alone, of seeds and images together, reaches with 95 %: `failures.noise_of`, points.
        within_noise: Whether the loss is no larger than that.
        cause: By rule.
        float_top1: Of the receiver.
        own_qat_top1: Of its own QAT; None without one.
        plain_top1: Of plain PTQ.
        best_between: Best of 0 < lambda < 1, in hindsight; None where none was tried.
        best_negative: Best of lambda < 0, in hindsight; None where none was tried.
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
        donor: Task.
        receiver: Task.
        predicted: Best share of the receiver's headroom, 0 to 1, by Prop. 1.
        measured: Share of its gap on test images, at the lambda that selecting images chose.
    """

    donor: str
    receiver: str
    predicted: float
    measured: float


@dataclass(frozen=True)
class Prediction:
    """Prop. 1 held against what was measured.

    Attributes:
        mode: How lambda was chosen for the measured share: `labelled`, or `label_free` where no labels were looked at.
        points: Every pair whose receiver has headroom.
        left_out: Pairs of receivers without headroom: their shares mean nothing.
        correlations: As for similarity.
        mean_error: Mean of predicted - measured, shares.
        mean_absolute_error: Of its magnitude.
    """

    mode: Literal["label_free", "labelled"]
    points: tuple[PredictedPair, ...]
    left_out: int
    correlations: tuple[Correlation, ...]
    mean_error: float
    mean_absolute_error: float

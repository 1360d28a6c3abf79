"""What a study answers, as values: everything that its report prints, and nothing about how.

Accuracies and gains are percentage points unless they are called shares; a gain is over plain PTQ on the same grid,
image by image. Three things could have come out otherwise, and no number mixes them silently:

* seeds: fine-tunes trained again (`seed_error`, a standard error);
* images: other test images of the same tasks (`images`, a 95 % interval);
* receivers: other tasks, and other seeds with them (`receivers`, a 95 % interval: `study_statistics.ratio`).

An interval whose ends are the value itself is none: nothing varied, or too little was there. `study.json` has these
values under the same names, RowKeys spelled out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from qvec_deploy.bench.statistics import Estimate
from qvec_deploy.research.study.analysis.pair_values import (
    GainMatrix,
    LosingPair,
    PairGain,
    PropositionCheck,
    TaskSimilarity,
)
from qvec_deploy.research.study.analysis.row_key import PLAIN, Needs, RowKey
from qvec_deploy.tensors import Scheme

SUMMARY_VERSION = 2


@dataclass(frozen=True)
class PooledMean:
    """A mean over receivers and seeds, with one bar for every source of variance.

    Attributes:
        seed_error: Standard error over seeds of the mean over receivers: what training again changes. None with one
            seed.
        images: 95 % interval over test images, receivers and seeds as they are.
        receivers: 95 % interval over receivers and seeds; None with one receiver.
    """

    value: float
    seed_error: float | None
    images: Estimate
    receivers: Estimate | None


@dataclass(frozen=True)
class WinCount:
    """How often a row is better than a baseline.

    Attributes:
        wins: Pairs of donor and receiver, each seed by itself, with a gain above 0 (of rows that are not one donor's:
            receivers).
        share: wins / count, 0 to 1, with its interval over receivers and seeds (none where all or no pairs win); None
            with one receiver.
    """

    baseline: RowKey
    wins: int
    ties: int
    count: int
    share: Estimate | None


@dataclass(frozen=True)
class StudyRow:
    """One line of the table of a setting.

    Attributes:
        cells: Receivers with their seeds that have it.
        gain: None for `plain` itself.
        share_of_gap: Sum of gains over sum of gaps to the receivers' own QAT: 1 closes it; None without QAT, with one
            receiver, or where one receiver, or one seed, has all of the gap and the others together none.
        wins: Against the baselines that were tried (`row_key.baselines`).
    """

    key: RowKey
    label: str
    needs: Needs
    cells: int
    candidates: int
    top1: PooledMean
    gain: PooledMean | None
    share_of_gap: Estimate | None
    wins: tuple[WinCount, ...]

    def wins_over(self, baseline: RowKey) -> WinCount | None:
        """Against one baseline, if it was tried."""
        return next((wins for wins in self.wins if wins.baseline == baseline), None)


@dataclass(frozen=True)
class Headroom:
    """One receiver, seeds averaged: what there is to win.

    Attributes:
        own_qat_top1: None without its own QAT.
        gap: own QAT - plain (float - plain without QAT).
        gap_error: Standard error over the seeds that have it; None with one.
        selecting: Images that chose, copies of test images dropped; None where cells do not say.
    """

    receiver: str
    images: int
    float_top1: float
    own_qat_top1: float | None
    plain_top1: float
    gap: float
    gap_error: float | None
    gap_image_error: float
    selecting: int | None


@dataclass(frozen=True)
class SelectionOutcome:
    """One way of choosing lambda or donor, judged on test images.

    Attributes:
        key: Its kind is `pair` for a lambda (mean over donors), else what is chosen.
        chosen_on: What the choice looked at. A gain chosen in `hindsight` is no estimate of anything one can have.
        short_of_hindsight: How far the gain stays below the best in hindsight of the same kind of choice, points; None
            for hindsight itself.
        median_lambda: Of the lambdas used; None, as what follows, where they are all 1 by definition.
        at_zero: Share of choices that fell on lambda 0, no patch.
        at_edge: Share that fell on an end of the grid, so that a wider grid might do better.
    """

    key: RowKey
    label: str
    chosen_on: Literal["nothing", "selecting images", "selecting labels", "hindsight"]
    gain: PooledMean
    short_of_hindsight: float | None
    median_lambda: float | None
    at_zero: float | None
    at_edge: float | None


@dataclass(frozen=True)
class PairedStatistics:
    """A paired test over receivers.

    Attributes:
        receivers: Paired differences tested.
        difference: Mean in points, with the interval of the paired t-test; none with one receiver or without spread.
        t_p: Two-sided p-value of the paired t-test; None below two receivers or without any spread.
        wilcoxon_p: Likewise of Wilcoxon's signed-rank test; None below two receivers.
        wilcoxon_least: The smallest p-value that so many receivers can give.
    """

    receivers: int
    difference: Estimate
    t_p: float | None
    wilcoxon_p: float | None
    wilcoxon_least: float


@dataclass(frozen=True, kw_only=True)
class PairedTest(PairedStatistics):
    """A paired test of two rows, seeds averaged first.

    Receivers share donors, so they are not quite independent; the interval and p-values take them to be.

    Attributes:
        family: Comparisons that answer one question; p-values are adjusted over it (Holm), all settings together.
    """

    family: str
    better: RowKey
    worse: RowKey
    label: str
    t_adjusted: float | None = None
    wilcoxon_adjusted: float | None = None


@dataclass(frozen=True)
class LambdaPoint:
    """Mean gain at one lambda, and the share of pairs and seeds (of receivers, for the mean of donors) that gain."""

    lam: float
    gain: PooledMean
    win_share: float


@dataclass(frozen=True)
class LambdaCurve:
    """Mean gain over lambda, ascending; lambda 0 is plain and gains 0."""

    key: Literal["pair", "mean"]
    label: str
    points: tuple[LambdaPoint, ...]


@dataclass(frozen=True)
class ReceiverCost:
    """What a way of having quantized receivers costs (formula: `costs.break_even`).

    Attributes:
        donors: Whose training is paid, once for all receivers.
        break_even: Receivers from which on the vector is cheaper; None where it never is.
    """

    key: RowKey
    label: str
    donors: int
    training_s: float
    receiver_s: float
    own_qat_s: float
    break_even: int | None
    share_of_gap: Estimate | None


@dataclass(frozen=True)
class PublishedFigure:
    """A published figure beside the study's.

    Attributes:
        unit: `points`, `%`, `lambda` or `correlation`.
        setting: Model, grid and split of the published figure; `what` says the lambda where there is one.
        low: Of the study's 95 % interval, as `high`, where it has one: over receivers and seeds; of a difference over
            receivers, of a correlation over tasks.
        reason: `not comparable: ` and why; else what differs although the setting is the same.
    """

    source: str
    what: str
    unit: str
    setting: str
    published: float
    study: float | None
    low: float | None
    high: float | None
    reason: str


@dataclass(frozen=True)
class StudySetting:
    """One of the study's models on one grid.

    Attributes:
        name: The study's name for the model; its timm name where it has no other.
        tasks: All donors and receivers, in the order of the study.
        receivers: Tasks that have cells.
        missing: `receiver, seed N` that have no cell although others of that seed or receiver have one.
        matrices: Gains of pairs over every baseline that was tried; none over a row that is plain by another name.
        costs: Empty where training times are not known.
    """

    name: str
    model: str
    model_args: dict[str, Any]
    skip: tuple[str, ...]
    grid: Scheme
    tasks: tuple[str, ...]
    receivers: tuple[str, ...]
    seeds: tuple[int, ...]
    selecting: int
    missing: tuple[str, ...]
    rows: tuple[StudyRow, ...]
    headroom: tuple[Headroom, ...]
    matrices: tuple[GainMatrix, ...]
    selection: tuple[SelectionOutcome, ...]
    comparisons: tuple[PairedTest, ...]
    similarities: tuple[TaskSimilarity, ...]
    failures: tuple[LosingPair, ...]
    prediction: PropositionCheck | None
    curves: tuple[LambdaCurve, ...]
    costs: tuple[ReceiverCost, ...]

    def row(self, key: RowKey) -> StudyRow | None:
        """The row of that key, if it was tried."""
        return next((row for row in self.rows if row.key == key), None)

    def test(self, better: RowKey, worse: RowKey) -> PairedTest | None:
        """The paired test of two rows, if it was made."""
        return next((one for one in self.comparisons if (one.better, one.worse) == (better, worse)), None)

    def pairs(self, mode: str = "lambda_1", baseline: RowKey = PLAIN) -> tuple[PairGain, ...]:
        """Gains of pairs over a row, by how lambda was chosen; empty where that was not tried."""
        found = (matrix.pairs for matrix in self.matrices if (matrix.mode, matrix.baseline) == (mode, baseline))
        return next(found, ())


@dataclass(frozen=True)
class ComparisonFamily:
    """Comparisons that answer one question together, over all settings.

    Attributes:
        name: One of `PairedTest.family`, or `similarity` for the correlations.
        size: Tests that Holm adjusted together: comparisons or correlations with a p-value.
    """

    name: str
    label: str
    size: int


@dataclass(frozen=True)
class StudySummary:
    """All that a study answers.

    Attributes:
        resamples: Resamples of the bootstrap over tasks, for the correlations.
    """

    settings: tuple[StudySetting, ...]
    families: tuple[ComparisonFamily, ...]
    published: tuple[PublishedFigure, ...]
    resamples: int
    version: int = SUMMARY_VERSION


def plain_values(value: Any) -> Any:
    """Values of a summary as JSON has them: rows spelled, dataclasses as mappings."""
    return json.loads(json.dumps(value, default=lambda found: str(found) if isinstance(found, RowKey) else vars(found)))

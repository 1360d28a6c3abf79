"""What can be said of two bundles from what they keep, without running anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from qvec_deploy.bench.accuracy import PairedAnswers
from qvec_deploy.bench.accuracy import pair as pair_answers
from qvec_deploy.bench.comparison import AccuracyChange, LatencyChange, Source, Tolerances
from qvec_deploy.bench.latency import LatencySamples
from qvec_deploy.bench.predictions import PREDICTIONS_FILE, Predictions, read_predictions
from qvec_deploy.bench.results import Candidate, Report
from qvec_deploy.bench.verdicts import accuracy_verdict, blocks_missing, latency_verdict
from qvec_deploy.bundle.bundle import Bundle
from qvec_deploy.bundle.changes import machine_differences

_CAVEAT = "separate runs, not paired: whatever differed between them counts as a difference"


@dataclass(frozen=True)
class CompareOptions:
    """How two bundles are compared.

    Attributes:
        stored: Measure nothing: take what the bundles' reports hold.
        threads: Threads of both engines instead of the recipes'.
        batch_sizes: Instead of those that both recipes name.
        blocks: Latency samples instead of OLD's recipe's.
        data_root: Folder of the images instead of the recipe's.
    """

    tolerances: Tolerances = field(default_factory=Tolerances)
    stored: bool = False
    threads: int | None = None
    batch_sizes: Sequence[int] = ()
    blocks: int | None = None
    data_root: Path | None = None


@dataclass(frozen=True)
class BundlePair:
    """What a comparison is made from.

    Attributes:
        reports: Theirs, OLD's first; None where a bundle has none that can be read here.
        identical: Whether they hold the same engine, built with the same runtime.
    """

    old: Bundle
    new: Bundle
    reports: tuple[Report | None, Report | None]
    identical: bool
    options: CompareOptions

    @property
    def runtimes(self) -> set[str]:
        """Of the two engines."""
        return {self.old.manifest.engine.runtime, self.new.manifest.engine.runtime}

    def batch_sizes(self) -> list[int]:
        """As asked, or what both recipes name, or what OLD's does; ascending."""
        old, new = self.old.recipe.target.batch_sizes, self.new.recipe.target.batch_sizes
        return sorted({*self.options.batch_sizes} or {*old} & {*new} or {*old})


def stored_accuracy(pair: BundlePair) -> AccuracyChange:
    """From the answers that both bundles keep; UNSURE with the reason where they cannot be paired."""
    kept = [bundle_predictions(bundle) for bundle in (pair.old, pair.new)]
    shipped = [_shipped(bundle) for bundle in (pair.old, pair.new)]
    if pair.identical:
        return _identical_accuracy(kept, shipped)
    for name, answers, candidate in zip(("OLD", "NEW"), kept, shipped, strict=True):
        if answers is None or candidate not in answers.predicted:
            return AccuracyChange("UNSURE", None, f"{name} keeps no answers to labelled images")
    old, new = (answers for answers in kept if answers is not None)
    if old.images != new.images:
        return AccuracyChange("UNSURE", None, "the bundles were evaluated on other images")
    before, after = old.predicted[shipped[0]], new.predicted[shipped[1]]
    correct = int((before == old.labels).sum()), int((after == old.labels).sum())
    return judged(pair, "stored", pair_answers(after, before, old.labels), correct, (old.dataset, old.split))


def paired_answers(candidate: Bundle, baseline: Bundle) -> PairedAnswers | None:
    """What two bundles ship against each other, image by image; None where not both keep answers to the same images."""
    one, other = bundle_predictions(candidate), bundle_predictions(baseline)
    if one is None or other is None or one.images != other.images:
        return None
    after, before = one.predicted.get(_shipped(candidate)), other.predicted.get(_shipped(baseline))
    return pair_answers(after, before, one.labels) if after is not None and before is not None else None


def _identical_accuracy(kept: Sequence[Predictions | None], shipped: Sequence[str]) -> AccuracyChange:
    verdict = AccuracyChange("SAME", "same engine", "the same engine, which gives the same answers")
    for answers, candidate in zip(kept, shipped, strict=True):
        if answers is not None and candidate in answers.predicted:
            right, count = int((answers.predicted[candidate] == answers.labels).sum()), len(answers.labels)
            paired = PairedAnswers(0, 0, count, count)
            return replace(
                verdict,
                dataset=answers.dataset,
                split=answers.split,
                old_correct=right,
                new_correct=right,
                paired=paired,
            )
    return verdict


def _shipped(bundle: Bundle) -> str:
    selection = bundle.manifest.selection
    return selection.shipped if selection is not None else bundle.manifest.name


def judged(
    pair: BundlePair, source: Source, paired: PairedAnswers, correct: tuple[int, int], dataset: tuple[str, str]
) -> AccuracyChange:
    """The verdict on paired answers."""
    tolerances = pair.options.tolerances
    verdict, difference, p = accuracy_verdict(
        paired.gained, paired.lost, paired.count, level=tolerances.level, tolerance=tolerances.accuracy
    )
    return AccuracyChange(verdict, source, "", *dataset, *correct, paired, difference, p)


def identical_latency(pair: BundlePair) -> tuple[LatencyChange, ...]:
    """SAME at every batch size: there is one engine only."""
    reason = "the same engine, which takes the same time"
    return tuple(LatencyChange("SAME", "same engine", reason, size) for size in pair.batch_sizes())


def stored_latency(pair: BundlePair) -> tuple[LatencyChange, ...]:
    """From the samples in both reports, which were taken in separate runs."""

    def unsure(reason: str) -> tuple[LatencyChange, ...]:
        return (LatencyChange("UNSURE", None, f"{reason}; compare without --stored"),)

    sides: list[Candidate] = []
    for name, report in zip(("OLD", "NEW"), pair.reports, strict=True):
        if report is None or report.selected is None or not report[report.selected].latency:
            return unsure(f"{name} has no report that can be read here, or no latency in it")
        sides.append(report[report.selected])
    before, after = (report.environment for report in pair.reports if report is not None)
    odd = machine_differences(before, after, pair.runtimes)
    if odd:
        return unsure(f"the bundles were measured in different places ({', '.join(odd)} differ)")
    old, new = ({entry.batch_size: entry for entry in side.latency} for side in sides)
    wanted = {*pair.options.batch_sizes} or {*old, *new}
    common = sorted(wanted & {*old} & {*new})
    found = tuple(judged_latency(pair, "stored", old[size], new[size], _CAVEAT) for size in common)
    return found or unsure("the reports have no batch size in common")


def judged_latency(
    pair: BundlePair, source: Source, old: LatencySamples, new: LatencySamples, known: str = ""
) -> LatencyChange:
    """The verdict on samples of one batch size; `known` is what must be known about the test."""
    tolerances, samples = pair.options.tolerances, (old.samples_ms, new.samples_ms)
    verdict, ratio = latency_verdict(
        *samples, level=tolerances.level, tolerance=tolerances.latency, paired=source == "measured"
    )
    missing = blocks_missing(*samples)
    reason = f"{missing} more blocks are needed for a verdict" if missing else known
    return LatencyChange(verdict, source, reason, old.batch_size, ratio, old, new)


def bundle_predictions(bundle: Bundle) -> Predictions | None:
    """What an opened bundle keeps; None where it was not evaluated, or built before predictions were kept."""
    if PREDICTIONS_FILE not in bundle.manifest.files:  # a file that is not listed has no hash
        return None
    return read_predictions(bundle.directory / PREDICTIONS_FILE)

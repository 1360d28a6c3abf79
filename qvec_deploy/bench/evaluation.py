"""Every engine's answers to the labelled images, and what a report says of them."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from qvec_deploy.bench.accuracy import Accuracy, measure_accuracies
from qvec_deploy.bench.results import AnswerChange, AnswerCounts, ClassCount, ConfidenceBin
from qvec_deploy.bench.resume import EvaluationJournal
from qvec_deploy.datasets import OpenedDataset
from qvec_deploy.datasets.prefetch import prefetched
from qvec_deploy.progress import Progress
from qvec_deploy.runtimes.session import Session

BINS = 15
"""As many as Guo et al. use; the error of few images grows with the number of bins."""

CHANGES = 20
"""Kinds of changes that a report keeps, the most frequent: with a thousand classes most kinds are single images."""


def measure_answers(
    sessions: Mapping[str, Session],
    images: OpenedDataset | None,
    batch_size: int,
    progress: Progress,
    journal: EvaluationJournal | None = None,
) -> dict[str, Accuracy]:
    """Run every engine over all images, which are decoded once and in the background; empty without images.

    Args:
        journal: Where partial answers of an earlier run are, and where they go; None keeps none.
    """
    if images is None:
        return {}
    start = journal.read(list(sessions)) if journal is not None else None
    first = next(iter(start.values())).count if start else 0
    with (
        progress.stage("accuracy") as advance,
        contextlib.closing(prefetched(images, batch_size, first=first)) as batches,
    ):
        accuracies = measure_accuracies(
            sessions,
            batches,
            start=start,
            keep=journal.write if journal is not None else None,
            progress=lambda seen: advance(seen, len(images)),
        )
    if journal is not None:
        journal.remove()
    return accuracies


def answers_of(accuracy: Accuracy, full: Accuracy | None) -> AnswerCounts:
    """What a report says of an engine's answers.

    Args:
        full: The float receiver's on the same images; None where it was not measured.
    """
    return AnswerCounts(
        correct=accuracy.correct,
        count=accuracy.count,
        top5=int(accuracy.top5.sum()) if accuracy.top5 is not None else None,
        classes=_classes(accuracy),
        bins=confidence_bins(accuracy.confidences, accuracy.right),
        changes=_changes(accuracy, full) if full is not None else (),
        waited=accuracy.waited,
    )


def confidence_bins(
    confidences: NDArray[np.floating], right: NDArray[np.bool_], bins: int = BINS
) -> tuple[ConfidenceBin, ...]:
    """Sort images into equally wide bins of confidence; bin m is (m / bins, (m + 1) / bins].

    Args:
        confidences: (count,) largest softmax probabilities, above 0 and up to 1.

    Returns:
        Every bin, ascending; empty ones are there too.
    """
    exact = confidences.astype(np.float64)
    index = np.clip(np.ceil(exact * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(index, minlength=bins)
    correct = np.bincount(index[right], minlength=bins)
    sums = np.bincount(index, weights=exact, minlength=bins)
    entries = zip(counts.tolist(), correct.tolist(), sums.tolist(), strict=True)
    return tuple(ConfidenceBin(*entry) for entry in entries)


def _classes(accuracy: Accuracy) -> tuple[ClassCount, ...]:
    counts = np.bincount(accuracy.labels)
    correct = np.bincount(accuracy.labels[accuracy.right], minlength=len(counts))
    return tuple(ClassCount(int(label), int(correct[label]), int(counts[label])) for label in np.flatnonzero(counts))


def _changes(accuracy: Accuracy, full: Accuracy) -> tuple[AnswerChange, ...]:
    """The most frequent kinds of images for which the engine left the float receiver's class."""
    differ = accuracy.predictions != full.predictions
    was, now, labels = full.predictions[differ], accuracy.predictions[differ], accuracy.labels[differ]
    kinds = list(zip(was.tolist(), now.tolist(), strict=True))
    gained = Counter(kind for kind, hit in zip(kinds, now == labels, strict=True) if hit)
    lost = Counter(kind for kind, hit in zip(kinds, was == labels, strict=True) if hit)
    frequent = sorted(Counter(kinds).items(), key=lambda entry: (-entry[1], entry[0]))[:CHANGES]
    return tuple(AnswerChange(*kind, count, gained[kind], lost[kind]) for kind, count in frequent)

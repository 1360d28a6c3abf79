"""Every engine's answers to the labelled images, and what a report says of them."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from qvec_deploy.bench.accuracy import Accuracy, Answered, measure_accuracies
from qvec_deploy.bench.results import AnswerChange, AnswerCounts, ClassCount, ConfidenceBin
from qvec_deploy.bench.resume import EvaluationJournal
from qvec_deploy.bench.runnable import Runnable
from qvec_deploy.datasets import OpenedDataset
from qvec_deploy.datasets.prefetch import prefetched
from qvec_deploy.progress import Advance, Progress
from qvec_deploy.runtimes.session import Session

BINS = 15
"""As many as Guo et al. use; the error of few images grows with the number of bins."""

SAMPLE = 1000
"""Images that show whether a model is read right: the interval of top-1 is then at most 6 points wide."""

CHANGES = 20
"""Kinds of changes that a report keeps, the most frequent: with a thousand classes most kinds are single images."""


def measure_answers(
    sessions: Mapping[str, Session],
    images: OpenedDataset | None,
    batch_size: int,
    progress: Progress,
    journal: EvaluationJournal | None = None,
    known: Answered | None = None,
) -> dict[str, Accuracy]:
    """Run every engine over all images, which are decoded once and in the background; empty without images.

    Args:
        journal: Where partial answers of an earlier run are, and where they go; None keeps none.
        known: Answers of some of the engines to all images, which are not asked again.
    """
    if images is None:
        return {}
    asked, known = sessions, known or {}
    sessions = {name: session for name, session in asked.items() if name not in known}
    if not sessions:
        return dict(known)
    start = journal.read(list(sessions)) if journal is not None else None
    first = next(iter(start.values())).count if start else 0
    with (
        progress.stage("accuracy") as advance,
        contextlib.closing(prefetched(images, batch_size, rows=np.arange(first, len(images)))) as batches,
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
    found = {**known, **accuracies}
    return {name: found[name] for name in asked}


def sampled_rows(count: int, classes: int) -> NDArray[np.int64]:
    """Which of so many images are enough to see whether a model is read right: all, or about `SAMPLE` evenly spaced.

    Where a sample has few images a class it is one of pairs of neighbours, mostly of one class: what the first is
    answered with can then be held against the second.
    """
    if count <= 2 * SAMPLE:
        return np.arange(count)
    length = 2 if classes * 4 > SAMPLE else 1
    # A quarter of the way in: at the start, and in the middle, of an even spacing are borders of classes.
    starts = (4 * np.arange(SAMPLE // length) + 1) * (count // length) // (4 * (SAMPLE // length))
    return (starts[:, None] * length + np.arange(length)).reshape(-1)


def measure_rows(
    engine: Runnable, images: OpenedDataset, rows: NDArray[np.int64], batch_size: int, advance: Advance
) -> Accuracy:
    """Run one engine over some of the images."""
    with contextlib.closing(prefetched(images, batch_size, rows=rows)) as batches:
        return measure_accuracies({"": engine}, batches, progress=lambda seen: advance(seen, len(rows)))[""]


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

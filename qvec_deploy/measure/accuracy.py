"""Top-1 accuracy of a session, with the predictions that let two sessions be compared image by image."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.measure.runnable import Runnable
from qvec_deploy.measure.statistics import wilson
from qvec_deploy.tensors import Float32

Labels = NDArray[np.integer]
Predictions = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Accuracy:
    """Top-1 accuracy on labelled images.

    Attributes:
        correct: Images whose largest logit is their label's.
        count: Images seen.
        low: Lower end of the 95 % Wilson interval of `top1`, a fraction.
        high: Upper end.
        predictions: (count,) int64, in the order of the images.
        labels: (count,) int64.
    """

    correct: int
    count: int
    low: float
    high: float
    predictions: Predictions
    labels: Predictions

    @property
    def top1(self) -> float:
        """Share of images that are right, 0 to 1."""
        return self.correct / self.count


@dataclass(frozen=True)
class Paired:
    """Two accuracies on the same images.

    Attributes:
        gained: Images that only the candidate gets right.
        lost: Images that only the baseline gets right.
        agreeing: Images on which both give the same class, right or wrong.
        count: All images.
    """

    gained: int
    lost: int
    agreeing: int
    count: int


def measure_accuracy(
    session: Runnable,
    batches: Iterable[tuple[Float32, Labels]],
    progress: Callable[[int], None] | None = None,
) -> Accuracy:
    """Run every batch and count.

    Args:
        session: The built engine.
        batches: Pairs of images (batch, channels, height, width) and labels (batch,).
        progress: Called with the images seen so far, after each batch.

    Raises:
        IncompatibleError: No images, more or fewer logits than labels, a label that is no class, or logits
            that are not numbers.
    """
    predicted: list[Predictions] = []
    expected: list[Predictions] = []
    seen = 0
    for images, labels in batches:
        logits = session.run(images)
        _check(logits, labels)
        predicted.append(logits.argmax(axis=1).astype(np.int64))
        expected.append(labels.astype(np.int64))
        seen += len(labels)
        if progress is not None:
            progress(seen)
    if not seen:
        raise IncompatibleError("the dataset has no images", hint="check the split's name and its limit")
    predictions, labels_seen = np.concatenate(predicted), np.concatenate(expected)
    correct = int((predictions == labels_seen).sum())
    estimate = wilson(correct, seen)
    return Accuracy(correct, seen, estimate.low, estimate.high, predictions, labels_seen)


def _check(logits: Float32, labels: Labels) -> None:
    if logits.ndim != 2 or len(logits) != len(labels):
        raise IncompatibleError(
            f"the engine gave logits of shape {logits.shape} for {len(labels)} images",
            hint="it must give one row of class logits per image; check the exported graph",
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < logits.shape[1]:
        raise IncompatibleError(
            f"labels {labels.min()} to {labels.max()} for {logits.shape[1]} classes",
            hint="the model and the dataset do not belong together",
        )
    if not np.isfinite(logits).all():
        raise IncompatibleError(
            "the engine gave logits that are not finite",
            hint="an argmax over NaN means nothing; check the weights and the lowering's precision",
        )


def agreement(a: Accuracy, b: Accuracy) -> float:
    """Share of images, 0 to 1, on which both give the same class, right or wrong.

    Raises:
        ValueError: They did not see the same images.
    """
    paired = compare(a, b)
    return paired.agreeing / paired.count


def compare(candidate: Accuracy, baseline: Accuracy) -> Paired:
    """Candidate against baseline, image by image.

    Raises:
        ValueError: They did not see the same images in the same order.
    """
    if not np.array_equal(candidate.labels, baseline.labels):
        raise ValueError("the two accuracies are not from the same images")
    candidate_right = candidate.predictions == candidate.labels
    baseline_right = baseline.predictions == baseline.labels
    return Paired(
        gained=int((candidate_right & ~baseline_right).sum()),
        lost=int((baseline_right & ~candidate_right).sum()),
        agreeing=int((candidate.predictions == baseline.predictions).sum()),
        count=candidate.count,
    )

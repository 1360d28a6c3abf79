"""The answers of several engines to the same labelled images, image by image, and what follows from two of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qvec_deploy.bench.runnable import Runnable
from qvec_deploy.errors import IncompatibleError
from qvec_deploy.tensors import Float32, Int32

Labels = NDArray[np.integer]
Clock = Callable[[], int]

TOP = 5
KEEP_EVERY_S = 10.0
"""Between two looks at partial answers: what a killed evaluation loses at most, and short ones are never kept."""

_NANOSECONDS_PER_S = 1e9


@dataclass(frozen=True, eq=False)
class Accuracy:
    """An engine's answers, in the order of the images.

    Attributes:
        labels: (count,) int32.
        predictions: (count,) int32, the class of the largest logit, the first of equal ones.
        top5: (count,) bool, whether the label is among the five largest logits; None with five classes or fewer.
        confidences: (count,) float32, the largest softmax probability.
        waited_s: Its part of the seconds spent waiting for images; several engines share a wait evenly.
    """

    labels: Int32
    predictions: Int32
    top5: NDArray[np.bool_] | None
    confidences: Float32
    run_s: float = 0.0
    waited_s: float = 0.0

    @property
    def count(self) -> int:
        """Images."""
        return len(self.labels)

    @property
    def right(self) -> NDArray[np.bool_]:
        """(count,) whether the prediction is the label."""
        found: NDArray[np.bool_] = self.predictions == self.labels
        return found

    @property
    def correct(self) -> int:
        """Images whose largest logit is their label's."""
        return int(self.right.sum())

    @property
    def top1(self) -> float:
        """Share of images that are right, 0 to 1."""
        return self.correct / self.count

    @property
    def waited(self) -> float | None:
        """Share of its time that went into waiting for images, 0 to 1; None where no time passed."""
        total = self.run_s + self.waited_s
        return self.waited_s / total if total > 0 else None


@dataclass(frozen=True)
class PairedAnswers:
    """Two accuracies on the same images.

    Attributes:
        gained: Images that only the candidate gets right.
        lost: Images that only the baseline gets right.
        agreeing: Images on which both give the same class, right or wrong.
    """

    gained: int
    lost: int
    agreeing: int
    count: int


Answered = Mapping[str, Accuracy]
"""Answers by engine; those of one measurement are to the same images."""


def measure_accuracies(
    sessions: Mapping[str, Runnable],
    batches: Iterable[tuple[Float32, Labels]],
    *,
    start: Answered | None = None,
    keep: Callable[[Answered], None] | None = None,
    progress: Callable[[int], None] | None = None,
    clock: Clock = time.perf_counter_ns,
) -> dict[str, Accuracy]:
    """Run every engine over every batch, all of them on one batch before the next is asked for.

    So each batch exists once however many engines there are, and no more than one of them at a time.

    Args:
        batches: Pairs of images (batch, channels, height, width) and labels (batch,), those of `start` left out.
        start: Answers to the images before these, from an earlier run that did not get to its end.
        keep: Called with all answers so far every `KEEP_EVERY_S` seconds.
        progress: Called with the images seen so far, after each batch.

    Raises:
        IncompatibleError: No images, more or fewer logits than labels, a label that is no class, or logits
            that are not numbers.
    """
    parts = {name: [start[name]] if start else [] for name in sessions}
    seen = next(iter(start.values())).count if start else 0
    coming, kept = iter(batches), clock()
    while True:
        asked = clock()
        batch = next(coming, None)
        if batch is None:
            break
        images, labels = batch
        waited_s = (clock() - asked) / _NANOSECONDS_PER_S / len(sessions)
        for name, session in sessions.items():
            began = clock()
            logits = session.run(images)
            run_s = (clock() - began) / _NANOSECONDS_PER_S
            parts[name].append(_answers(logits, labels, run_s, waited_s))
        seen += len(labels)
        if progress is not None:
            progress(seen)
        if keep is not None and clock() - kept >= KEEP_EVERY_S * _NANOSECONDS_PER_S:
            so_far = {name: _joined(pieces) for name, pieces in parts.items()}
            parts = {name: [joined] for name, joined in so_far.items()}
            keep(so_far)
            kept = clock()
    if not seen:
        raise IncompatibleError("the dataset has no images", hint="check the split's name and its limit")
    return {name: _joined(pieces) for name, pieces in parts.items()}


def _answers(logits: Float32, labels: Labels, run_s: float, waited_s: float) -> Accuracy:
    _check(logits, labels)
    narrow = labels.astype(np.int32)
    return Accuracy(
        labels=narrow,
        predictions=logits.argmax(axis=1).astype(np.int32),
        top5=_among_top(logits, narrow) if logits.shape[1] > TOP else None,
        confidences=softmax_confidence(logits),
        run_s=run_s,
        waited_s=waited_s,
    )


def softmax_confidence(logits: NDArray[np.floating]) -> NDArray[np.float32]:
    """The largest softmax probability of each row: (batch,) float32 of logits (batch, classes), all finite."""
    wide = logits.astype(np.float64)
    shares = np.exp(wide - wide.max(axis=1, keepdims=True))  # the largest logit's own is 1
    confidences: NDArray[np.float32] = (1.0 / shares.sum(axis=1)).astype(np.float32)
    return confidences


def _among_top(logits: Float32, labels: Int32) -> NDArray[np.bool_]:
    """Whether fewer than `TOP` classes come before the label; of equal logits the first class comes first."""
    own = logits[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(logits.shape[1]) < labels[:, None]
    before = (logits > own) | ((logits == own) & earlier)
    found: NDArray[np.bool_] = before.sum(axis=1) < TOP
    return found


def _joined(parts: Sequence[Accuracy]) -> Accuracy:
    hits = [part.top5 for part in parts if part.top5 is not None]
    return Accuracy(
        labels=np.concatenate([part.labels for part in parts]),
        predictions=np.concatenate([part.predictions for part in parts]),
        top5=np.concatenate(hits) if hits else None,
        confidences=np.concatenate([part.confidences for part in parts]),
        run_s=sum(part.run_s for part in parts),
        waited_s=sum(part.waited_s for part in parts),
    )


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


def compare(candidate: Accuracy, baseline: Accuracy) -> PairedAnswers:
    """Candidate against baseline, image by image."""
    if not np.array_equal(candidate.labels, baseline.labels):
        raise ValueError("the two accuracies are not from the same images")
    return pair(candidate.predictions, baseline.predictions, candidate.labels)


def pair(candidate: Int32, baseline: Int32, labels: Int32) -> PairedAnswers:
    """Two engines' classes for the same images, (count,) int32 each, against their labels."""
    candidate_right, baseline_right = candidate == labels, baseline == labels
    return PairedAnswers(
        gained=int((candidate_right & ~baseline_right).sum()),
        lost=int((baseline_right & ~candidate_right).sum()),
        agreeing=int((candidate == baseline).sum()),
        count=len(labels),
    )

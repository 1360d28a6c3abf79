"""Does an engine know how sure it may be? Its confidence in equally wide bins, and the error that follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

BINS = 15
"""As many as Guo et al. use; the error of few images grows with the number of bins."""


class BinCounts(Protocol):
    """Images of about one confidence."""

    @property
    def count(self) -> int:
        """Images."""

    @property
    def correct(self) -> int:
        """Right ones."""

    @property
    def confidence(self) -> float:
        """Sum of their confidences."""


def softmax_confidence(logits: NDArray[np.floating]) -> NDArray[np.float32]:
    """The largest softmax probability of each row: (batch,) float32 of logits (batch, classes), all finite."""
    wide = logits.astype(np.float64)
    shares = np.exp(wide - wide.max(axis=1, keepdims=True))  # the largest logit's own is 1
    confidences: NDArray[np.float32] = (1.0 / shares.sum(axis=1)).astype(np.float32)
    return confidences


def confidence_bins(
    confidences: NDArray[np.floating], right: NDArray[np.bool_], bins: int = BINS
) -> list[tuple[int, int, float]]:
    """Sort images into equally wide bins of confidence; bin m is (m / bins, (m + 1) / bins].

    Args:
        confidences: (count,) largest softmax probabilities, above 0 and up to 1.
        right: (count,) whether the answer is right.

    Returns:
        (images, right ones, sum of confidences) of every bin, ascending; empty bins are there too.
    """
    exact = confidences.astype(np.float64)
    index = np.clip(np.ceil(exact * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(index, minlength=bins)
    correct = np.bincount(index[right], minlength=bins)
    sums = np.bincount(index, weights=exact, minlength=bins)
    return [(int(n), int(hits), float(total)) for n, hits, total in zip(counts, correct, sums, strict=True)]


def calibration_error(bins: Sequence[BinCounts]) -> float:
    """Expected calibration error, 0 to 1: the mean over images of |accuracy - mean confidence| of their bin.

    Guo et al., On Calibration of Modern Neural Networks (ICML 2017), equation 3.
    """
    count = sum(entry.count for entry in bins)
    if not count:
        raise ValueError("no images, no calibration error")
    return sum(abs(entry.correct - entry.confidence) for entry in bins) / count

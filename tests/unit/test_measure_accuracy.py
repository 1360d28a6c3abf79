"""Counting, pairing, and the outputs that are refused."""

import numpy as np
import pytest

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.measure.accuracy import Paired, agreement, compare, measure_accuracy


class Scripted:
    """Gives the logits whose argmax is the first pixel of each image."""

    def run(self, images: np.ndarray) -> np.ndarray:
        return np.eye(4, dtype=np.float32)[images[:, 0, 0, 0].astype(int)]


class Gives:
    def __init__(self, logits: np.ndarray) -> None:
        self.logits = logits

    def run(self, images: np.ndarray) -> np.ndarray:
        return self.logits


def batch(predictions: list[int], labels: list[int]) -> tuple[np.ndarray, np.ndarray]:
    images = np.zeros((len(predictions), 3, 2, 2), np.float32)
    images[:, 0, 0, 0] = predictions
    return images, np.array(labels)


def test_counts_over_all_batches():
    seen: list[int] = []
    batches = [batch([0, 1, 2], [0, 1, 3]), batch([3], [3])]
    accuracy = measure_accuracy(Scripted(), batches, progress=seen.append)
    assert (accuracy.correct, accuracy.count, accuracy.top1) == (3, 4, 0.75)
    assert accuracy.predictions.tolist() == [0, 1, 2, 3]
    assert accuracy.labels.tolist() == [0, 1, 3, 3]
    assert accuracy.low < 0.75 < accuracy.high
    assert seen == [3, 4]


def test_two_sessions_are_paired_image_by_image():
    labels = [0, 1, 2, 3, 0]
    candidate = measure_accuracy(Scripted(), [batch([0, 1, 2, 0, 1], labels)])
    baseline = measure_accuracy(Scripted(), [batch([0, 0, 0, 3, 1], labels)])
    assert compare(candidate, baseline) == Paired(gained=2, lost=1, agreeing=2, count=5)
    assert agreement(candidate, baseline) == 0.4
    assert agreement(candidate, candidate) == 1.0


def test_different_images_are_not_paired():
    a = measure_accuracy(Scripted(), [batch([0, 1], [0, 1])])
    b = measure_accuracy(Scripted(), [batch([0, 1], [0, 2])])
    with pytest.raises(ValueError, match="same images"):
        agreement(a, b)


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (np.zeros((1, 4), np.float32), "shape"),
        (np.zeros((2, 4, 1), np.float32), "shape"),
        (np.zeros((2, 1), np.float32), "labels 0 to 1 for 1 classes"),
        (np.array([[0, np.nan], [0, 1]], np.float32), "not finite"),
        (np.array([[0, np.inf], [0, 1]], np.float32), "not finite"),
    ],
)
def test_outputs_that_mean_nothing_are_refused(logits, message):
    with pytest.raises(IncompatibleError, match=message):
        measure_accuracy(Gives(logits), [batch([0, 1], [0, 1])])


def test_negative_labels_are_refused():
    with pytest.raises(IncompatibleError, match="labels -1 to 0"):
        measure_accuracy(Scripted(), [batch([0, 0], [-1, 0])])


def test_no_images_are_refused():
    with pytest.raises(IncompatibleError, match="no images"):
        measure_accuracy(Scripted(), [])

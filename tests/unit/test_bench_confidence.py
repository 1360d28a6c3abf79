"""Confidence, bins and calibration error, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from qvec_deploy.bench.accuracy import softmax_confidence
from qvec_deploy.bench.evaluation import BINS, confidence_bins
from qvec_deploy.bench.results import ConfidenceBin
from qvec_deploy.bench.summary import calibration_error


def bins_of(confidences: list[float], right: list[bool], count: int = BINS) -> tuple[ConfidenceBin, ...]:
    return confidence_bins(np.array(confidences), np.array(right, bool), count)


def test_the_largest_softmax_probability() -> None:
    logits = np.log(np.array([[1, 2, 1], [1, 1, 1], [1, 0.25, 0.75]])).astype(np.float32)
    assert softmax_confidence(logits) == pytest.approx([0.5, 1 / 3, 0.5])
    assert softmax_confidence(logits + np.float32(300)) == pytest.approx([0.5, 1 / 3, 0.5], rel=1e-4)
    extreme = softmax_confidence(np.array([[1e30, -1e30], [-1e30, -1e30]], np.float32))
    assert extreme.dtype == np.float32 and extreme.tolist() == [1.0, 0.5]


def test_bins_are_open_below_and_closed_above() -> None:
    found = bins_of([0.25, 0.250001, 0.5, 1.0, 1e-9], [True, False, True, True, False], count=4)
    assert [(entry.count, entry.correct) for entry in found] == [(2, 1), (2, 1), (0, 0), (1, 1)]
    assert [entry.confidence for entry in found] == pytest.approx([0.25, 0.750001, 0.0, 1.0])


def test_there_are_fifteen_bins_and_every_image_is_in_one() -> None:
    draw = np.random.default_rng(0)
    confidences, right = draw.uniform(0.01, 1, 500).astype(np.float32), draw.random(500) < 0.6
    found = confidence_bins(confidences, right)
    assert len(found) == 15
    assert sum(entry.count for entry in found) == 500
    assert sum(entry.correct for entry in found) == right.sum()
    assert sum(entry.confidence for entry in found) == pytest.approx(confidences.sum(dtype=np.float64))
    for number, entry in enumerate(found):
        assert 0 <= entry.correct <= entry.count
        assert number / 15 * entry.count <= entry.confidence <= (number + 1) / 15 * entry.count + 1e-6


def test_calibration_error_by_hand() -> None:
    # Four images at 0.9, three of them right; one at 0.6, wrong: (|3 - 3.6| + |0 - 0.6|) / 5.
    assert calibration_error(bins_of([0.9] * 4 + [0.6], [True, True, True, False, False])) == pytest.approx(0.24)
    # Above and below cancel within a bin and not between bins.
    assert calibration_error(bins_of([0.9, 0.9], [True, False])) == pytest.approx(0.4)
    assert calibration_error(bins_of([0.5, 1.0], [False, True])) == pytest.approx(0.25)


@pytest.mark.parametrize(("right", "error"), [(1.0, 0.0), (0.0, 1.0), (0.25, 0.75)])
def test_who_is_always_sure(right: float, error: float) -> None:
    answers = np.arange(100) < 100 * right
    assert calibration_error(bins_of([1.0] * 100, answers.tolist())) == pytest.approx(error)


def test_no_images_have_no_error() -> None:
    with pytest.raises(ValueError, match="no images"):
        calibration_error([])

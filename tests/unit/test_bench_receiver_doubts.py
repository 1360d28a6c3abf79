"""A model that is read wrong is told from a good one on a hard task, on few images and on many."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from qvec_deploy.bench.accuracy import Accuracy
from qvec_deploy.bench.evaluation import SAMPLE, sampled_rows
from qvec_deploy.bench.receiver_doubts import receiver_finding, swapped_classes
from qvec_deploy.bench.warnings import MeasurementWarning

OTHER, GUESSING = MeasurementWarning.OTHER_CLASSES, MeasurementWarning.NO_BETTER_THAN_GUESSING
CLAIMED = MeasurementWarning.FEWER_RIGHT_THAN_CLAIMED
TRIALS = 60


def answers(
    classes: int,
    images: int,
    top1: float,
    confidence: float,
    *,
    order: NDArray[np.int64] | None = None,
    shares: NDArray[np.float64] | None = None,
    seed: int = 0,
) -> Accuracy:
    """Of a model that is right so often and else answers any other class; its answers may mean other classes."""
    draw = np.random.default_rng(seed)
    labels = (
        np.arange(images) * classes // images if shares is None else np.sort(draw.choice(classes, images, p=shares))
    )
    others = draw.integers(0, classes - 1, images)
    wrong = others + (others >= labels)
    predictions = np.where(draw.random(images) < top1, labels, wrong)
    predictions = predictions if order is None else order[predictions]
    confidences = np.full(images, confidence, np.float32)
    return Accuracy(labels.astype(np.int32), predictions.astype(np.int32), None, confidences)


def doubted(classes: int, images: int, top1: float, confidence: float, **more: NDArray[np.float64]) -> float:
    """Share of such models that are doubted."""
    tried = (answers(classes, images, top1, confidence, **more, seed=seed) for seed in range(TRIALS))
    return sum(receiver_finding("float", each, classes) is not None for each in tried) / TRIALS


@pytest.mark.parametrize(
    ("classes", "images", "top1", "confidence", "most"),
    [
        (2, 20, 0.8, 0.9, 0.02),
        (2, 20, 0.7, 0.8, 0.1),
        (2, 1000, 0.6, 0.7, 0.0),
        (10, 20, 0.6, 0.8, 0.02),
        (10, 200, 0.3, 0.4, 0.0),
        (10, 1000, 0.62, 0.9, 0.0),  # trained too long
        (100, 1000, 0.2, 0.3, 0.0),
        (1000, 20, 0.4, 0.5, 0.02),
        (1000, 1000, 0.05, 0.08, 0.0),
        (1000, 1000, 0.75, 0.85, 0.0),
    ],
)
def test_models_on_hard_tasks_are_believed(
    classes: int, images: int, top1: float, confidence: float, most: float
) -> None:
    assert doubted(classes, images, top1, confidence) <= most


@pytest.mark.parametrize(
    ("classes", "images", "top1", "confidence", "least"),
    [
        (2, 20, 0.5, 0.6, 0.5),
        (2, 200, 0.5, 0.9, 0.85),
        (10, 20, 0.1, 0.9, 0.9),
        (10, 200, 0.1, 0.2, 1.0),
        (21, 420, 0.06, 0.9, 1.0),
        (1000, 20, 0.001, 0.3, 0.95),
        (1000, 1000, 0.001, 0.3, 1.0),
        (10, 500, 0.5, 0.9, 0.9),
        (1000, 1000, 0.2, 0.9, 1.0),  # right far less often than it claims
    ],
)
def test_models_that_guess_are_doubted(classes: int, images: int, top1: float, confidence: float, least: float) -> None:
    assert doubted(classes, images, top1, confidence) >= least


def test_classes_of_very_different_sizes() -> None:
    shares = np.array([0.9, 0.06, 0.04])
    assert doubted(3, 400, 0.95, 0.97, shares=shares) == 0.0
    labels = np.array([0] * 360 + [1] * 24 + [2] * 16, np.int32)
    always = Accuracy(labels, np.zeros_like(labels), None, np.full(400, 0.9, np.float32))
    finding = receiver_finding("float", always, 3)
    assert finding is not None and finding.warning is GUESSING and finding.detail.endswith("Guessing gets 90.0 %.")


def test_images_of_one_class_only() -> None:
    labels = np.zeros(50, np.int32)
    good = np.where(np.arange(50) < 40, 0, 3).astype(np.int32)
    confident = np.full(50, 0.9, np.float32)
    assert receiver_finding("float", Accuracy(labels, good, None, confident), 10) is None
    wrong = receiver_finding("float", Accuracy(labels, 3 + 0 * good, None, confident), 10)
    assert wrong is not None and wrong.warning is GUESSING


@pytest.mark.parametrize(
    ("classes", "images", "top1"),
    [(2, 10, 1.0), (2, 200, 0.85), (10, 20, 0.95), (10, 200, 0.5), (21, 420, 0.94), (100, 1000, 0.3), (500, 1000, 0.8)],
)
def test_answers_that_mean_other_classes_are_seen(classes: int, images: int, top1: float) -> None:
    """Every class is the next one: also where top-1 is low, and with two images a class."""
    shift = np.roll(np.arange(classes), -1)
    found = [
        receiver_finding("f", answers(classes, images, top1, 0.9, order=shift, seed=s), classes) for s in range(20)
    ]
    seen = [finding for finding in found if finding is not None and finding.warning is OTHER]
    assert len(seen) >= 17 and all(finding is not None for finding in found)


def test_two_swapped_classes_are_named() -> None:
    order = np.arange(100)
    order[[3, 7]] = 7, 3
    finding = receiver_finding("float", answers(100, 2000, 0.95, 0.9, order=order), 100, [f"c{n}" for n in range(100)])
    assert finding is not None and finding.warning is OTHER and finding.subject == "float"
    assert finding.detail.startswith("In 2 of 100 classes most images are answered as another class, one for one: ")
    assert "`c7` where the label says `c3` (20 of 20), `c3` where the label says `c7` (19 of 20)." in finding.detail
    assert finding.detail.endswith("% instead of 93.3 %.") and "Read so, top-1 is 95.2" in finding.detail


def test_torchvisions_order_read_as_timms_is_named() -> None:
    names = sorted(map(str, range(21)), key=int)
    plain = np.array([int(name) for name in sorted(names)])  # output 2 means folder 10
    labels = np.repeat(np.arange(21), 20)
    outputs = np.array([plain.tolist().index(label) for label in labels])
    found = Accuracy(labels.astype(np.int32), outputs.astype(np.int32), None, np.full(420, 0.95, np.float32))
    finding = receiver_finding("float", found, 21, names)
    assert finding is not None and finding.warning is OTHER
    assert "`12` where the label says `2` (20 of 20)" in finding.detail and "and 14 more" in finding.detail
    assert "Read so, top-1 is 100.0 % instead of 9.5 %." in finding.detail


def test_a_shift_is_told_as_one() -> None:
    labels = np.repeat(np.arange(9), 10).astype(np.int32)  # the tenth class has no image
    finding = receiver_finding("float", Accuracy(labels, labels + 1, None, np.full(90, 0.9, np.float32)), 10)
    assert finding is not None and ": always the class 1 place on." in finding.detail


def test_a_model_that_gives_one_answer_swaps_nothing() -> None:
    labels = np.repeat(np.arange(10), 20).astype(np.int32)
    for answer in (4, 11):
        assert len(swapped_classes(labels, np.full(200, answer, np.int32))) == (answer == 11)
        constant = Accuracy(labels, np.full(200, answer, np.int32), None, np.full(200, 0.9, np.float32))
        finding = receiver_finding("float", constant, 12)
        assert finding is not None and finding.warning is GUESSING


def test_classes_that_every_model_confuses_are_no_swap() -> None:
    """Two classes of the same things: half of either is answered as the other."""
    draw = np.random.default_rng(0)
    labels = np.repeat(np.arange(50), 20).astype(np.int32)
    said = labels.copy()
    for one, other in ((0, 1), (10, 11), (20, 21)):
        both = np.isin(labels, (one, other))
        said[both] = draw.choice([one, other], both.sum())
    assert receiver_finding("float", Accuracy(labels, said, None, np.full(1000, 0.9, np.float32)), 50) is None


def test_a_head_of_one_output_is_not_judged() -> None:
    one = np.zeros(5, np.int32)
    assert receiver_finding("float", Accuracy(one, one, None, np.ones(5, np.float32)), 1) is None


@pytest.mark.parametrize("classes", [2, 1000])
def test_a_sample_is_spread_over_the_images(classes: int) -> None:
    assert sampled_rows(2 * SAMPLE, classes).tolist() == list(range(2 * SAMPLE))
    rows = sampled_rows(50_001, classes)
    assert len(set(rows.tolist())) == len(rows) == SAMPLE and rows.min() >= 0 and rows.max() < 50_001
    labels = rows * 1000 // 50_001
    assert len(set(labels.tolist())) >= 500 and rows[-1] > 49_800
    if classes == 1000:  # most classes that are seen at all are seen twice
        assert np.mean(np.bincount(labels)[np.unique(labels)] == 2) > 0.95

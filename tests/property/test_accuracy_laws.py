"""Laws of counting: the order of images, and the names of classes, change nothing but names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvec_deploy.bench.accuracy import Accuracy, compare, measure_accuracies
from qvec_deploy.bench.evaluation import answers_of
from qvec_deploy.bench.results import AnswerCounts
from qvec_deploy.bench.summary import calibration_error


class Gives:
    """The logits of the images whose numbers are their pixels."""

    def __init__(self, logits: np.ndarray) -> None:
        self.logits = logits

    def run(self, images: np.ndarray) -> np.ndarray:
        return self.logits[images.ravel().astype(int)]


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """Logits without ties of two engines, labels, and a batch size."""
    count, classes = draw(st.integers(1, 40)), draw(st.integers(2, 9))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    return {
        "logits": [(3 * generator.permuted(np.tile(np.arange(classes), (count, 1)), axis=1)) for _ in range(2)],
        "labels": generator.integers(0, classes, count),
        "batch": draw(st.integers(1, 50)),
        "generator": generator,
    }


def measured(logits: list[np.ndarray], labels: np.ndarray, batch: int) -> tuple[Accuracy, Accuracy]:
    rows = np.arange(len(labels), dtype=np.float32).reshape(-1, 1, 1, 1)
    batches = [(rows[at : at + batch], labels[at : at + batch]) for at in range(0, len(labels), batch)]
    sessions = {str(index): Gives(values.astype(np.float32)) for index, values in enumerate(logits)}
    engine, full = measure_accuracies(sessions, batches, clock=lambda: 0).values()
    return engine, full


def reported(logits: list[np.ndarray], labels: np.ndarray, batch: int) -> AnswerCounts:
    return answers_of(*measured(logits, labels, batch))


@settings(max_examples=60, deadline=None)
@given(cases())
def test_counts_fit_together(case: dict[str, Any]) -> None:
    engine, full = measured(case["logits"], case["labels"], case["batch"])
    answers = answers_of(engine, full)
    count = len(case["labels"])
    assert answers.count == sum(entry.count for entry in answers.classes) == sum(entry.count for entry in answers.bins)
    assert answers.correct == sum(e.correct for e in answers.classes) == sum(e.correct for e in answers.bins)
    assert (answers.top5 is None) == (case["logits"][0].shape[1] <= 5)
    assert answers.top5 is None or answers.correct <= answers.top5 <= count
    assert 0 <= calibration_error(answers.bins) <= 1
    paired = compare(engine, full)
    assert paired.gained - paired.lost == engine.correct - full.correct
    assert paired.agreeing + int((engine.predictions != full.predictions).sum()) == count
    if len(answers.changes) < 20:  # all of them
        assert sum(change.count for change in answers.changes) == count - paired.agreeing
        assert sum(change.gained for change in answers.changes) == paired.gained
        assert sum(change.lost for change in answers.changes) == paired.lost


@settings(max_examples=60, deadline=None)
@given(cases())
def test_the_size_of_batches_changes_nothing(case: dict[str, Any]) -> None:
    assert reported(case["logits"], case["labels"], case["batch"]) == reported(case["logits"], case["labels"], 1)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_the_order_of_images_changes_nothing(case: dict[str, Any]) -> None:
    order = case["generator"].permutation(len(case["labels"]))
    before = reported(case["logits"], case["labels"], case["batch"])
    after = reported([logits[order] for logits in case["logits"]], case["labels"][order], case["batch"])
    assert (before.correct, before.top5, before.classes, before.changes) == (
        after.correct,
        after.top5,
        after.classes,
        after.changes,
    )
    assert [(e.count, e.correct) for e in before.bins] == [(e.count, e.correct) for e in after.bins]
    assert [e.confidence for e in before.bins] == pytest.approx([e.confidence for e in after.bins])


@settings(max_examples=60, deadline=None)
@given(cases())
def test_renamed_classes_are_the_same_answers_under_other_names(case: dict[str, Any]) -> None:
    """Class c becomes rename[c]."""
    classes = case["logits"][0].shape[1]
    rename = case["generator"].permutation(classes)
    back = np.argsort(rename)
    before = reported(case["logits"], case["labels"], case["batch"])
    after = reported([logits[:, back] for logits in case["logits"]], rename[case["labels"]], case["batch"])
    assert (before.correct, before.top5) == (after.correct, after.top5)
    assert {(int(rename[e.label]), e.correct, e.count) for e in before.classes} == {
        (e.label, e.correct, e.count) for e in after.classes
    }
    if len(before.changes) < 20:
        assert {(int(rename[c.was]), int(rename[c.now]), c.count, c.gained, c.lost) for c in before.changes} == {
            (c.was, c.now, c.count, c.gained, c.lost) for c in after.changes
        }
    assert calibration_error(before.bins) == pytest.approx(calibration_error(after.bins), abs=1e-6)

"""Counting, pairing, who waited, partial answers, and the outputs that are refused."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from qvec_deploy.bench import accuracy as module
from qvec_deploy.bench.accuracy import Accuracy, PairedAnswers, compare, measure_accuracies, pair
from qvec_deploy.errors import IncompatibleError

Batch = tuple[np.ndarray, np.ndarray]


class Scripted:
    """Gives the logits whose argmax is the first pixel of each image, plus `shift`."""

    def __init__(self, shift: int = 0) -> None:
        self.shift = shift
        self.seen: list[list[int]] = []

    def run(self, images: np.ndarray) -> np.ndarray:
        wanted = images[:, 0, 0, 0].astype(int)
        self.seen.append(wanted.tolist())
        return np.eye(4, dtype=np.float32)[(wanted + self.shift) % 4]


class Gives:
    def __init__(self, logits: np.ndarray) -> None:
        self.logits = logits

    def run(self, images: np.ndarray) -> np.ndarray:
        return self.logits


def batch(predictions: list[int], labels: list[int]) -> Batch:
    images = np.zeros((len(predictions), 3, 2, 2), np.float32)
    images[:, 0, 0, 0] = predictions
    return images, np.array(labels)


def measure(session: object, batches: list[Batch]) -> Accuracy:
    return measure_accuracies({"a": session}, batches)["a"]  # type: ignore[dict-item]


def test_counts_over_all_batches() -> None:
    seen: list[int] = []
    batches = [batch([0, 1, 2], [0, 1, 3]), batch([3], [3])]
    accuracy = measure_accuracies({"a": Scripted()}, batches, progress=seen.append)["a"]
    assert (accuracy.correct, accuracy.count, accuracy.top1) == (3, 4, 0.75)
    assert accuracy.predictions.tolist() == [0, 1, 2, 3]
    assert accuracy.labels.tolist() == [0, 1, 3, 3]
    assert accuracy.predictions.dtype == accuracy.labels.dtype == np.int32
    assert seen == [3, 4]
    assert accuracy.confidences == pytest.approx([np.e / (np.e + 3)] * 4)
    assert accuracy.top5 is None  # of four classes every label is among five


def test_all_engines_run_on_a_batch_before_the_next_is_asked_for() -> None:
    asked: list[int] = []
    a, b = Scripted(), Scripted(1)

    def coming() -> Iterator[Batch]:
        for number in range(3):
            asked.append(len(a.seen) + len(b.seen))
            yield batch([number], [0])

    answers = measure_accuracies({"a": a, "b": b}, coming())
    assert asked == [0, 2, 4]
    assert answers["a"].predictions.tolist() == [0, 1, 2] and answers["b"].predictions.tolist() == [1, 2, 3]
    assert list(answers) == ["a", "b"]


def test_the_five_largest_by_hand() -> None:
    logits = np.array([[9, 8, 7, 6, 5, 4], [9, 8, 7, 6, 5, 4], [1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]], np.float32)
    accuracy = measure(Gives(logits), [batch([0] * 4, [4, 5, 4, 5])])
    assert accuracy.top5 is not None and accuracy.top5.tolist() == [True, False, True, False]  # ties: first come first
    assert accuracy.predictions.tolist() == [0, 0, 0, 0]


def test_two_sessions_are_paired_image_by_image() -> None:
    labels = [0, 1, 2, 3, 0]
    candidate = measure(Scripted(), [batch([0, 1, 2, 0, 1], labels)])
    baseline = measure(Scripted(), [batch([0, 0, 0, 3, 1], labels)])
    assert compare(candidate, baseline) == PairedAnswers(gained=2, lost=1, agreeing=2, count=5)
    assert compare(baseline, candidate) == PairedAnswers(gained=1, lost=2, agreeing=2, count=5)
    assert pair(candidate.predictions, baseline.predictions, candidate.labels) == compare(candidate, baseline)


def test_different_images_are_not_paired() -> None:
    a = measure(Scripted(), [batch([0, 1], [0, 1])])
    b = measure(Scripted(), [batch([0, 1], [0, 2])])
    with pytest.raises(ValueError, match="same images"):
        compare(a, b)


# The clock


class Clock:
    """Moves only where something is told to take time."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now

    def pass_s(self, seconds: float) -> None:
        self.now += int(seconds * 1e9)


class Slow(Scripted):
    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__()
        self.clock, self.seconds = clock, seconds

    def run(self, images: np.ndarray) -> np.ndarray:
        self.clock.pass_s(self.seconds)
        return super().run(images)


def slowly(clock: Clock, seconds: float, count: int) -> Iterator[Batch]:
    for number in range(count):
        clock.pass_s(seconds)
        yield batch([number % 4], [0])


def test_a_wait_is_shared_evenly_and_set_against_the_own_time() -> None:
    clock = Clock()
    sessions = {"fast": Slow(clock, 1), "slow": Slow(clock, 9)}
    answers = measure_accuracies(sessions, slowly(clock, 2, 5), clock=clock)
    assert (answers["fast"].run_s, answers["fast"].waited_s, answers["fast"].waited) == (5, 5, 0.5)
    assert (answers["slow"].run_s, answers["slow"].waited_s, answers["slow"].waited) == (45, 5, 0.1)
    assert sum(a.run_s + a.waited_s for a in answers.values()) == clock.now / 1e9


def test_no_time_no_share() -> None:
    clock = Clock()
    assert measure_accuracies({"a": Slow(clock, 0)}, slowly(clock, 0, 2), clock=clock)["a"].waited is None


def test_partial_answers_are_handed_out_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, kept = Clock(), []
    batches = slowly(clock, 1, 25)
    whole = measure_accuracies({"a": Slow(clock, 2)}, batches, keep=kept.append, clock=clock)["a"]
    assert [answers["a"].count for answers in kept] == [4, 8, 12, 16, 20, 24]  # of three seconds each
    for answers in kept:
        part = answers["a"]
        assert part.predictions.tolist() == whole.predictions.tolist()[: part.count]
        assert part.run_s == 2 * part.count and part.waited_s == part.count
    kept.clear()
    clock = Clock()
    measure_accuracies({"a": Slow(clock, 1)}, slowly(clock, 0, 9), keep=kept.append, clock=clock)
    assert kept == [] and module.KEEP_EVERY_S == 10


def test_an_evaluation_goes_on_from_partial_answers() -> None:
    clock = Clock()
    whole = measure_accuracies({"a": Slow(clock, 2)}, slowly(clock, 1, 7), clock=clock)["a"]
    clock, seen = Clock(), []
    start = measure_accuracies({"a": Slow(clock, 2)}, slowly(clock, 1, 3), clock=clock)
    rest = (batch([number % 4], [0]) for number in range(3, 7))
    resumed = measure_accuracies({"a": Slow(clock, 2)}, rest, start=start, progress=seen.append, clock=clock)["a"]
    for field in ("labels", "predictions", "confidences"):
        assert np.array_equal(getattr(resumed, field), getattr(whole, field))
    assert (resumed.run_s, resumed.waited_s) == (14, 3) and seen == [4, 5, 6, 7]
    nothing_left = measure_accuracies({"a": Slow(clock, 2)}, [], start={"a": whole})["a"]
    assert nothing_left.count == 7


# What is refused


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
def test_outputs_that_mean_nothing_are_refused(logits: np.ndarray, message: str) -> None:
    with pytest.raises(IncompatibleError, match=message):
        measure(Gives(logits), [batch([0, 1], [0, 1])])


def test_negative_labels_are_refused() -> None:
    with pytest.raises(IncompatibleError, match="labels -1 to 0"):
        measure(Scripted(), [batch([0, 0], [-1, 0])])


def test_no_images_are_refused() -> None:
    with pytest.raises(IncompatibleError, match="no images"):
        measure(Scripted(), [])

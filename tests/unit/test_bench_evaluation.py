"""Answers of built engines: what a report says of them, and an evaluation that is killed and goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qvec_deploy.bench import accuracy as measured
from qvec_deploy.bench.accuracy import Accuracy
from qvec_deploy.bench.evaluation import CHANGES, answers_of, measure_answers
from qvec_deploy.bench.results import AnswerChange, ClassCount, ConfidenceBin
from qvec_deploy.bench.resume import EvaluationJournal
from qvec_deploy.errors import StorageError
from qvec_deploy.progress import Progress

ROOT = Path(__file__).parents[2]


def accuracy(predictions: list[int], labels: list[int], confidence: float = 0.95) -> Accuracy:
    return Accuracy(
        labels=np.array(labels, np.int32),
        predictions=np.array(predictions, np.int32),
        top5=None,
        confidences=np.full(len(labels), confidence, np.float32),
        run_s=3.0,
        waited_s=1.0,
    )


def test_what_a_report_says() -> None:
    answers = answers_of(accuracy([0, 2, 2, 0, 3], [0, 0, 2, 2, 2]), None)
    assert (answers.correct, answers.count, answers.top5, answers.waited) == (2, 5, None, 0.25)
    assert answers.classes == (ClassCount(0, 1, 2), ClassCount(2, 1, 3))
    assert answers.changes == ()
    assert answers.bins[:14] == (ConfidenceBin(0, 0, 0.0),) * 14
    assert answers.bins[14] == ConfidenceBin(5, 2, pytest.approx(4.75))


def test_top5_counts_hits() -> None:
    hits = np.array([True, False, True])
    some = Accuracy(np.zeros(3, np.int32), np.zeros(3, np.int32), hits, np.ones(3, np.float32))
    answers = answers_of(some, None)
    assert answers.top5 == 2 and answers.waited is None


def test_changes_against_the_float_receiver() -> None:
    labels = [0, 0, 0, 1, 1, 2, 2, 2]
    full = accuracy([0, 0, 0, 0, 1, 1, 2, 2], labels)
    engine = accuracy([0, 1, 1, 1, 1, 0, 2, 3], labels)
    assert answers_of(engine, full).changes == (
        AnswerChange(was=0, now=1, count=3, gained=1, lost=2),
        AnswerChange(was=1, now=0, count=1, gained=0, lost=0),
        AnswerChange(was=2, now=3, count=1, gained=0, lost=1),
    )
    assert answers_of(full, full).changes == ()


def test_only_the_most_frequent_changes_are_listed() -> None:
    labels = [0] * 500
    draw = np.random.default_rng(0)
    full = accuracy(draw.integers(0, 10, 500).tolist(), labels)
    engine = accuracy(draw.integers(0, 10, 500).tolist(), labels)
    changes = answers_of(engine, full).changes
    assert len(changes) == CHANGES == 20
    counts = [change.count for change in changes]
    assert counts == sorted(counts, reverse=True)
    left = {(w, n) for w, n in zip(full.predictions.tolist(), engine.predictions.tolist(), strict=True) if w != n}
    for was, now in left - {(change.was, change.now) for change in changes}:
        assert ((full.predictions == was) & (engine.predictions == now)).sum() <= counts[-1]


def test_report_values_are_plain_numbers() -> None:
    answers = answers_of(accuracy([0, 1], [0, 0]), accuracy([0, 0], [0, 0]))
    plain = [answers.correct, answers.count, *vars(answers.classes[0]).values(), *vars(answers.changes[0]).values()]
    assert all(type(value) is int for value in plain)
    assert [type(value) for value in vars(answers.bins[0]).values()] == [int, int, float]


# Measuring, killed and resumed


class Pixels:
    """Images that tell their label and what each engine will say."""

    name, split, classes, class_names, parallel, identity = "pixels", "test", 10, (), False, "none"

    def __init__(self, count: int, broken: int | None = None) -> None:
        self.count, self.broken = count, broken
        self.taken: list[int] = []

    def __len__(self) -> int:
        return self.count

    def take(self, rows: Any) -> tuple[np.ndarray, np.ndarray]:
        if self.broken in rows:
            raise StorageError(f"image {self.broken} cannot be read", hint="repair it")
        self.taken += map(int, rows)
        images = np.asarray(rows, np.float32).reshape(-1, 1, 1, 1)
        return images, np.asarray(rows, np.int64) % 10


class Engine:
    """Right but for every `every`-th image."""

    input_shape = (1, 1, 1)

    def __init__(self, every: int) -> None:
        self.every = every

    def run(self, images: np.ndarray) -> np.ndarray:
        rows = images.ravel().astype(int)
        return np.eye(10, dtype=np.float32)[(rows + (rows % self.every == 0)) % 10] * (1 + rows[:, None] % 7)


def engines() -> dict[str, Any]:
    return {"float": Engine(1000), "pico": Engine(3)}


class Seen(Progress):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, int]] = []

    def show(self, name: str, detail: str) -> Any:
        import contextlib

        return contextlib.nullcontext(lambda done, total: self.calls.append((done, total)))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "qvec-deploy" / "accuracy"


def test_every_engine_sees_every_image_which_is_read_once(cache: Path) -> None:
    images, progress = Pixels(25), Seen()
    answers = measure_answers(engines(), images, 10, progress, EvaluationJournal(lambda: 1))  # type: ignore[arg-type]
    assert images.taken == list(range(25))
    assert progress.calls == [(10, 25), (20, 25), (25, 25)]
    assert (answers["float"].correct, answers["pico"].correct) == (24, 25 - 9)
    assert not cache.exists()  # a short evaluation writes nothing


def test_without_images_there_are_no_answers() -> None:
    assert measure_answers(engines(), None, 10, Progress()) == {}


def test_an_evaluation_that_fails_goes_on_where_it_was(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "KEEP_EVERY_S", 0.0)
    with pytest.raises(StorageError, match="image 57 cannot be read"):
        measure_answers(engines(), Pixels(80, broken=57), 10, Progress(), EvaluationJournal(lambda: 1))  # type: ignore[arg-type]
    rest, progress = Pixels(80), Seen()
    resumed = measure_answers(engines(), rest, 10, progress, EvaluationJournal(lambda: 1))  # type: ignore[arg-type]
    assert rest.taken == list(range(50, 80)) and progress.calls[0] == (60, 80)
    check_whole(resumed)
    assert list(cache.iterdir()) == []


def check_whole(found: dict[str, Accuracy], count: int = 80) -> None:
    whole = measure_answers(engines(), Pixels(count), 10, Progress())  # type: ignore[arg-type]
    for name, expected in whole.items():
        for field in ("labels", "predictions", "top5", "confidences"):
            assert np.array_equal(getattr(found[name], field), getattr(expected, field))


_KILLED = """
import sys, time
sys.path.insert(0, "tests/unit")
from test_bench_evaluation import EvaluationJournal, Pixels, Progress, engines, measure_answers, measured

class Slow(Pixels):
    def take(self, rows):
        if rows[0] >= 50:
            print("half way", flush=True)
            time.sleep(600)
        return super().take(rows)

measured.KEEP_EVERY_S = 0.0
measure_answers(engines(), Slow(80), 10, Progress(), EvaluationJournal(lambda: 1))
"""


def test_an_evaluation_that_is_killed_goes_on_where_it_was(cache: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", _KILLED], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    watchdog = threading.Timer(120, child.kill)  # nothing here waits longer for it
    watchdog.start()
    with child.stdout:
        assert child.stdout.readline() == "half way\n"
        # The reader is ahead of the engines; they have seen a batch when the journal is there.
        while not (cache.is_dir() and list(cache.glob("*.answers"))):
            assert child.poll() is None
            time.sleep(0.01)
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    watchdog.cancel()
    rest = Pixels(80)
    resumed = measure_answers(engines(), rest, 10, Progress(), EvaluationJournal(lambda: 1))  # type: ignore[arg-type]
    assert rest.taken == list(range(rest.taken[0], 80)) and 10 <= rest.taken[0] <= 50
    check_whole(resumed)
    assert not list(cache.glob("*.answers"))

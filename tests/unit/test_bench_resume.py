"""Partial answers: kept, found again, forgotten; and nothing that is not theirs is believed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qvec_deploy.bench import resume as module
from qvec_deploy.bench.accuracy import Accuracy
from qvec_deploy.bench.resume import EvaluationJournal, describe_engine, journal_folder

NAMES = ["float", "pico"]


def answers(count: int = 3, top5: bool = True) -> dict[str, Accuracy]:
    draw = np.random.default_rng(count)
    labels = draw.integers(0, 9, count, dtype=np.int32)
    return {
        name: Accuracy(
            labels=labels,
            predictions=draw.integers(0, 9, count, dtype=np.int32),
            top5=draw.random(count) < 0.5 if top5 else None,
            confidences=draw.random(count, dtype=np.float32),
            run_s=draw.random(),
            waited_s=draw.random(),
        )
        for name in NAMES
    }


def same(a: dict[str, Accuracy] | None, b: dict[str, Accuracy]) -> bool:
    assert a is not None and list(a) == list(b)
    return all(
        np.array_equal(getattr(a[name], field), getattr(b[name], field))
        for name in b
        for field in ("labels", "predictions", "top5", "confidences", "run_s", "waited_s")
    )


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "qvec-deploy" / "accuracy"


@pytest.mark.parametrize("top5", [False, True])
def test_what_is_kept_is_found_until_it_is_forgotten(cache: Path, top5: bool) -> None:
    journal = EvaluationJournal(lambda: {"engine": 1})
    assert journal.read(NAMES) is None
    for count in (3, 5):
        journal.write(answers(count, top5))
        found = EvaluationJournal(lambda: {"engine": 1}).read(NAMES)
        assert same(found, answers(count, top5))
        assert [path.name for path in cache.iterdir()] == [f"{journal.key}.answers"]
    journal.remove()
    assert journal.read(NAMES) is None and list(cache.iterdir()) == []
    journal.remove()


def test_nothing_is_described_before_there_is_something_to_read_or_write(cache: Path) -> None:
    def describe() -> None:
        raise AssertionError("engines are hashed for nothing")

    for _ in range(2):
        assert EvaluationJournal(describe).read(NAMES) is None
        EvaluationJournal(describe).remove()
        cache.mkdir(parents=True, exist_ok=True)
    assert list(cache.iterdir()) == []


def test_another_evaluation_has_another_journal() -> None:
    EvaluationJournal(lambda: {"engine": 1}).write(answers())
    assert EvaluationJournal(lambda: {"engine": 2}).read(NAMES) is None
    assert EvaluationJournal(lambda: {"engine": 1}).read(["pico", "float"]) is None
    assert EvaluationJournal(lambda: {"engine": 1}).read(["float"]) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:20],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data[:-3] + bytes([data[-3] ^ 1]) + data[-2:],
        lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:],
        lambda data: bytes([data[0] ^ 1]) + data[1:],
    ],
)
def test_a_damaged_journal_is_as_good_as_none(damage: Callable[[bytes], bytes]) -> None:
    journal = EvaluationJournal(lambda: 1)
    journal.write(answers())
    journal.path.write_bytes(damage(journal.path.read_bytes()))
    assert journal.read(NAMES) is None
    journal.write(answers(4))
    assert same(journal.read(NAMES), answers(4))


def test_a_foreign_journal_under_this_name_is_as_good_as_none() -> None:
    foreign, journal = EvaluationJournal(lambda: "other"), EvaluationJournal(lambda: "own")
    foreign.write(answers())
    foreign.path.rename(journal.path)
    assert journal.read(NAMES) is None


def test_a_folder_where_the_journal_should_be(cache: Path) -> None:
    journal = EvaluationJournal(lambda: 1)
    journal.path.mkdir(parents=True)
    journal.write(answers())
    assert journal.read(NAMES) is None
    journal.remove()
    assert list(cache.iterdir()) == [journal.path]


def test_a_cache_that_cannot_be_written_is_gone_without(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    journal = EvaluationJournal(lambda: 1)
    journal.write(answers())
    assert journal.read(NAMES) is None
    journal.remove()
    assert (tmp_path / "cache").read_text() == "a file"


def test_no_home_folder_is_gone_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(cls: type[Path]) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", classmethod(homeless))
    with pytest.raises(RuntimeError):
        journal_folder()
    journal = EvaluationJournal(lambda: 1)
    journal.write(answers())
    assert journal.read(NAMES) is None
    journal.remove()


@pytest.mark.parametrize("value", [None, "", "relative"])
def test_the_folder_without_a_usable_variable(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.setattr(Path, "home", classmethod(lambda cls: cls("/home/x")))
    monkeypatch.delenv("XDG_CACHE_HOME")
    if value is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert journal_folder() == Path("/home/x/.cache/qvec-deploy/accuracy")


def test_two_runs_of_one_evaluation_do_not_disturb_each_other(cache: Path) -> None:
    one, two = EvaluationJournal(lambda: 1), EvaluationJournal(lambda: 1)
    one.write(answers(2))
    two.write(answers(4))
    assert same(one.read(NAMES), answers(4))
    two.remove()
    assert one.read(NAMES) is None
    one.write(answers(3))
    one.remove()
    two.remove()
    assert list(cache.iterdir()) == []


def test_journals_that_nobody_came_back_for_make_room(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEPT", 3)
    journals = [EvaluationJournal(lambda number=number: number) for number in range(5)]  # type: ignore[misc]
    for age, journal in enumerate(journals):
        journal.write(answers())
        os.utime(journal.path, (age, age))
    assert [journal.path.is_file() for journal in journals] == [False, False, True, True, True]
    journals[3].write(answers(9))  # its own file is no newcomer
    assert [journal.path.is_file() for journal in journals] == [False, False, True, True, True]


def test_an_engine_is_its_files_and_how_they_are_run(tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    (engine / "lambda0").mkdir(parents=True)
    (engine / "model.onnx").write_bytes(b"graph")
    base = describe_engine(engine, "onnxruntime", "int4", 2)
    described = ("report.json", "manifest.json", "predictions.safetensors", "recipe.yaml", "parity.safetensors")
    for name in (*described, "MODEL_CARD.md", "sbom.cdx.json", "model.sig"):
        (engine / name).write_bytes(b"other")
    assert describe_engine(engine, "onnxruntime", "int4", 2) == base
    assert list(base["files"]) == ["model.onnx"]
    others = [("torch-cuda", "int4", 2), ("onnxruntime", "int8", 2), ("onnxruntime", "int4", 1)]
    assert all(describe_engine(engine, *other) != base for other in others)
    (engine / "weights.qvec.safetensors").write_bytes(b"w")
    assert describe_engine(engine, "onnxruntime", "int4", 2) != base

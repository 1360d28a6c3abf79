"""Readers that may get any file answer, or refuse with a documented error, in bounded time and memory."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fuzz_readers import READERS
from fuzz_target import CORPUS, MOST_KILOBYTES, MOST_SECONDS, Target, run_blindly


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", READERS)
def test_changed_files_are_read_or_refused(tmp_path: Path, kind: str) -> None:
    """The same inputs everywhere: those that were found before, and some that are drawn."""
    target = Target(kind, tmp_path / "here")
    run_blindly(target, random.Random(0), inputs=200, until=time.monotonic() + 60)
    assert not target.findings, target.findings
    assert target.inputs > 20


def test_every_corpus_belongs_to_a_reader() -> None:
    assert {folder.name for folder in CORPUS.iterdir()} <= {kind.replace(" ", "_") for kind in READERS}


def _crash(path: Path) -> object:
    raise KeyError(path)


def _hang(path: Path) -> object:
    start = time.process_time()
    while time.process_time() < start + MOST_SECONDS + 0.1:
        pass
    return b"payload"


def _fill_memory(path: Path) -> object:
    bytearray(MOST_KILOBYTES << 10).replace(b"\x00", b"\x01")
    return b"payload"


def _differ(path: Path) -> object:
    return b"other"


@pytest.mark.parametrize(
    ("read", "wrong"), [(_crash, "crash"), (_hang, "hang"), (_fill_memory, "memory"), (_differ, "different")]
)
def test_what_no_reader_may_do_is_found(tmp_path: Path, read: Callable[[Path], object], wrong: str) -> None:
    target = Target("journal", tmp_path / "here")
    target.reader = replace(target.reader, read=read)
    target.check(target.original, blind=True)
    assert any(each.startswith(wrong) for each in target.findings), target.findings

"""Trials of a cell on disk: what was written whole is found again, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from qvec_deploy.errors import StorageError
from qvec_deploy.research.study.cell_values import Trial
from qvec_deploy.research.study.trial_journal import Journal, Tried

FIRST = Tried(Trial("plain", "mse", 0.0, divergence=0.1, selecting_right=3, right="f0"), {}, {"all": 1.0})
SECOND = Tried(Trial("mix", "mse", 1.0, right="ff"), {"lower": 0.25, "upper": 0.75}, {"all": 2.5})


def _written(path: Path) -> Journal:
    journal = Journal(path, "key")
    assert journal.tried == []
    journal.add(FIRST)
    journal.add(SECOND)
    return journal


def test_what_was_added_is_read(tmp_path: Path) -> None:
    journal = _written(tmp_path / "work" / "trials.jsonl")
    assert journal.tried == [FIRST, SECOND]
    assert Journal(journal.path, "key").tried == [FIRST, SECOND]


def test_a_line_that_was_cut_off_is_forgotten(tmp_path: Path) -> None:
    path = _written(tmp_path / "trials.jsonl").path
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for end in (last, last + 1, (last + len(whole)) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        again = Journal(path, "key")
        assert again.tried == [FIRST]
        again.add(SECOND)
        assert path.read_bytes() == whole


@pytest.mark.parametrize("line", [b"{}", b"[]", b'{"trial": {"kind": "plain"}, "mix": {}, "seconds": {}}', b"\xff"])
def test_nothing_after_a_damaged_line_is_read(tmp_path: Path, line: bytes) -> None:
    path = _written(tmp_path / "trials.jsonl").path
    first, second, *rest = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([first, line, second, *rest]))
    assert Journal(path, "key").tried == []


def test_those_of_another_cell_are_not_taken(tmp_path: Path) -> None:
    path = _written(tmp_path / "trials.jsonl").path
    assert Journal(path, "another").tried == []
    assert Journal(path, "key").tried == []  # they are gone


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        Journal(tmp_path / "file" / "trials.jsonl", "key")

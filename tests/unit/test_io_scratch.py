"""Scratch folders vanish with their work, or with the next run; those of processes that live stay."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from qvec_deploy.errors import StorageError
from qvec_deploy.io import scratch
from qvec_deploy.io.scratch import keep_log, process_folder, remove_process_folders, scratch_folder

KILLED = "import os, sys; from pathlib import Path; from qvec_deploy.io.scratch import {0}\n{1}"


@pytest.fixture(autouse=True)
def temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(scratch, "_of_this_process", {})
    return folder


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_is_there_and_then_gone(temporary_files: Path, tmp_path: Path) -> None:
    with scratch_folder("export") as one, scratch_folder("export") as two, scratch_folder("work", tmp_path) as inner:
        (one / "file").write_text("x")
        assert one != two and one.parent == two.parent == temporary_files and inner.parent == tmp_path
        assert one.name.startswith("qvec-export.") and inner.name.startswith(".qvec-work.")
    assert _names(temporary_files) == [] and _names(tmp_path) == ["tmp"]
    with pytest.raises(KeyError), scratch_folder("export"):
        raise KeyError
    assert _names(temporary_files) == []


def test_what_a_killed_process_left_goes_with_the_next_run(temporary_files: Path) -> None:
    lines = "folder = process_folder('jobs'); (folder / 'file').touch(); print(flush=True); input()"
    code = KILLED.format("process_folder", lines)
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (left,) = _names(temporary_files)
        with scratch_folder("other"):
            assert left in _names(temporary_files)  # it lives
        process.kill()
    assert _names(temporary_files) == [left]
    (temporary_files / "qvec-notes").mkdir()
    with scratch_folder("other") as mine:
        assert _names(temporary_files) == sorted([mine.name, "qvec-notes"])


def test_a_process_has_one_folder_until_it_ends(temporary_files: Path) -> None:
    assert process_folder("jobs") == process_folder("jobs") != process_folder("others")
    child = os.fork()
    if child == 0:
        remove_process_folders()  # a fork has none of these
        os._exit(0)
    os.waitpid(child, 0)
    assert len(_names(temporary_files)) == 2
    remove_process_folders()
    assert _names(temporary_files) == []
    subprocess.run([sys.executable, "-c", KILLED.format("process_folder", "process_folder('jobs')")], check=True)
    assert _names(temporary_files) == []


def test_logs_stay_for_a_day(temporary_files: Path, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("what happened")
    old, new = keep_log(tmp_path / "log", "engine"), keep_log(tmp_path / "log", "engine")
    yesterday = time.time() - scratch.KEPT_LOG_S - 60
    os.utime(old, (yesterday, yesterday))
    with scratch_folder("other"):
        assert not old.exists() and new.read_text() == "what happened"


def test_where_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", refuse)
    with pytest.raises(StorageError, match="no folder for temporary files") as caught:
        scratch_folder("other").__enter__()
    assert "TMPDIR" in caught.value.hint
    with pytest.raises(StorageError, match="missing"), scratch_folder("other", tmp_path / "missing"):
        pytest.fail("the block was entered")

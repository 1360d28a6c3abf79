"""Shared between builds: things made once, by what they were made from, and the machine."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qvec_deploy.errors import FetchError, QvecError, RecipeError, StorageError
from qvec_deploy.io import cache
from qvec_deploy.io.cache import ENTRY_FILE, Cache, kept_cache
from qvec_deploy.io.files import file_lock, link_files, staging_directory
from qvec_deploy.jobs.job import Job
from qvec_deploy.jobs.processes import LocalProcesses


class _Maker:
    """Writes a file and counts how often."""

    def __init__(self, text: str = "made") -> None:
        self.text, self.calls = text, 0

    def __call__(self, folder: Path) -> dict[str, object]:
        self.calls += 1
        (folder / "file").write_text(self.text)
        return {"b": 0.1, "a": [self.calls]}


def _target(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


def _obtain(cache: Cache, kind: str, inputs: object, target: Path, make: Callable[[Path], object]) -> Any:
    """An entry's record, and its files in a folder."""
    with cache.entry(kind, inputs) as entry:
        if entry.new:
            entry.record = make(entry.folder)
        link_files(entry.files, target)
    return entry.record


def test_the_same_is_made_once(tmp_path: Path) -> None:
    cache, make = Cache(tmp_path / "cache"), _Maker()
    one = _obtain(cache, "thing", {"x": 1, "y": 2}, _target(tmp_path, "one"), make)
    two = _obtain(cache, "thing", {"y": 2, "x": 1}, _target(tmp_path, "two"), make)
    assert make.calls == 1 and one == two == {"b": 0.1, "a": [1]} and list(two) == ["b", "a"]
    for name in ("one", "two"):
        assert [path.name for path in (tmp_path / name).iterdir()] == ["file"]
    assert (tmp_path / "one" / "file").samefile(tmp_path / "two" / "file")  # a link, not a copy
    _obtain(cache, "thing", {"x": 2, "y": 2}, _target(tmp_path, "three"), make)
    _obtain(cache, "other", {"x": 1, "y": 2}, _target(tmp_path, "four"), make)
    assert make.calls == 3


def test_a_failed_maker_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise FetchError("gone", hint="again")

    cache = Cache(tmp_path / "cache")
    with pytest.raises(FetchError):
        _obtain(cache, "thing", 1, _target(tmp_path, "one"), fail)
    assert [path.name for path in cache.folder.iterdir()] == ["locks"]
    assert _obtain(cache, "thing", 1, tmp_path / "one", _Maker())["a"] == [1]


@pytest.mark.parametrize("damage", ["changed", "missing", "more", "no entry", "odd entry", "record"])
def test_what_was_damaged_is_made_anew(tmp_path: Path, damage: str) -> None:
    cache, make = Cache(tmp_path / "cache"), _Maker()
    _obtain(cache, "thing", 1, _target(tmp_path, "one"), make)
    (entry,) = cache.folder.glob("thing-*")
    match damage:
        case "changed":
            (entry / "file").write_text("Made")
        case "missing":
            (entry / "file").unlink()
        case "more":
            (entry / "stray").touch()
        case "no entry":
            (entry / ENTRY_FILE).unlink()
        case "odd entry":
            (entry / ENTRY_FILE).write_text("[]")
        case "record":
            kept = (entry / ENTRY_FILE).read_text()
            (entry / ENTRY_FILE).write_text(kept.replace("0.1", "0.2"))
    _obtain(cache, "thing", 1, _target(tmp_path, "two"), make)
    assert make.calls == 2 and (tmp_path / "two" / "file").read_text() == "made"


def test_links_become_copies_where_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    source, target = _target(tmp_path, "source"), _target(tmp_path, "target")
    (source / "file").write_text("text")
    link_files(sorted(source.iterdir()), target)
    assert (target / "file").read_text() == "text" and not (target / "file").samefile(source / "file")
    with pytest.raises(StorageError):
        link_files(sorted(source.iterdir()), tmp_path / "absent")


def test_two_processes_make_it_once(tmp_path: Path) -> None:
    with LocalProcesses(2) as processes:
        for name in ("one", "two"):
            arguments = {"folder": str(tmp_path), "target": name}
            processes.submit(Job(name, "job_functions:obtain", arguments))
        outcomes = list(processes.outcomes())
    assert [outcome.failure for outcome in outcomes] == [None, None]
    assert len({outcome.result for outcome in outcomes}) == 1  # both have the one maker's record
    assert (tmp_path / "made").read_text() == "x"


def test_a_killed_maker_is_followed_by_another(tmp_path: Path) -> None:
    with LocalProcesses(1) as processes:
        for name, die in (("one", True), ("two", False)):
            arguments = {"folder": str(tmp_path), "target": name, "die": die}
            processes.submit(Job(name, "job_functions:obtain", arguments))
        first, second = processes.outcomes()
    assert first.failure is not None and "SIGKILL" in first.failure.message
    assert second.failure is None and (tmp_path / "two" / "file").exists()
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.name.startswith(".")] == []


def test_stale_staging_is_removed_and_live_is_not(tmp_path: Path) -> None:
    for name in (".bundle.abcdefgh.tmp", ".other.abcdefgh.tmp", ".bundle.x.abcdefgh.tmp", ".bundle.abcdefgh.old"):
        (tmp_path / name).mkdir()
    with staging_directory(tmp_path / "bundle") as first:
        names = {path.name for path in tmp_path.iterdir()}
        # The old one may be all there is: a kill between two renames leaves it behind.
        assert names == {first.name, ".other.abcdefgh.tmp", ".bundle.x.abcdefgh.tmp", ".bundle.abcdefgh.old"}
        with pytest.raises(RuntimeError), staging_directory(tmp_path / "bundle"):
            assert first.exists()
            raise RuntimeError
    with pytest.raises(RuntimeError), staging_directory(tmp_path / "bundle", force=True):
        raise RuntimeError
    assert not (tmp_path / ".bundle.abcdefgh.old").exists()


def test_a_lock_that_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lock"
    with file_lock(path) as held, file_lock(path, wait=False) as again, file_lock(path, shared=True, wait=False) as too:
        assert (held, again, too) == (True, False, False)
    with file_lock(path, shared=True) as held, file_lock(path, shared=True, wait=False) as again:
        assert (held, again) == (True, True)


def test_a_cache_can_be_thrown_away(tmp_path: Path) -> None:
    cache, make = Cache(tmp_path / "cache"), _Maker()
    _obtain(cache, "thing", 1, _target(tmp_path, "one"), make)
    shutil.rmtree(cache.folder)
    _obtain(cache, "thing", 1, _target(tmp_path, "two"), make)
    assert make.calls == 2 and (tmp_path / "one" / "file").read_text() == "made"


def _parts_of(folder: Path, error: BaseException | None) -> list[str]:
    """What is left of a kept cache with one entry whose block ends so."""
    with contextlib.suppress(QvecError, KeyboardInterrupt), kept_cache(folder) as kept:
        with kept.entry("a", 1) as entry:
            entry.record = "made"
        if error is not None:
            raise error
    return sorted(path.name.split("-")[0] for path in folder.iterdir()) if folder.is_dir() else []


def test_a_kept_cache_is_there_until_its_work_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "parts"
    assert _parts_of(folder, KeyboardInterrupt()) == []  # it took no time
    monkeypatch.setattr(cache, "WORTH_KEEPING_S", 0.0)
    assert _parts_of(folder, KeyboardInterrupt()) == ["a", "locks"]
    assert _parts_of(folder, RecipeError("no", hint="do")) == []
    assert _parts_of(folder, KeyboardInterrupt()) == ["a", "locks"]
    assert _parts_of(folder, None) == []


def test_the_last_one_to_leave_removes_a_kept_cache(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    with kept_cache(folder):
        with kept_cache(folder) as inner, inner.entry("a", 1) as entry:
            entry.record = 1
        assert folder.is_dir()
        with kept_cache(folder) as again, again.entry("a", 1) as entry:
            assert not entry.new
    assert not folder.exists()

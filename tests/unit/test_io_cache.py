"""Shared between builds: things made once, by what they were made from, and the machine."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from qvec_deploy.errors import FetchError, StorageError
from qvec_deploy.io.cache import ENTRY_FILE, Machine, Shelf
from qvec_deploy.io.files import file_lock, link_files, staging_directory, unlink_files
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


def test_the_same_is_made_once(tmp_path: Path) -> None:
    shelf, make = Shelf(tmp_path / "shelf"), _Maker()
    one = shelf.obtain("thing", {"x": 1, "y": 2}, _target(tmp_path, "one"), make)
    two = shelf.obtain("thing", {"y": 2, "x": 1}, _target(tmp_path, "two"), make)
    assert make.calls == 1 and one == two == {"b": 0.1, "a": [1]} and list(two) == ["b", "a"]
    for name in ("one", "two"):
        assert [path.name for path in (tmp_path / name).iterdir()] == ["file"]
    assert (tmp_path / "one" / "file").samefile(tmp_path / "two" / "file")  # a link, not a copy
    shelf.obtain("thing", {"x": 2, "y": 2}, _target(tmp_path, "three"), make)
    shelf.obtain("other", {"x": 1, "y": 2}, _target(tmp_path, "four"), make)
    assert make.calls == 3


def test_a_failed_maker_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise FetchError("gone", hint="again")

    shelf = Shelf(tmp_path / "shelf")
    with pytest.raises(FetchError):
        shelf.obtain("thing", 1, _target(tmp_path, "one"), fail)
    assert [path.name for path in shelf.folder.iterdir()] == ["locks"]
    assert shelf.obtain("thing", 1, tmp_path / "one", _Maker())["a"] == [1]


@pytest.mark.parametrize("damage", ["changed", "missing", "more", "no entry", "odd entry"])
def test_what_was_damaged_is_made_anew(tmp_path: Path, damage: str) -> None:
    shelf, make = Shelf(tmp_path / "shelf"), _Maker()
    shelf.obtain("thing", 1, _target(tmp_path, "one"), make)
    (entry,) = shelf.folder.glob("thing-*")
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
    shelf.obtain("thing", 1, _target(tmp_path, "two"), make)
    assert make.calls == 2 and (tmp_path / "two" / "file").read_text() == "made"


def test_links_become_copies_where_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    source, target = _target(tmp_path, "source"), _target(tmp_path, "target")
    (source / "file").write_text("text")
    link_files(source, target)
    assert (target / "file").read_text() == "text" and not (target / "file").samefile(source / "file")
    with pytest.raises(StorageError):
        link_files(source, tmp_path / "absent")


def test_links_can_be_made_files_of_their_own(tmp_path: Path) -> None:
    source, target = _target(tmp_path, "source"), _target(tmp_path, "target")
    (source / "file").write_text("text")
    link_files(source, target)
    (target / "own").write_text("mine")
    unlink_files(target)
    assert {path.name: path.read_text() for path in target.iterdir()} == {"file": "text", "own": "mine"}
    assert not (target / "file").samefile(source / "file")


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
    assert [path.name for path in (tmp_path / "shelf").iterdir() if path.name.startswith(".")] == []


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


def test_who_measures_is_alone(tmp_path: Path) -> None:
    """Of everything that was written down while processes built and measured, nothing lies inside a measurement."""
    with LocalProcesses(4) as processes:
        for name in "abcd":
            arguments = {"folder": str(tmp_path), "name": name, "rounds": 4}
            processes.submit(Job(name, "job_functions:build_and_measure", arguments))
        assert [outcome.failure for outcome in processes.outcomes()] == [None] * 4
    events = (tmp_path / "events").read_text().split()
    assert len(events) == 4 * 4 * 4
    measuring = [index for index, event in enumerate(events) if event.startswith("measure:")]
    assert len(measuring) == 4 * 4
    for index in measuring:
        assert events[index + 1] == events[index].replace("measure", "measured"), events
    overlaps = [a for a, b in itertools.pairwise(events) if a.startswith("build:") and b.startswith("build:")]
    assert overlaps, events


def test_everything_of_a_user_takes_turns_at_one_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps into other folders, and benches, would measure over each other."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert Machine.here().folder.is_relative_to(tmp_path / "cache" / "qvec-deploy")
    with Machine.here().shared():
        assert not _is_free(Machine.here().folder / "floor.lock")


@pytest.mark.parametrize("without", ["a folder", "a home"])
def test_without_a_cache_folder_the_machine_is_among_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: str
) -> None:
    if without == "a folder":
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    else:
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "home", _no_home)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    assert Machine.here().folder.parent == tmp_path / "temporary"
    with Machine.here().shared():
        pass


def test_who_waits_for_the_machine_can_say_so(tmp_path: Path) -> None:
    said = []

    @contextlib.contextmanager
    def waiting() -> Iterator[None]:
        said.append("waits")
        yield
        said.append("waits no more")

    machine = Machine(tmp_path)
    with machine.shared(waiting()):
        said.append("builds")
        with machine.alone(waiting()):
            said.append("measures")
    assert said == ["waits", "waits no more", "builds", "waits", "waits no more", "measures"]


def _no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_who_wants_the_machine_is_not_kept_waiting_by_those_that_come_after(tmp_path: Path) -> None:
    order: list[str] = []
    inside, wanted = threading.Event(), threading.Event()

    def measure() -> None:
        machine = Machine(tmp_path)
        with machine.shared():
            inside.set()
            wanted.wait()
            with machine.alone():
                order.append("measured")

    def build() -> None:
        with Machine(tmp_path).shared():
            order.append("built")

    first = Machine(tmp_path)
    with first.shared():
        measurer = threading.Thread(target=measure)
        measurer.start()
        inside.wait()
        wanted.set()
        while _is_free(tmp_path / "door.lock"):  # until it waits behind the closed door
            pass
        builder = threading.Thread(target=build)
        builder.start()
        builder.join(0.2)
        assert order == []
    for thread in (measurer, builder):
        thread.join()
    assert order == ["measured", "built"]


def _is_free(path: Path) -> bool:
    with file_lock(path, wait=False) as held:
        return held


def test_a_shelf_can_be_thrown_away(tmp_path: Path) -> None:
    shelf, make = Shelf(tmp_path / "shelf"), _Maker()
    shelf.obtain("thing", 1, _target(tmp_path, "one"), make)
    shutil.rmtree(shelf.folder)
    shelf.obtain("thing", 1, _target(tmp_path, "two"), make)
    assert make.calls == 2 and (tmp_path / "one" / "file").read_text() == "made"

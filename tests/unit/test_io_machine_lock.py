"""One machine for all that build and measure on it."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from qvec_deploy.io.files import file_lock
from qvec_deploy.io.machine_lock import MachineLock
from qvec_deploy.jobs.job import Job
from qvec_deploy.jobs.processes import LocalProcesses


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
    assert MachineLock.here().folder.is_relative_to(tmp_path / "cache" / "qvec-deploy")
    with MachineLock.here().shared():
        assert not _is_free(MachineLock.here().folder / "floor.lock")


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
    assert MachineLock.here().folder.parent == tmp_path / "temporary"
    with MachineLock.here().shared():
        pass


def test_who_waits_for_the_machine_can_say_so(tmp_path: Path) -> None:
    said = []

    @contextlib.contextmanager
    def waiting() -> Iterator[None]:
        said.append("waits")
        yield
        said.append("waits no more")

    machine = MachineLock(tmp_path)
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
        machine = MachineLock(tmp_path)
        with machine.shared():
            inside.set()
            wanted.wait()
            with machine.alone():
                order.append("measured")

    def build() -> None:
        with MachineLock(tmp_path).shared():
            order.append("built")

    first = MachineLock(tmp_path)
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

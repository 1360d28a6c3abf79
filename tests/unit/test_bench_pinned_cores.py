"""Which cores a measurement is held to."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from qvec_deploy.bench.pinned_cores import check_cores, pinned_to_cores
from qvec_deploy.errors import IncompatibleError, RecipeError

MINE = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def test_the_process_and_its_children_are_held_and_let_go() -> None:
    before = os.sched_getaffinity(0)
    with pinned_to_cores(MINE[:1], 1):
        assert os.sched_getaffinity(0) == {MINE[0]}
        asked = [sys.executable, "-c", "import os; print(sorted(os.sched_getaffinity(0)))"]
        assert subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip() == str(MINE[:1])
    assert os.sched_getaffinity(0) == before


def test_it_is_let_go_after_an_error() -> None:
    before = os.sched_getaffinity(0)
    with pytest.raises(ZeroDivisionError), pinned_to_cores(MINE[:1], 1):
        _ = 1 / 0
    assert os.sched_getaffinity(0) == before


def test_without_cores_nothing_changes() -> None:
    before = os.sched_getaffinity(0)
    with pinned_to_cores((), 64):
        assert os.sched_getaffinity(0) == before


def test_a_core_that_is_not_there() -> None:
    with pytest.raises(IncompatibleError, match="there is no core 4097 for this process"):
        check_cores((MINE[0], 4097), 1)
    with pytest.raises(IncompatibleError, match="no core 4097"), pinned_to_cores((4097,), 1):
        pass


def test_more_threads_than_cores() -> None:
    with pytest.raises(RecipeError, match="engines with 2 threads would be measured on 1 core"):
        check_cores(MINE[:1], 2)


def test_a_system_without_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_setaffinity")
    check_cores((), 1)
    with pytest.raises(IncompatibleError, match="cannot hold a process to cores"):
        check_cores((0,), 1)

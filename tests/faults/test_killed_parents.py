"""Nothing outlives a command that was killed: no process of it works on for nobody."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from study_recipes import write_study

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parents[1] / "golden" / "v0.1.0"
ROOT = Path(__file__).parents[2]
MARK = "QVEC_TESTS_COMMAND"
GONE_S = 15.0
"""What everything has to be gone within; a process that is being started needs a moment to see it."""


LONG = ["--set", "measure.blocks=2000", "--set", "evaluate.accept_float=true"]


def _marked(mark: str) -> list[psutil.Process]:
    """The processes of a command: all inherit its variables, whoever started them."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _kill(command: list[object], ready: Callable[[list[psutil.Process]], bool], folder: Path, later: float) -> int:
    """Start a command, kill it some time after it is ready, and see that nothing is left.

    Returns:
        How many processes it had.
    """
    mark = uuid.uuid4().hex
    environment = {**os.environ, MARK: mark, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
    program = [sys.executable, "-m", "qvec_deploy", *map(str, command)]
    with (folder / "log").open("w") as log:
        own = subprocess.Popen(program, env=environment, cwd=folder, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 300
        while not ready(_marked(mark)):
            assert own.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.02)
        time.sleep(later)
        assert own.poll() is None, (folder / "log").read_text()
        count = len(_marked(mark))
    finally:
        own.kill()
        own.wait()
    deadline = time.monotonic() + GONE_S
    while left := _marked(mark):
        assert time.monotonic() < deadline, [process.cmdline() for process in left]
        time.sleep(0.05)
    return count


def _runs(words: str) -> Callable[[list[psutil.Process]], bool]:
    """Whether one of the processes was started with these words."""

    def look(processes: list[psutil.Process]) -> bool:
        return any(words in " ".join(process.cmdline()) for process in processes if process.is_running())

    return look


def _clean(command: list[object], folder: Path) -> None:
    """The next run removes what the killed one has left."""
    program = [sys.executable, "-m", "qvec_deploy", *map(str, command)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
    done = subprocess.run(program, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 3), done.stderr
    left = [path for path in folder.rglob("*") if path.name.endswith((".tmp", ".old")) or path.name.startswith("pymp-")]
    assert left == []


def test_a_build(tmp_path: Path) -> None:
    command = ["build", "--recipe", GOLDEN / "recipe.yaml", "-o", tmp_path / "out", *LONG]
    assert _kill(command, _runs("bench.footprint"), tmp_path, 0.1) == 2
    _clean([*command[:-4], "--set", "evaluate.accept_float=true"], tmp_path)


def test_a_benchmark(tmp_path: Path) -> None:
    command = ["bench", GOLDEN / "bundle", "-o", tmp_path / "out", "--no-accuracy"]
    assert _kill(command, _runs("bench.footprint"), tmp_path, 0.1) == 2


def test_a_sweep(tmp_path: Path) -> None:
    command = ["build", "--recipe", GOLDEN / "recipe.yaml", "--set", "matrix={lambda: [0, 0.5, 1]}", "--jobs", 2]
    command += ["-o", tmp_path / "out", "--set", "evaluate.accept_float=true"]
    # Command, server, what multiprocessing tracks files with, and two jobs, each with the process that watches over it.
    assert _kill(command, lambda processes: len(processes) >= 7, tmp_path, 3.0) >= 7
    _clean(command, tmp_path)


def test_a_study(tmp_path: Path) -> None:
    recipe = write_study(tmp_path / "recipe", train__workers=1, train__steps=500)
    command = ["study", "run", recipe, "-o", tmp_path / "out", "--jobs", 2]
    assert _kill(command, lambda processes: len(processes) >= 7, tmp_path, 2.0) >= 7

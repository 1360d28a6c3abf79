"""`qvec-deploy study run` and the signals: a worker's, the terminal's, and one that leaves no time for anything."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from study_recipes import write_study

from qvec_deploy.research.study.study_documents import read_study

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm_jobs")]

Run = Callable[..., tuple[int, str, str]]


def _command(recipe: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "qvec_deploy", "study", "run", str(recipe), "-o", str(out), "--json", "--jobs", "2"]


def _interruptible() -> None:
    """What is started in a shell's background ignores Ctrl-C from birth, these tests perhaps."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def _started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_interruptible,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _worker(process: subprocess.Popen[str], node: str) -> psutil.Process:
    """The process that makes a node: its output goes to the node's log."""
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error, OSError):
                if f"/logs/{node}" in str(Path(f"/proc/{child.pid}/fd/1").readlink()):
                    return child
        time.sleep(0.005)
    raise AssertionError(f"nobody made {node}")


@pytest.fixture
def again(run: Run, tmp_path: Path) -> Callable[[], dict[str, dict[str, int]]]:
    """Run the study of this test in this process, to its end."""

    def call() -> dict[str, dict[str, int]]:
        code, text, log = run("study", "run", tmp_path / "study.yaml", "-o", tmp_path / "out", "--json", "--jobs", 2)
        assert code == 0, log
        counts: dict[str, dict[str, int]] = json.loads(text)["counts"]
        return counts

    return call


@pytest.mark.parametrize(
    ("node", "failed", "lost"),
    [
        ("qat-pico-lower", "qat pico lower 3bit_tensor_mse 1", {"qat": 1, "vector": 1, "cell": 2}),
        ("cell-pico-lower", "cell pico lower 3bit_tensor_mse 1", {"cell": 1}),
    ],
)
def test_a_killed_worker_costs_its_node_and_what_is_made_from_it(
    node: str, failed: str, lost: dict[str, int], tmp_path: Path, again: Callable[[], dict[str, dict[str, int]]]
) -> None:
    recipe, out = write_study(tmp_path, train__steps=100), tmp_path / "out"
    with _started(_command(recipe, out)) as run:
        _worker(run, node).kill()
        document = json.loads(run.communicate(timeout=900)[0])
        assert run.returncode == document["exit_code"] == 4
    first, *rest = document["failures"]
    assert (first["node"], first["because"]) == (failed, None)
    assert "killed (SIGKILL)" in first["message"] and "fewer jobs" in first["hint"]
    assert {failure["because"] for failure in rest} <= {failed}
    counts = document["counts"]
    assert {kind: count["failed"] for kind, count in counts.items() if "failed" in count} == lost
    assert all(count["total"] == count.get("made", 0) + lost.get(kind, 0) for kind, count in counts.items())
    healed = again()
    assert {kind: count["made"] for kind, count in healed.items() if "made" in count} == lost
    assert len(read_study(out).cells) == 2 and not list((out / "work").iterdir())


def test_ctrl_c_leaves_nothing_running_and_the_same_command_goes_on(
    tmp_path: Path, again: Callable[[], dict[str, dict[str, int]]]
) -> None:
    recipe, out = write_study(tmp_path, train__steps=100), tmp_path / "out"
    with _started(_command(recipe, out)) as run:
        _worker(run, "qat-pico-lower")
        processes = psutil.Process(run.pid).children(recursive=True)
        os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to all that is in the foreground
        text, log = run.communicate(timeout=300)
        assert run.returncode == 130
    assert "the same command goes on with what is missing" in log and json.loads(text)["exit_code"] == 130
    assert len(processes) > 1
    _, alive = psutil.wait_procs(processes, timeout=120)
    assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]
    assert not (out / "run.json").exists()
    finished = {path: path.stat().st_mtime_ns for path in out.glob("files/*/*.safetensors")}
    assert finished  # the base, at least
    again()
    assert {path: path.stat().st_mtime_ns for path in finished} == finished


KILLED_WHILE_WRITING = """
import os, signal, sys
from qvec_deploy.cli import program
from qvec_deploy.research.study import study_documents as documents
real = documents.write_bytes
def write(path, data):
    real(path, data)
    if path.parent.name == "cells":
        os.kill(os.getpid(), signal.SIGKILL)
if __name__ == "__main__":
    documents.write_bytes = write
    program()
"""


def test_a_kill_while_documents_are_written_leaves_none(
    tmp_path: Path, run: Run, again: Callable[[], dict[str, dict[str, int]]]
) -> None:
    recipe, out = write_study(tmp_path), tmp_path / "out"
    again()
    (tmp_path / "killed.py").write_text(KILLED_WHILE_WRITING)
    arguments = _command(recipe, out)[3:]
    killed = subprocess.run([sys.executable, str(tmp_path / "killed.py"), *arguments], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list((out / "cells").glob("*.json"))) == 1
    code, _, log = run("study", "report", out, "-o", tmp_path / "report")
    assert code == 6 and "is not the folder of a finished study" in log
    assert not (tmp_path / "report").exists()
    assert again()["cell"] == {"total": 2, "kept": 2}
    assert len(read_study(out).cells) == 2

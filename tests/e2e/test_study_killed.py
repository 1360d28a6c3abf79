"""`qvec-deploy study run` and the signals: a worker's, the terminal's, and one that leaves no time for anything."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from study_recipes import write_study

from qvec_deploy.research.study.study_documents import read_study

pytestmark = pytest.mark.slow


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
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error, OSError):
                if f"/logs/{node}" in str(Path(f"/proc/{child.pid}/fd/1").readlink()):
                    return child
        time.sleep(0.005)
    raise AssertionError(f"nobody made {node}")


def _again(recipe: Path, out: Path) -> dict[str, dict[str, int]]:
    done = subprocess.run(_command(recipe, out), capture_output=True, text=True, check=True)
    counts: dict[str, dict[str, int]] = json.loads(done.stdout)["counts"]
    return counts


@pytest.mark.parametrize(
    ("node", "failed", "lost"),
    [
        ("qat-pico-lower", "qat pico lower 3bit_tensor_mse 1", {"qat": 1, "vector": 1, "cell": 2}),
        ("cell-pico-lower", "cell pico lower 3bit_tensor_mse 1", {"cell": 1}),
    ],
)
def test_a_killed_worker_costs_its_node_and_what_is_made_from_it(
    node: str, failed: str, lost: dict[str, int], tmp_path: Path
) -> None:
    recipe, out = write_study(tmp_path, train__steps=100), tmp_path / "out"
    with _started(_command(recipe, out)) as run:
        _worker(run, node).kill()
        document = json.loads(run.communicate(timeout=300)[0])
        assert run.returncode == document["exit_code"] == 4
    first, *rest = document["failures"]
    assert (first["node"], first["because"]) == (failed, None)
    assert "killed (SIGKILL)" in first["message"] and "fewer jobs" in first["hint"]
    assert {failure["because"] for failure in rest} <= {failed}
    counts = document["counts"]
    assert {kind: count["failed"] for kind, count in counts.items() if "failed" in count} == lost
    assert all(count["total"] == count.get("made", 0) + lost.get(kind, 0) for kind, count in counts.items())
    healed = _again(recipe, out)
    assert {kind: count["made"] for kind, count in healed.items() if "made" in count} == lost
    assert len(read_study(out).cells) == 2 and not list((out / "work").iterdir())


def test_ctrl_c_leaves_nothing_running_and_the_same_command_goes_on(tmp_path: Path) -> None:
    recipe, out = write_study(tmp_path, train__steps=100), tmp_path / "out"
    with _started(_command(recipe, out)) as run:
        _worker(run, "qat-pico-lower")
        processes = psutil.Process(run.pid).children(recursive=True)
        os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to all that is in the foreground
        text, log = run.communicate(timeout=60)
        assert run.returncode == 130
    assert "the same command goes on with what is missing" in log and json.loads(text)["exit_code"] == 130
    assert len(processes) > 1
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]
    assert not (out / "run.json").exists()
    finished = {path: path.stat().st_mtime_ns for path in out.glob("files/*/*.safetensors")}
    assert finished  # the base, at least
    _again(recipe, out)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished


KILLED_WHILE_WRITING = """
import os, signal, sys
from qvec_deploy.cli import program
from qvec_deploy.research.study import documents
real = documents.write_bytes
def write(path, data):
    real(path, data)
    if path.parent.name == "cells":
        os.kill(os.getpid(), signal.SIGKILL)
if __name__ == "__main__":
    documents.write_bytes = write
    program()
"""


def test_a_kill_while_documents_are_written_leaves_none(tmp_path: Path) -> None:
    recipe, out = write_study(tmp_path), tmp_path / "out"
    _again(recipe, out)
    (tmp_path / "killed.py").write_text(KILLED_WHILE_WRITING)
    arguments = _command(recipe, out)[3:]
    killed = subprocess.run([sys.executable, str(tmp_path / "killed.py"), *arguments], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list((out / "cells").glob("*.json"))) == 1
    report = [sys.executable, "-m", "qvec_deploy", "study", "report", str(out), "-o", str(tmp_path / "report")]
    done = subprocess.run(report, capture_output=True, text=True, check=False)
    assert done.returncode == 6 and "is not the folder of a finished study" in done.stderr
    assert not (tmp_path / "report").exists()
    assert _again(recipe, out)["cell"] == {"total": 2, "kept": 2}
    assert len(read_study(out).cells) == 2

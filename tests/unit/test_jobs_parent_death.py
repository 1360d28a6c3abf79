"""Processes end with their parent, killed or not, and a group with its first."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import psutil

ALONE = """
import os, subprocess, sys, time
code = 'import sys, time; from qvec_deploy.jobs.parent_death import end_with_parent; '
code += 'end_with_parent(int(sys.argv[1])); print("here", flush=True); time.sleep(600)'
child = subprocess.Popen([sys.executable, '-c', code, sys.argv[1] if len(sys.argv) > 1 else str(os.getpid())])
print(child.pid, flush=True)
time.sleep(600)
"""
GROUP = """
import os, subprocess, sys, time
from qvec_deploy.jobs.parent_death import end_group_with
here, there = os.pipe()
if os.fork():
    os.close(here)
    time.sleep(600)
os.close(there)
os.setpgid(0, 0)
end_group_with(here)
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
print(os.getpid(), child.pid, flush=True)
{rest}
"""
HOLDS_THE_INTERPRETER = "import ctypes; ctypes.PyDLL(None).sleep(600)"


def _gone(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    return True


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _start(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_a_child_ends_with_a_killed_parent() -> None:
    parent = _start(ALONE)
    child = next(int(line) for line in (_line(parent), _line(parent)) if line != "here")
    assert not _gone(child)
    _kill(parent)
    _until(lambda: _gone(child))


def test_a_child_that_asks_too_late_ends_at_once() -> None:
    parent = _start(ALONE, "1")  # another process started it, as it seems
    child = int(_line(parent))
    _until(lambda: _gone(child))
    _kill(parent)


def test_a_group_ends_with_another_process_whatever_it_is_at() -> None:
    parent = _start(GROUP.format(rest=HOLDS_THE_INTERPRETER))
    pids = [int(pid) for pid in _line(parent).split()]
    assert not any(map(_gone, pids))
    _kill(parent)
    _until(lambda: all(map(_gone, pids)))


def test_a_group_ends_with_its_first_process() -> None:
    parent = _start(GROUP.format(rest="time.sleep(600)"))
    first, other = (int(pid) for pid in _line(parent).split())
    os.kill(first, signal.SIGKILL)
    _until(lambda: _gone(other))
    _kill(parent)


def test_a_group_is_not_kept_alive() -> None:
    parent = _start(GROUP.format(rest="child.kill()"))
    first, _ = (int(pid) for pid in _line(parent).split())
    _until(lambda: _gone(first))
    _until(lambda: not [each for each in psutil.Process(parent.pid).children(recursive=True) if not _gone(each.pid)])
    _kill(parent)

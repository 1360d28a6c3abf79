"""How commands end: interruptions are not lost, and what cannot be printed is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = """
import os, signal, sys, time
from qvec_deploy.cli import commands

class Slow:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass

def work(printed):
    Slow()
    time.sleep(30)

commands._run = work
commands.program()
"""


def test_one_that_comes_while_an_object_is_removed_comes_again() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (130, "interrupted; nothing was left half written\n")


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        ("MemoryError()", 4, "error: out of memory"),
        ("OSError(24, 'Too many open files', 'some/file')", 6, "error: some/file: Too many open files"),
        ("OSError(5, 'Input/output error')", 6, "error: the system: Input/output error"),
        ("KeyError('ours')", 1, "error: this is a bug in qvec-deploy"),
        ("OSError('no number')", 1, "error: this is a bug in qvec-deploy"),
    ],
)
def test_what_the_machine_lacks_is_no_bug(error: str, code: int, told: str) -> None:
    lines = f"def fail(**given):\n    raise {error}\ncommands.commands.main = fail\nsys.argv = ['qvec-deploy']\n"
    program = f"import sys\nfrom qvec_deploy.cli import commands\n{lines}commands.program()"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == code and told in done.stderr.splitlines()
    assert ("Traceback" in done.stderr) is (code == 1)


def test_a_full_standard_output_is_one_error() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "qvec_deploy", "schema"]
        done = subprocess.run(
            command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, check=False
        )
    assert (done.returncode, done.stderr.splitlines()[:1]) == (6, ["error: standard output: No space left on device"])
    assert len(done.stderr.splitlines()) == 2

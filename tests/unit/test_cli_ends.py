"""How commands end: interruptions are not lost, and what cannot be printed is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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


def test_a_full_standard_output_is_one_error() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "qvec_deploy", "schema"]
        done = subprocess.run(
            command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, check=False
        )
    assert (done.returncode, done.stderr.splitlines()[:1]) == (6, ["error: standard output: No space left on device"])
    assert len(done.stderr.splitlines()) == 2

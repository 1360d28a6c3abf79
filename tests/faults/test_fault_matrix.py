"""A sample of the fault matrix; `scripts/fault_matrix` runs the whole, and its record tells what that found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands_at_work import CASES, commands_without_case
from fault_kinds import FAULTS
from shim import shim

from qvec_deploy.cli.commands import commands

ROOT = Path(__file__).parents[2]
RECORD = json.loads(Path(__file__).with_name("faults.record.json").read_text(encoding="utf-8"))
SAMPLE = ["export", "vector mix"]
FEW = ["disk full", "target read-only", "EIO on read", "no HOME", "umask 077", "64 open files", "SIGTERM", "SIGKILL"]


def _rows(*arguments: str) -> list[dict[str, object]]:
    environment = {**os.environ, "LD_PRELOAD": str(shim()), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, str(Path(__file__).with_name("matrix.py")), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_command_is_in_the_matrix() -> None:
    assert commands_without_case(commands) == []


def test_the_record_has_every_fault_and_nothing_wrong() -> None:
    rows = {(row["command"], row["fault"]): row["problems"] for row in RECORD["rows"]}
    assert {command for command, _ in rows} == {*CASES}, "run scripts/fault_matrix --record"
    assert {fault for _, fault in rows} == {fault.name for fault in FAULTS} | {"none"}
    assert {key: problems for key, problems in rows.items() if problems} == {}


def test_a_sample_of_commands_and_faults() -> None:
    rows = _rows("--each=1", "--moments=1", "--commands", *SAMPLE, "--faults", *FEW)
    assert len(rows) == len(SAMPLE) * (1 + len(FEW))
    assert [row for row in rows if row["problems"]] == []
    full = {row["command"]: row["codes"] for row in rows if row["fault"] == "disk full"}
    assert full == {name: [6] for name in SAMPLE}  # the disk was full indeed


@pytest.mark.slow
def test_a_release_under_every_fault() -> None:
    rows = _rows("--each=4", "--moments=2", "--commands", "release")
    assert [row for row in rows if row["problems"]] == []

"""The library that records or fails what processes do to files: compiled once a run."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from shared import make_once

SOURCE = Path(__file__).with_name("shim.c")


def build_shim(library: Path) -> None:
    """Compile it."""
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", library, SOURCE, "-ldl"], check=True)


def shim() -> Path:
    """The library; a test that needs it is skipped where there is no compiler."""
    if shutil.which("gcc") is None:
        pytest.skip("no C compiler here")
    return make_once("shim.so", build_shim)


def variables(
    library: Path,
    under: list[Path],
    *,
    log: Path | None = None,
    fail: tuple[str, int, int] | None = None,
    count: Path | None = None,
) -> dict[str, str]:
    """Environment of a process that has it.

    Args:
        under: Folders that it looks at.
        fail: Kind, number and errno of what fails first.
        count: File of counters that all processes share.
    """
    chosen = {
        "LD_PRELOAD": str(library),
        "FAULTS_UNDER": ":".join(os.path.realpath(path) for path in under),
        "FAULTS_LOG": str(log) if log else None,
        "FAULTS_FAIL": ",".join(map(str, fail)) if fail else None,
        "FAULTS_COUNT": str(count) if count else None,
    }
    return {name: value for name, value in chosen.items() if value is not None}

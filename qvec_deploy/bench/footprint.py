"""Load time and memory of an engine, in a process that does nothing else.

A process's memory never tells what a second engine in it would cost, so each engine gets a process of its
own: `python -m qvec_deploy.bench.footprint REQUEST`, which prints one line of JSON. The request names the
function that opens the engine, so that this module imports no runtime and nothing above it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.jobs.parent_death import end_with_parent

STATUS = Path("/proc/self/status")
TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Footprint:
    """What it takes to hold an engine.

    Attributes:
        load_s: Seconds from nothing but imports to a session ready to run.
        baseline_rss_bytes: Resident memory of the process after its imports, before loading.
        rss_bytes: Resident memory after loading and one run.
        peak_rss_bytes: Largest resident memory so far (VmHWM); None where the system does not tell.
    """

    load_s: float
    baseline_rss_bytes: int
    rss_bytes: int
    peak_rss_bytes: int | None


def probe(
    opener: str,
    arguments: Mapping[str, Any],
    *,
    input_shape: tuple[int, int, int],
    preload: Sequence[str] = (),
    timeout_s: float = TIMEOUT_S,
) -> Footprint:
    """Open an engine in a fresh process, run it once, and say what that took.

    Args:
        opener: `module:function`; called with `arguments`, it returns a context manager that gives a session.
        arguments: Keyword arguments, as JSON can carry them (paths as strings).
        preload: Modules to import before the baseline, such as the runtime's where the opener imports it
            late: a runtime's import is not the engine's load time.

    Raises:
        IncompatibleError: The engine did not open or run; the message ends with the process's last words.
    """
    request = {
        "opener": opener,
        "arguments": dict(arguments),
        "images_shape": [1, *input_shape],
        "preload": list(preload),
        "parent": os.getpid(),
    }
    # -P: a module in the working directory must not shadow an installed one.
    command = [sys.executable, "-P", "-m", "qvec_deploy.bench.footprint", json.dumps(request)]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise IncompatibleError(
            f"the engine was not loaded and run within {timeout_s:g} s",
            hint="try a smaller batch size, or leave the memory probe out",
        ) from error
    if child.returncode != 0:
        raise IncompatibleError(f"the engine failed in a fresh process: {_last_words(child)}", hint=_hint(child))
    return Footprint(**json.loads(child.stdout.splitlines()[-1]))  # a vendor's library may have printed before


def _last_words(child: subprocess.CompletedProcess[str]) -> str:
    if child.returncode < 0:
        return f"it was ended by {signal.Signals(-child.returncode).name}"
    lines = [line.strip() for line in child.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"it said nothing and exited with {child.returncode}"


def _hint(child: subprocess.CompletedProcess[str]) -> str:
    if child.returncode == -signal.SIGKILL:
        return "the machine may be out of memory; try a smaller model, or another lowering"
    return "the engine must open without anything this process holds; rebuild it on this machine"


def _measure(request: Mapping[str, Any]) -> Footprint:
    """The child's work."""
    end_with_parent(request["parent"])
    for module in request["preload"]:
        import_module(module)
    module, _, function = request["opener"].partition(":")
    open_session = getattr(import_module(module), function)
    images = np.zeros(request["images_shape"], np.float32)
    process = psutil.Process()
    baseline_rss_bytes = process.memory_info().rss
    start = time.perf_counter()
    with open_session(**request["arguments"]) as session:
        load_s = time.perf_counter() - start
        session.run(images)
        return Footprint(load_s, baseline_rss_bytes, process.memory_info().rss, _peak_rss_bytes())


def _peak_rss_bytes() -> int | None:
    """VmHWM, which is this program's own; `ru_maxrss` would include what the parent held when it forked."""
    if not STATUS.is_file():
        return None
    for line in STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(_measure(json.loads(sys.argv[1])))) + "\n")

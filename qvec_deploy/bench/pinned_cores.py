"""Which cores a measurement runs on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

from qvec_deploy.errors import IncompatibleError, RecipeError


def check_cores(cores: Sequence[int], threads: int) -> None:
    """Refuse cores that a measurement cannot be held to.

    Args:
        cores: What `measure.cores` lists; an empty list asks for nothing.
        threads: Most threads that an engine to be measured computes with.
    """
    if not cores:
        return
    if not hasattr(os, "sched_setaffinity"):
        raise IncompatibleError("this system cannot hold a process to cores", hint="leave out measure.cores")
    usable = os.sched_getaffinity(0)
    missing = sorted(set(cores) - usable)
    if missing:
        raise IncompatibleError(
            f"there is no core {_listed(missing)} for this process: it may run on {_listed(sorted(usable))}",
            hint="change measure.cores, or `--cores` of `bench`",
        )
    if threads > len(cores):
        raise RecipeError(
            f"engines with {threads} threads would be measured on {len(cores)} "
            f"{'core' if len(cores) == 1 else 'cores'}",
            hint="set target.threads, or `--threads` of `bench`, to the number of measure.cores at most",
        )


@contextlib.contextmanager
def pinned_to_cores(cores: Sequence[int], threads: int) -> Iterator[None]:
    """Keep this thread, and every thread and process that it starts within the block, on some cores.

    Engines must therefore be loaded within the block: their threads inherit what their maker has.
    """
    check_cores(cores, threads)
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _listed(cores: Sequence[int]) -> str:
    return ", ".join(map(str, cores))

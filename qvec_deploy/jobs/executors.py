"""Where jobs run: processes of this machine, or Ray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from qvec_deploy.errors import RecipeError
from qvec_deploy.jobs.job import Executor, OnEvent
from qvec_deploy.jobs.processes import LocalProcesses
from qvec_deploy.jobs.ray import RayTasks

ExecutorName = Literal["local", "ray"]


def check_address(name: ExecutorName, address: str | None) -> None:
    """Refuse the address of a Ray cluster that would not be used."""
    if address is not None and name != "ray":
        raise RecipeError("--address is that of a Ray cluster", hint="add --executor ray, or leave it out")


def start_executor(
    name: ExecutorName,
    workers: int,
    *,
    address: str | None = None,
    preload: Sequence[str] = (),
    logs: Path | None = None,
    on_event: OnEvent | None = None,
) -> Executor:
    """An executor by name.

    Args:
        on_event: Called with a job's name and what it tells, by local processes.
    """
    check_address(name, address)
    if name == "ray":
        return RayTasks(workers, address=address)
    return LocalProcesses(workers, preload=preload, logs=logs, on_event=on_event)

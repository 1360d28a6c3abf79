"""Where jobs run: processes of this machine, or Ray, on one machine or many that share a file system."""

from __future__ import annotations

import importlib
import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from qvec_deploy.errors import FetchError, IncompatibleError, RecipeError
from qvec_deploy.jobs import Executor, Failure, Job, LocalProcesses, Outcome, perform

ExecutorName = Literal["local", "ray"]
OnEvent = Callable[[str, Any], None]


class RayTasks:
    """Jobs as Ray tasks: one core each, and the GPUs that a job asks for.

    What a task writes is found through the file system: every machine of a cluster must see the same folders under the
    same paths. Its result comes back as JSON. What it tells while it runs is not passed on. A worker that dies costs
    its task and nothing else; nothing is tried twice.

    Args:
        workers: Tasks at a time on this machine; with an address, as many as the cluster has cores.
        address: Of a running cluster, such as `auto` or `ray://head:10001`; Ray is started here without one.

    Raises:
        IncompatibleError: Ray is not installed, or another version than the cluster's.
        FetchError: There is no cluster at the address.
    """

    def __init__(self, workers: int, *, address: str | None = None) -> None:
        self._ray = _import_ray()
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its future default; it warns otherwise
        where: dict[str, Any] = {"address": address}
        if address is None:
            where = {"address": "local", "num_cpus": workers, "include_dashboard": False}
        try:
            self._ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError) as error:
            raise FetchError(
                f"there is no Ray cluster at {address or 'this machine'}: {str(error).splitlines()[0]}",
                hint="start one with `ray start --head`, or leave out --address",
            ) from error
        except RuntimeError as error:
            raise IncompatibleError(
                f"Ray: {str(error).splitlines()[0]}", hint="use the cluster's versions of Python and Ray"
            ) from error
        self._perform = self._ray.remote(_perform)
        self._waiting: deque[Job] = deque()
        self._running: dict[Any, Job] = {}

    def submit(self, job: Job) -> None:
        """Add a job; it starts while `outcomes` is read."""
        self._waiting.append(job)

    def outcomes(self) -> Iterator[Outcome]:
        """Every job as it ends, until none is left; more may be submitted meanwhile."""
        while self._waiting or self._running:
            while self._waiting:
                job = self._waiting.popleft()
                if job.gpus > self._ray.cluster_resources().get("GPU", 0):
                    yield Outcome(job, failure=_no_gpu(job))
                else:
                    self._start(job)
            if self._running:
                (done,), _ = self._ray.wait(list(self._running), num_returns=1)
                yield self._outcome(done)

    def close(self) -> None:
        """End what still runs, and a Ray that was started here."""
        self._waiting.clear()
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._running.clear()
        self._ray.shutdown()

    def _start(self, job: Job) -> None:
        task = self._perform.options(num_cpus=1, num_gpus=job.gpus, max_retries=0, name=job.name)
        reference = task.remote(str(Path.cwd()), job.function, json.dumps(dict(job.arguments), allow_nan=False))
        self._running[reference] = job

    def _outcome(self, reference: Any) -> Outcome:
        job = self._running.pop(reference)
        try:
            answer = json.loads(self._ray.get(reference))
        except self._ray.exceptions.RayError as error:
            return Outcome(job, failure=_lost(error))
        failure = answer.get("failure")
        return Outcome(job, answer.get("result"), Failure(**failure) if failure is not None else None)


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
        name: `local` or `ray`.
        workers: Jobs at a time.
        address: Of a Ray cluster.
        preload: Modules that local processes have in memory from the start.
        logs: Folder for what local jobs print; Ray keeps its own.
        on_event: Called with a job's name and what it tells, by local processes.

    Raises:
        RecipeError: An address without Ray.
        IncompatibleError, FetchError: As RayTasks.
    """
    if name == "ray":
        return RayTasks(workers, address=address)
    if address is not None:
        raise RecipeError("--address is that of a Ray cluster", hint="add --executor ray, or leave it out")
    return LocalProcesses(workers, preload=preload, logs=logs, on_event=on_event)


def _perform(folder: str, function: str, arguments: str) -> str:
    """The task's work, in a Ray worker: as JSON, whatever the job returned."""
    os.chdir(folder)
    answer = perform(function, json.loads(arguments), lambda value: None)
    try:
        return json.dumps(answer, allow_nan=False)
    except (TypeError, ValueError) as error:  # the result is no JSON value
        return json.dumps({"failure": vars(Failure.of(error))})


def _lost(error: Exception) -> Failure:
    """Why a task gave nothing: Ray's own words are pages."""
    kind, first = type(error).__name__, str(error).strip().splitlines()[0]
    if kind in ("WorkerCrashedError", "OutOfMemoryError", "NodeDiedError", "LocalRayletDiedError"):
        hint = "its machine may be out of memory: run fewer jobs at a time; Ray's logs say more"
        return Failure("IncompatibleError", f"its worker died ({kind})", hint, IncompatibleError.exit_code)
    return Failure("Crash", f"Ray lost it: {kind}: {first}", "Ray's logs may say more; try it alone", 1, str(error))


def _no_gpu(job: Job) -> Failure:
    hint = "set train.device to cpu, or give the address of a cluster with GPUs"
    return Failure("IncompatibleError", f"it needs {job.gpus} GPU and Ray has none", hint, IncompatibleError.exit_code)


def _import_ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise IncompatibleError("Ray is not installed", hint="pip install 'qvec-deploy[ray]'") from error

"""Jobs on Ray: on one machine, or on many that share a file system."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import platform
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qvec_deploy.errors import FetchError, IncompatibleError, first_line
from qvec_deploy.jobs.job import Job, JobFailure, JobOutcome, perform


class RayTasks:
    """Jobs as Ray tasks, with the GPUs that they need and, on a cluster, the cores that they use.

    What a task writes is found through the file system: every machine of a cluster must see the same folders under the
    same paths. Its result comes back as JSON. What it tells while it runs is not passed on. A worker that dies costs
    its task and nothing else; nothing is tried twice. Ray that is started here calls nobody.

    Args:
        workers: Tasks at a time on this machine; with an address, as many as the cluster has room for.
        address: Of a running cluster, such as `auto` or `ray://head:10001`; Ray is started here without one.
    """

    def __init__(self, workers: int, *, address: str | None = None) -> None:
        self._ray = _import_ray()
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its future default; it warns otherwise
        where: dict[str, Any] = {"address": address}
        if address is None:
            where = {"address": "local", "num_cpus": workers, "include_dashboard": False}
        try:
            with contextlib.nullcontext() if address else _without_dashboard():
                self._ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError) as error:
            raise FetchError(
                f"there is no Ray cluster at {address or 'this machine'}: {first_line(error)}",
                hint="start one with `ray start --head`, or leave out --address",
            ) from error
        except RuntimeError as error:
            raise IncompatibleError(
                f"Ray: {first_line(error)}", hint="use the cluster's versions of Python and Ray"
            ) from error
        self._perform = self._ray.remote(_perform)
        self._waiting: deque[Job] = deque()
        self._running: dict[Any, Job] = {}
        self._cluster = address is not None  # Ray that is started here has a "core" for every job at a time

    def gpus(self) -> int:
        """GPUs of all its machines."""
        return int(self._ray.cluster_resources().get("GPU", 0))

    def submit(self, job: Job) -> None:
        """Add a job; it starts while `outcomes` is read."""
        self._waiting.append(job)

    def outcomes(self) -> Iterator[JobOutcome]:
        """Every job as it ends, until none is left; more may be submitted meanwhile."""
        while self._waiting or self._running:
            while self._waiting:
                job = self._waiting.popleft()
                failure = self._impossible(job)
                if failure is None:
                    self._start(job)
                else:
                    yield JobOutcome(job, failure=failure)
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

    def _impossible(self, job: Job) -> JobFailure | None:
        """Why a job would wait for ever."""
        if job.gpus > self.gpus():
            return JobFailure.too_few_gpus(job, self.gpus(), "Ray")
        most = max((node["Resources"].get("CPU", 0) for node in self._ray.nodes() if node["Alive"]), default=0)
        if self._cluster and job.cpus > most:
            message = f"it uses {job.cpus} cores and no machine of the cluster has more than {most:.0f}"
            hint = "raise --jobs: more at a time have fewer cores each"
            return JobFailure("IncompatibleError", message, hint, IncompatibleError.exit_code)
        return None

    def _start(self, job: Job) -> None:
        cpus = job.cpus if self._cluster else 1
        task = self._perform.options(num_cpus=cpus, num_gpus=job.gpus, max_retries=0, name=job.name)
        reference = task.remote(str(Path.cwd()), job.function, json.dumps(dict(job.arguments), allow_nan=False))
        self._running[reference] = job

    def _outcome(self, reference: Any) -> JobOutcome:
        job = self._running.pop(reference)
        try:
            answer = json.loads(self._ray.get(reference))
        except self._ray.exceptions.RayError as error:
            return JobOutcome(job, failure=_lost(error))
        return JobOutcome.of(job, answer)


def _perform(folder: str, function: str, arguments: str) -> str:
    """The task's work, in a Ray worker: as JSON, whatever the job returned."""
    try:
        os.chdir(folder)
    except OSError as error:
        message = f"the Ray worker on {platform.node()} has no {folder}: {error.strerror}"
        hint = "start from a folder that every machine of the cluster sees under the same path"
        return json.dumps({"failure": vars(JobFailure.of(IncompatibleError(message, hint=hint)))})
    answer = perform(function, json.loads(arguments), lambda value: None)
    try:
        return json.dumps(answer, allow_nan=False)
    except (TypeError, ValueError) as error:  # the result is no JSON value
        return json.dumps({"failure": vars(JobFailure.of(error))})


def _lost(error: Exception) -> JobFailure:
    """Why a task gave nothing: Ray's own words are pages."""
    kind, first = type(error).__name__, first_line(error)
    if kind in ("WorkerCrashedError", "OutOfMemoryError", "NodeDiedError", "LocalRayletDiedError"):
        hint = "its machine may be out of memory: run fewer jobs at a time; Ray's logs say more"
        return JobFailure("IncompatibleError", f"its worker died ({kind})", hint, IncompatibleError.exit_code)
    return JobFailure("Crash", f"Ray lost it: {kind}: {first}", "Ray's logs may say more; try it alone", 1, str(error))


@contextlib.contextmanager
def _without_dashboard() -> Iterator[None]:
    """Start Ray without the process of its dashboard.

    Even with the dashboard and reports of use switched off, that process asks the metadata servers of clouds, one of
    them by way of DNS, whose machine it is on.
    """
    try:
        node: Any = importlib.import_module("ray._private.node").Node
        start = node.start_api_server
    except (ImportError, AttributeError):  # another Ray than those that were tried
        yield
        return
    node.start_api_server = lambda *_, **__: None
    try:
        yield
    finally:
        node.start_api_server = start


def _import_ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise IncompatibleError("Ray is not installed", hint="pip install 'qvec-deploy[ray]'") from error

"""Jobs in processes of this machine: one that crashes or is killed costs itself and nothing else."""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Self

from qvec_deploy.errors import IncompatibleError, StorageError
from qvec_deploy.io.files import storage_errors
from qvec_deploy.io.scratch import process_folder
from qvec_deploy.jobs.job import Job, JobFailure, JobOutcome, OnEvent, perform
from qvec_deploy.jobs.parent_death import end_group_with
from qvec_deploy.visible import visible

_GRACE_S = 10.0
"""What jobs get to clean up when they are ended."""


@dataclass(frozen=True)
class _Running:
    """A job, its process, and the GPUs that are its own."""

    job: Job
    process: BaseProcess
    gpus: list[str]


class LocalProcesses:
    """Jobs in processes of this machine, so many at a time.

    They are forked from a server that has the heavy modules in memory, and nothing of this process. One that needs a
    GPU has it alone, and sees no other.

    Args:
        logs: Folder for what jobs print, a file each; thrown away without one.
        environment: Variables that the jobs see beside this process's. Where there are some, jobs are new processes and
            no forks, for the loader of libraries reads its own only at a process's start.
    """

    def __init__(
        self,
        workers: int,
        *,
        preload: Sequence[str] = (),
        logs: Path | None = None,
        on_event: OnEvent | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._environment = environment or {}
        self._workers, self._logs, self._on_event = workers, logs, on_event
        self._context = (
            multiprocessing.get_context("spawn") if environment else multiprocessing.get_context("forkserver")
        )
        self._context.set_forkserver_preload([*preload])
        _keep_sockets_in_order()
        self._waiting: deque[Job] = deque()
        self._running: dict[Connection, _Running] = {}
        self._gpus = _gpu_names()

    def __enter__(self) -> Self:
        """Nothing is started yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """End what still runs."""
        self.close()

    def gpus(self) -> int:
        """GPUs that it shares out: this machine's, or those that CUDA_VISIBLE_DEVICES leaves."""
        return len(self._gpus)

    def submit(self, job: Job) -> None:
        """Add a job; it starts while `outcomes` is read."""
        self._waiting.append(job)

    def outcomes(self) -> Iterator[JobOutcome]:
        """Every job as it ends, until none is left; more may be submitted meanwhile."""
        while self._waiting or self._running:
            while (job := self._next()) is not None:
                if job.gpus > len(self._gpus):
                    yield JobOutcome(job, failure=JobFailure.too_few_gpus(job, len(self._gpus), "this machine"))
                else:
                    self._start(job)
            for connection in wait(list(self._running)):
                assert isinstance(connection, Connection)  # noqa: S101 - what was put in
                message = _receive(connection)
                if message is None or "event" not in message:
                    yield self._finish(connection, message)
                elif self._on_event is not None:
                    self._on_event(self._running[connection].job.name, message["event"])

    def close(self) -> None:
        """End what still runs: jobs may clean up, for a while."""
        self._waiting.clear()
        processes = [running.process for running in self._running.values()]
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + _GRACE_S
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
            _kill_group(process)
            process.join()
        for connection in self._running:
            connection.close()
        self._running.clear()

    def _next(self) -> Job | None:
        """Takes the first job that can start, or that never can."""
        free = len(self._free_gpus())
        for number, job in enumerate(self._waiting if len(self._running) < self._workers else ()):
            if not free < job.gpus <= len(self._gpus):
                del self._waiting[number]
                return job
        return None

    def _free_gpus(self) -> list[str]:
        taken = {name for running in self._running.values() for name in running.gpus}
        return [name for name in self._gpus if name not in taken]

    def _start(self, job: Job) -> None:
        receiver, sender = self._context.Pipe(duplex=False)
        log = str(self._log(job) or os.devnull)
        arguments = json.dumps(dict(job.arguments), allow_nan=False)
        gpus = self._free_gpus()[: job.gpus]
        process = self._context.Process(target=_work, args=(sender, job.function, arguments, log, gpus), name=job.name)
        with _environment(self._environment):
            process.start()
        sender.close()
        self._running[receiver] = _Running(job, process, gpus)

    def _log(self, job: Job) -> Path | None:
        return None if self._logs is None else self._logs / f"{job.name}.log"

    def _finish(self, connection: Connection, message: dict[str, Any] | None) -> JobOutcome:
        job, process = self._running[connection].job, self._running[connection].process
        process.join(_GRACE_S)  # a thread of its own may keep it from ending
        _kill_group(process)  # it, or what a killed job had started itself
        process.join()
        del self._running[connection]
        connection.close()
        if message is None:
            return JobOutcome(job, failure=_death(process.exitcode or 0, self._log(job)))
        return JobOutcome.of(job, message)


def _keep_sockets_in_order() -> None:
    """Have multiprocessing's server use a folder of ours for its socket: its own would stay where we are killed."""
    settings = vars(multiprocessing.current_process())["_config"]
    if settings.get("tempdir") is None:
        settings["tempdir"] = str(process_folder("jobs"))


def _receive(connection: Connection) -> dict[str, Any] | None:
    """The next message; None where the process is gone."""
    try:
        message: dict[str, Any] = json.loads(connection.recv_bytes())
    except (EOFError, OSError):
        return None
    return message


def _death(exit_code: int, log: Path | None) -> JobFailure:
    if exit_code == -signal.SIGKILL:
        hint = "the machine may be out of memory: run fewer jobs at a time"
        return JobFailure("IncompatibleError", "its process was killed (SIGKILL)", hint, IncompatibleError.exit_code)
    how = f"was ended by {_signal_name(-exit_code)}" if exit_code < 0 else f"exited with {exit_code}"
    hint = "try it alone" if log is None else f"{log} may say more; try it alone"
    return JobFailure("Crash", f"its process {how}", hint, 1)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have no name
        return f"signal {number}"


def _kill_group(process: BaseProcess) -> None:
    if process.pid is None:  # never started
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Variables set for the processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _gpu_names() -> list[str]:
    """This machine's GPUs as CUDA_VISIBLE_DEVICES names them. CUDA itself, which forbids forks, is not asked."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = (name.strip() for name in visible.split(","))
        return list(itertools.takewhile(lambda name: name not in ("", "-1"), names))  # where CUDA stops, too
    import pynvml  # type: ignore[import-untyped]

    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        pynvml.nvmlShutdown()
    except pynvml.NVMLError:  # there is no driver, mostly
        return []
    return [str(number) for number in range(count)]


def _work(sender: Connection, function: str, arguments: str, log: str, gpus: list[str]) -> None:
    """The process's work."""
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)  # CUDA reads it when it is first used
    os.setpgid(0, 0)  # Ctrl-C reaches the parent alone, which ends the jobs
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parent = multiprocessing.parent_process()
    if parent is not None:  # a killed parent ends no job by itself: they would go on building for nobody
        end_group_with(parent.sentinel)
    lock = threading.Lock()

    def send(message: dict[str, Any]) -> None:
        data = json.dumps(message, allow_nan=False).encode()
        with lock:
            sender.send_bytes(data)

    code = 0
    try:
        with storage_errors(Path(log)), Path(log).open("ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        message = perform(function, json.loads(arguments), lambda value: send({"event": value}))
        if "failure" in message:
            sys.stderr.write(visible(message["failure"]["details"], keep="\n"))
        send(message)
    except KeyboardInterrupt:
        code = 130
    except (TypeError, ValueError, StorageError) as error:  # the result is no JSON value, or there is no log
        send({"failure": asdict(JobFailure.of(error))})
    sys.exit(code)

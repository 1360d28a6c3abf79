"""Functions in processes of their own: one that crashes or is killed costs one job and nothing else.

A job is plain values, so that other executors (another machine's, for one) can take the same jobs.
"""

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
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol, Self

from qvec_deploy.errors import IncompatibleError, QvecError

Tell = Callable[[Any], None]
"""Given to a job's function as its first argument: sends a JSON value to whoever watches."""

_GRACE_S = 10.0
"""What jobs get to clean up when they are ended."""


@dataclass(frozen=True)
class Job:
    """A call.

    Attributes:
        name: Unique among the jobs of an executor.
        function: `module:function`; called with a `Tell` and the arguments, it returns a JSON value.
        arguments: Keyword arguments, JSON values.
        gpus: GPUs that it needs.
        cpus: Cores that it uses, for executors that share them out.
    """

    name: str
    function: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    gpus: int = 0
    cpus: int = 1


@dataclass(frozen=True)
class Failure:
    """Why a job has no result.

    Attributes:
        kind: Name of the error's class.
        message: What is wrong.
        hint: What to do about it.
        exit_code: Of the error's class; 1 for a bug.
        details: The traceback of a bug; else empty.
    """

    kind: str
    message: str
    hint: str
    exit_code: int
    details: str = ""

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """An error as plain values."""
        if isinstance(error, QvecError):
            return cls(type(error).__name__, error.message, error.hint, error.exit_code)
        if _is_memory(error):
            return cls("IncompatibleError", "out of memory", "run fewer jobs at a time", IncompatibleError.exit_code)
        text = "".join(traceback.format_exception(error)).strip()
        return cls(type(error).__name__, text.splitlines()[-1], "this is a bug: report it with its details", 1, text)


@dataclass(frozen=True)
class Outcome:
    """How a job ended: with a result, a JSON value, or with a failure."""

    job: Job
    result: Any = None
    failure: Failure | None = None


class Executor(Protocol):
    """Runs jobs somewhere."""

    def gpus(self) -> int:
        """GPUs that it shares out."""

    def submit(self, job: Job) -> None:
        """Add a job; it starts while `outcomes` is read."""

    def outcomes(self) -> Iterator[Outcome]:
        """Every job as it ends, until none is left; more may be submitted meanwhile."""

    def close(self) -> None:
        """End what still runs."""


def _is_memory(error: Exception) -> bool:
    """Whether there was no room in memory: PyTorch, which is not imported for this, has errors of its own."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    refusals = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in refusals)


def too_few_gpus(job: Job, found: int, where: str) -> Failure:
    """Of a job that needs more GPUs than there are anywhere."""
    hint = "set train.device to cpu, or use a machine or a Ray cluster with GPUs"
    message = f"it needs {job.gpus} GPU and {where} has {found or 'none'}"
    return Failure("IncompatibleError", message, hint, IncompatibleError.exit_code)


def perform(function: str, arguments: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """Run a job here.

    Returns:
        Its `result`, or its `failure` as plain values.
    """
    try:
        module, _, name = function.partition(":")
        return {"result": getattr(import_module(module), name)(tell, **arguments)}
    except Exception as error:  # noqa: BLE001 - every error becomes this job's own
        return {"failure": asdict(Failure.of(error))}


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
        workers: Jobs at a time.
        preload: Modules that the server imports once for all jobs.
        logs: Folder for what jobs print, a file each; thrown away without one.
        on_event: Called with a job's name and what it tells.
    """

    def __init__(
        self,
        workers: int,
        *,
        preload: Sequence[str] = (),
        logs: Path | None = None,
        on_event: Callable[[str, Any], None] | None = None,
    ) -> None:
        self._workers, self._logs, self._on_event = workers, logs, on_event
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([*preload])
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

    def outcomes(self) -> Iterator[Outcome]:
        """Every job as it ends, until none is left; more may be submitted meanwhile."""
        while self._waiting or self._running:
            while (job := self._next()) is not None:
                if job.gpus > len(self._gpus):
                    yield Outcome(job, failure=too_few_gpus(job, len(self._gpus), "this machine"))
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
        process.start()
        sender.close()
        self._running[receiver] = _Running(job, process, gpus)

    def _log(self, job: Job) -> Path | None:
        return None if self._logs is None else self._logs / f"{job.name}.log"

    def _finish(self, connection: Connection, message: dict[str, Any] | None) -> Outcome:
        job, process = self._running[connection].job, self._running[connection].process
        process.join(_GRACE_S)  # a thread of its own may keep it from ending
        _kill_group(process)  # it, or what a killed job had started itself
        process.join()
        del self._running[connection]
        connection.close()
        if message is None:
            return Outcome(job, failure=_death(process.exitcode or 0, self._log(job)))
        failure = message.get("failure")
        return Outcome(job, message.get("result"), Failure(**failure) if failure is not None else None)


def _receive(connection: Connection) -> dict[str, Any] | None:
    """The next message; None where the process is gone."""
    try:
        message: dict[str, Any] = json.loads(connection.recv_bytes())
    except (EOFError, OSError):
        return None
    return message


def _death(exit_code: int, log: Path | None) -> Failure:
    if exit_code == -signal.SIGKILL:
        hint = "the machine may be out of memory: run fewer jobs at a time"
        return Failure("IncompatibleError", "its process was killed (SIGKILL)", hint, IncompatibleError.exit_code)
    how = f"was ended by {_signal_name(-exit_code)}" if exit_code < 0 else f"exited with {exit_code}"
    hint = "try it alone" if log is None else f"{log} may say more; try it alone"
    return Failure("Crash", f"its process {how}", hint, 1)


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
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with Path(log).open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    lock = threading.Lock()

    def send(message: dict[str, Any]) -> None:
        data = json.dumps(message, allow_nan=False).encode()
        with lock:
            sender.send_bytes(data)

    code = 0
    try:
        message = perform(function, json.loads(arguments), lambda value: send({"event": value}))
        if "failure" in message:
            sys.stderr.write(message["failure"]["details"])
        send(message)
    except KeyboardInterrupt:
        code = 130
    except (TypeError, ValueError) as error:  # the result is no JSON value
        send({"failure": asdict(Failure.of(error))})
    sys.exit(code)


def _end_with_parent() -> None:
    """A killed parent ends no child by itself: they would go on building for nobody."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.killpg(0, signal.SIGKILL)

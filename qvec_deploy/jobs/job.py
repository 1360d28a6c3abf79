"""A job as plain values, how it ends, and what runs jobs: any executor can take the same ones."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from qvec_deploy.errors import IncompatibleError, QvecError
from qvec_deploy.io.files import storage_error

SendEvent = Callable[[Any], None]
"""Given to a job's function as its first argument: sends a JSON value to whoever watches."""

OnEvent = Callable[[str, Any], None]
"""Called with a job's name and what it sends."""


@dataclass(frozen=True)
class Job:
    """A call.

    Attributes:
        name: Unique among the jobs of an executor.
        function: `module:function`; called with a `SendEvent` and the arguments, it returns a JSON value.
        arguments: Keyword arguments, JSON values.
        needs: Names of jobs that must have ended well before it starts (`scheduler.run_jobs`).
        gpus: GPUs that are its own while it runs.
        cpus: Cores that it uses, for executors that share them out.
    """

    name: str
    function: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    gpus: int = 0
    cpus: int = 1


@dataclass(frozen=True)
class JobFailure:
    """Why a job has no result.

    Attributes:
        kind: Name of the error's class.
        exit_code: The error class's exit code; 1 for a bug.
        details: The traceback of a bug; else empty.
    """

    kind: str
    message: str
    hint: str
    exit_code: int
    details: str = ""

    @classmethod
    def of(cls, error: Exception) -> JobFailure:
        """An error as plain values."""
        if isinstance(error, QvecError):
            return cls(type(error).__name__, error.message, error.hint, error.exit_code)
        if _is_memory(error):
            return cls("IncompatibleError", "out of memory", "run fewer jobs at a time", IncompatibleError.exit_code)
        if isinstance(error, OSError) and error.errno is not None:
            return cls.of(storage_error(error, Path("the system")))
        text = "".join(traceback.format_exception(error)).strip()
        return cls(type(error).__name__, text.splitlines()[-1], "this is a bug: report it with its details", 1, text)

    @classmethod
    def too_few_gpus(cls, job: Job, found: int, where: str) -> JobFailure:
        """Of a job that needs more GPUs than there are anywhere."""
        hint = "set train.device to cpu, or use a machine or a Ray cluster with GPUs"
        message = f"it needs {job.gpus} GPU and {where} has {found or 'none'}"
        return cls("IncompatibleError", message, hint, IncompatibleError.exit_code)


@dataclass(frozen=True)
class JobOutcome:
    """How a job ended: with a result, a JSON value, or with a failure.

    Attributes:
        because: Name of the job whose failure it shares because it needed that job; None for its own.
    """

    job: Job
    result: Any = None
    failure: JobFailure | None = None
    because: str | None = None

    @classmethod
    def of(cls, job: Job, answer: Mapping[str, Any]) -> JobOutcome:
        """From what `perform` returned, wherever it ran."""
        failure = answer.get("failure")
        return cls(job, answer.get("result"), JobFailure(**failure) if failure is not None else None)


class Executor(Protocol):
    """Runs jobs somewhere."""

    def gpus(self) -> int:
        """GPUs that it shares out."""

    def submit(self, job: Job) -> None:
        """Add a job; it starts while `outcomes` is read."""

    def outcomes(self) -> Iterator[JobOutcome]:
        """Every job as it ends, until none is left; more may be submitted meanwhile."""

    def close(self) -> None:
        """End what still runs."""


def perform(function: str, arguments: Mapping[str, Any], send: SendEvent) -> dict[str, Any]:
    """Run a job here.

    Returns:
        Its `result`, or its `failure` as plain values.
    """
    try:
        module, _, name = function.partition(":")
        return {"result": getattr(import_module(module), name)(send, **arguments)}
    except Exception as error:  # noqa: BLE001 - every error becomes this job's own
        return {"failure": asdict(JobFailure.of(error))}


def _is_memory(error: Exception) -> bool:
    """Whether there was no room in memory: PyTorch, which is not imported for this, has errors of its own."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    refusals = (
        "DefaultCPUAllocator",
        "CUDA error: out of memory",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "failed to map segment",
    )
    return isinstance(error, RuntimeError | ImportError) and any(words in str(error) for words in refusals)

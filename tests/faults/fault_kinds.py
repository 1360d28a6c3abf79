"""The faults, one row each: how they are brought about, and what a command may answer."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from commands_at_work import Case

OK = (0,)
STORAGE = (6,)


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        name: In the table.
        codes: Exit codes that answer it, beside the command's own where the fault did no harm.
        fail: Kind, and errno, of what the disk refuses from some operation on.
        under: The folder of a run that it refuses it in; the message must name a path in it.
        variables: Of the environment; a missing one where None.
        limits: What `resource` limits.
        umask: Of the process.
        signal: Sent while it runs.
        resumed_after: Seconds after which a stopped process goes on.
        cores: Whether all cores but one are taken away while it runs.
        clock_back: Whether the clock is set back while it runs.
        concerns: Which commands it is tried with.
    """

    name: str
    codes: tuple[int, ...] = ()
    fail: tuple[str, int] | None = None
    under: str = "out"
    variables: Mapping[str, str | None] = field(default_factory=dict)
    limits: Mapping[int, int] = field(default_factory=dict)
    umask: int | None = None
    signal: signal.Signals | None = None
    resumed_after: float = 0.0
    cores: bool = False
    clock_back: bool = False
    concerns: Callable[[Case], bool] = lambda case: True


def _measures(case: Case) -> bool:
    return case.measures


FAULTS: tuple[Fault, ...] = (
    Fault("disk full", STORAGE, fail=("space", errno.ENOSPC)),
    Fault("disk full: TMPDIR", STORAGE, fail=("space", errno.ENOSPC), under="tmp"),
    Fault("disk full: HOME", STORAGE, fail=("space", errno.ENOSPC), under="home"),
    Fault("target read-only", STORAGE, fail=("space", errno.EROFS)),
    Fault("EIO on read", STORAGE, fail=("read", errno.EIO), under="in"),
    Fault("EIO on fsync", STORAGE, fail=("sync", errno.EIO)),
    Fault("EIO on rename", STORAGE, fail=("rename", errno.EIO)),
    Fault("no HOME", variables={"HOME": "/proc/none", "XDG_CACHE_HOME": None}),
    Fault("no TMPDIR", variables={"TMPDIR": "/proc/none"}),
    Fault("TMPDIR elsewhere", variables={"TMPDIR": "OTHER"}),
    Fault("umask 077", umask=0o077),
    Fault("64 open files", STORAGE, limits={resource.RLIMIT_NOFILE: 64}),
    Fault("1.5 GB of memory", (4,), limits={resource.RLIMIT_DATA: 1_500_000_000}),
    Fault("SIGTERM", (130, -int(signal.SIGTERM)), signal=signal.SIGTERM),  # the latter before a command has begun
    Fault("SIGINT", (130,), signal=signal.SIGINT),
    Fault("SIGKILL", (-int(signal.SIGKILL),), signal=signal.SIGKILL),
    Fault("SIGSTOP 10 s", signal=signal.SIGSTOP, resumed_after=10.0, concerns=_measures),
    Fault("cores taken", cores=True, concerns=lambda case: len(os.sched_getaffinity(0)) > 1),
    Fault("clock set back", clock_back=True),
)

"""Processes end with the one that started them, also where that was killed and could end nothing itself."""

from __future__ import annotations

import ctypes
import os
import signal
from multiprocessing.connection import wait

_PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends.

    Args:
        parent: ID of the process that started it. Where that has ended before the kernel was asked, this one ends now.
    """
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    except (AttributeError, OSError):  # not Linux
        return
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def end_group_with(ends: int) -> None:
    """Have this process's group, with all that it may start, killed when another process ends, or this one.

    A fork does it, for a thread cannot while a library holds the interpreter. It must be called before threads are
    started.

    Args:
        ends: A descriptor that can be read once the other process has ended.
    """
    here, _ = os.pipe()
    if os.fork():
        os.close(here)  # the kernel closes the other end when this process ends
        return
    try:
        low, high = sorted((here, ends))
        os.closerange(0, low)
        os.closerange(low + 1, high)
        os.closerange(high + 1, max(os.sysconf("SC_OPEN_MAX"), 1 << 16))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # whoever ends the job in order still needs it until it has ended
        wait([here, ends])
    finally:
        os.killpg(0, signal.SIGKILL)

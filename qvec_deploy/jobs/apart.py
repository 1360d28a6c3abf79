"""Work with PyTorch, which takes seconds and half a gigabyte to load: here where it is loaded, else in another process.

The other process works at the same time as this one, and its memory is free again when it has ended.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from qvec_deploy.errors import IncompatibleError, QvecError
from qvec_deploy.jobs.parent_death import end_with_parent


def call(function: str, *arguments: Any) -> Any:
    """The result of a function that needs PyTorch.

    Args:
        function: `module:name`; its arguments and what it returns can be pickled.

    Raises:
        QvecError: As the function; IncompatibleError where the other process was killed.
    """
    return submit(function, *arguments)()


def submit(function: str, *arguments: Any) -> Callable[[], Any]:
    """Have a function called as `call` does; the result is there when what is returned is called.

    Where PyTorch is loaded in this process and the other one was not started, the function is called then; and so it is
    where there is no PyTorch, which it will say.
    """
    global _other
    if _other is None and ("torch" in sys.modules or importlib.util.find_spec("torch") is None):
        return partial(_function(function), *arguments)
    if _other is None or _other.dead:
        _other = _Other()
        atexit.register(end)
    return _other.submit(function, arguments)


def end() -> None:
    """End the other process; the next call starts a new one."""
    global _other
    if _other is not None:
        _other.end()
        _other = None


@contextlib.contextmanager
def ended() -> Iterator[None]:
    """`end` after the block, however it ends."""
    try:
        yield
    finally:
        end()


class _Other:
    """The other process, which answers one call after another."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            path = [place for place in sys.path if place]  # this process's, wherever it has its modules from
            code = (
                f"import sys; sys.path[:] = {path!r}; import {__name__} as apart; apart.serve(*map(int, sys.argv[1:]))"
            )
            # -P: a module in the working directory must not shadow an installed one.
            command = [sys.executable, "-P", "-c", code, str(theirs.fileno()), str(os.getpid())]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        self._connection = Connection(ours.detach())
        self._waiting: deque[Future[Any]] = deque()
        self._lock, self.dead = threading.Lock(), False
        threading.Thread(target=self._receive, daemon=True).start()

    def submit(self, function: str, arguments: tuple[Any, ...]) -> Callable[[], Any]:
        future: Future[Any] = Future()
        with self._lock:
            if self.dead:  # since it was asked
                raise self._death()
            self._waiting.append(future)
            with contextlib.suppress(OSError):  # it dies, which the result tells
                self._connection.send((function, arguments))
        return future.result

    def _receive(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                value, error = self._connection.recv()
                first = self._waiting.popleft()
                first.set_exception(error) if error is not None else first.set_result(value)
        death = self._death()
        with self._lock:
            self.dead = True
        for future in self._waiting:
            future.set_exception(death)

    def _death(self) -> IncompatibleError:
        code = self._process.wait()
        how = f"was ended by signal {-code}" if code < 0 else f"exited with {code}"
        hint = "the machine may be out of memory" if code == -signal.SIGKILL else "try again, and report it"
        return IncompatibleError(f"the process that works with PyTorch {how}", hint=hint)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


_other: _Other | None = None


def _function(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    return function


def _answer(function: str, arguments: tuple[Any, ...]) -> tuple[Any, BaseException | None]:
    try:
        return _function(function)(*arguments), None
    except (QvecError, MemoryError) as error:
        return None, error
    except Exception as error:  # noqa: BLE001 - it is raised where it was asked for, and may not be picklable
        return None, RuntimeError(f"{error}\n\n{traceback.format_exc()}")


def serve(descriptor: int, parent: int) -> None:
    """Answer calls until nobody asks any more."""
    end_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends this process
    connection = Connection(descriptor)
    os.dup2(2, 1)  # the parent's standard output is not for what libraries print
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        connection.send(_answer(function, arguments))

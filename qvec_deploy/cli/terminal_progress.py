"""Stages on the terminal: live bars on a TTY, one line a stage elsewhere."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, SpinnerColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from qvec_deploy.cli.console import DescriptionColumn
from qvec_deploy.progress import Advance, Progress

WORTH_A_LINE_S = 0.2  # nine small candidates would fill the screen with zeros
_SOON_S, _REGULARLY_S = 2.0, 60.0
"""When work that goes on is told of where there are no bars."""
TITLES = {
    "plan": "plan",
    "images": "list the images",
    "receiver": "try the float receiver",
    "coordinates": "compare coordinates",
    "select": "try lambdas",
    "confirm": "confirm the choice",
    "quantize": "patch, quantize, pack",
    "export": "export the structure",
    "lower": "write ONNX",
    "check": "check against PyTorch",
    "footprint": "load time and memory",
    "compile": "build the engine",
    "load": "load all engines",
    "accuracy": "accuracy",
    "latency": "latency",
    "wait": "wait for the machine",
}


@contextlib.contextmanager
def signs_of_life(console: Console, title: str, *, quiet: bool = False) -> Iterator[Advance]:
    """Tell that the block is still at work, where no bar shows it: soon, if not `quiet`, and then once a minute.

    The block may call the yielded function with (done, total).
    """
    ended, start, reached = threading.Event(), time.monotonic(), ""

    def advance(done: int, total: int) -> None:
        nonlocal reached
        reached = f"  {done}/{total}"

    def tell() -> None:
        pause = _REGULARLY_S if quiet else _SOON_S
        while not ended.wait(pause):
            console.print(f"{time.monotonic() - start:7.0f} s  {title}{reached} ...", style="dim")
            pause = _REGULARLY_S

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield advance
    finally:
        ended.set()
        teller.join()


class LiveDisplay:
    """Bars while the `with` lasts, on a terminal; whoever shows something adds and removes them."""

    def __init__(self, console: Console, *columns: ProgressColumn) -> None:
        self._console = console
        self._bars = Bars(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._start = time.monotonic()

    def __enter__(self) -> Self:
        """Show it."""
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Take it away."""
        self._bars.stop()


class QuietProgress(Progress):
    """Shows nothing on stderr but, once a minute, what takes so long."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    @contextlib.contextmanager
    def show(self, name: str, detail: str) -> Iterator[Advance]:
        """A line a minute."""
        with signs_of_life(self._console, _title(name, detail), quiet=True) as advance:
            yield advance


class TerminalProgress(Progress):
    """Shows stages on stderr."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    @contextlib.contextmanager
    def show(self, name: str, detail: str) -> Iterator[Advance]:
        """A bar while the stage runs, or lines where there is no terminal; a line when it is done and took a while."""
        title, start = _title(name, detail), time.monotonic()
        with busy(self._console, title) as advance:
            yield advance
        seconds = time.monotonic() - start
        if seconds >= WORTH_A_LINE_S:
            self._console.print(f"{seconds:7.1f} s  {title}", style="dim")


@contextlib.contextmanager
def busy(console: Console, title: str) -> Iterator[Advance]:
    """Show on a terminal, or tell in lines elsewhere, that the block is at work."""
    if not console.is_terminal:
        with signs_of_life(console, title) as advance:
            yield advance
        return
    columns = (SpinnerColumn(), DescriptionColumn(), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, console=console, transient=True) as bars:
        task = bars.add_task(title, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def _title(name: str, detail: str) -> str:
    return f"{TITLES.get(name, name)}  {detail}".rstrip()

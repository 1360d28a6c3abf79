"""Stages on the terminal: live bars on a TTY, one line a stage elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from qvec_deploy.progress import Advance, Progress

WORTH_A_LINE_S = 0.2  # nine small candidates would fill the screen with zeros
TITLES = {
    "plan": "plan",
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


class TerminalProgress(Progress):
    """Shows stages on stderr."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    @contextlib.contextmanager
    def show(self, name: str, detail: str) -> Iterator[Advance]:
        """A bar while the stage runs, a line when it is done and took a while."""
        title = f"{TITLES.get(name, name)}  {detail}".rstrip()
        start = time.monotonic()
        text = TextColumn("{task.description}")
        columns = (SpinnerColumn(), text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Bars(*columns, console=self._console, transient=True, disable=not self._console.is_terminal) as bars:
            task = bars.add_task(title, total=None)
            yield lambda done, total: bars.update(task, completed=done, total=total)
        seconds = time.monotonic() - start
        if seconds >= WORTH_A_LINE_S:
            self._console.print(f"[dim]{seconds:7.1f} s[/]  {title}", highlight=False)

"""The one door to the terminal: everything that is printed goes through here, and nothing in it is obeyed."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TextIO

import click

from qvec_deploy.errors import StorageError
from qvec_deploy.visible import visible

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer
    from rich.console import Console

    from qvec_deploy.report.page import Table

_STDERR = 2
_NOT_ASCII = re.compile(r"[^ -~\n]")


class Printed:
    """Whether a command has printed its JSON document; `main` hands one to every command as click's `obj`."""

    document = False


class _Output(io.FileIO):
    """A standard stream; where nobody reads on, as behind `| head`, the command still ends as it would have."""

    _refused = False

    def write(self, data: Buffer) -> int:
        """Write, or act as if.

        Raises:
            StorageError: Standard output is a file that cannot be written, as on a full disk; told once.
        """
        try:
            return super().write(data) or 0
        except BrokenPipeError:
            pass
        except OSError as error:
            if self.fileno() != _STDERR and not self._refused:
                self._refused = True
                raise StorageError(
                    f"standard output: {error.strerror}", hint="write it to a place that has some space"
                ) from error
        return memoryview(data).nbytes


class VisibleStream(io.TextIOWrapper):
    """A standard stream as libraries see it: what they print, warn of and log is shown and not obeyed.

    Attributes:
        direct: The same stream for this module, whose own styles are escape sequences.
    """

    def __init__(self, own: TextIO) -> None:
        buffer = io.BufferedWriter(_Output(own.fileno(), "w", closefd=False))
        settings: dict[str, Any] = {"encoding": own.encoding, "errors": "backslashreplace", "write_through": True}
        super().__init__(buffer, line_buffering=True, **settings)
        self._own = own  # were it gone, its file would be closed
        self.direct = io.TextIOWrapper(buffer, line_buffering=own.isatty(), **settings)

    def write(self, text: str) -> int:
        """Write; bars of libraries begin with a carriage return, and overwrite only themselves."""
        start = len(text) - len(text.removeprefix("\r"))
        super().write(text[:start] + visible(text[start:], keep="\n\t"))
        return len(text)


def show_streams() -> None:
    """Make standard output and standard error show what they are given, whatever prints."""
    sys.stdout, sys.stderr = VisibleStream(sys.stdout), VisibleStream(sys.stderr)


def _direct(stream: TextIO) -> TextIO:
    """A standard stream below rich's and our own."""
    stream = getattr(stream, "rich_proxied_file", stream)
    return getattr(stream, "direct", stream)


def say(*lines: str, err: bool = False) -> None:
    """Print lines; what would break one in two is shown."""
    _write("".join(f"{visible(line)}\n" for line in lines), sys.stderr if err else sys.stdout)


def _write(text: str, stream: TextIO) -> None:
    stream.write(text)
    stream.flush()


def say_error(message: str, hint: str) -> None:
    """Print what went wrong and what to do; further lines of a message begin with blanks, as none of ours does."""
    for title, text in (("error", message), ("hint", hint)):
        first, *others = text.split("\n")
        say(f"{title}: {first}", *(f"  {line}" for line in others), err=True)


def echo_document(text: str) -> None:
    """Print the one JSON document of a command; an error after it, such as a missed gate, adds no second one.

    Every character that is not ASCII is inside a string, where JSON has a way to write it.
    """
    _write(_NOT_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], text) + "\n", sys.stdout)
    context = click.get_current_context(silent=True)
    if context is not None and isinstance(context.obj, Printed):
        context.obj.document = True


def echo_json(value: Any) -> None:
    """Print one JSON document."""
    echo_document(json.dumps(value, indent=2, allow_nan=False))


def show(value: dict[str, Any], as_json: bool, print_text: Callable[[], None]) -> None:
    """Print a command's result: as its one JSON document, or as text."""
    if as_json:
        echo_json(value)
    else:
        print_text()


def terminal(width: int = 120) -> Console:
    """Standard output, for text with styles and for tables.

    Args:
        width: Columns to fill at least where nobody looks at a terminal, so that a table in a file is not cut.
    """
    from qvec_deploy.cli.console import VisibleConsole

    console = VisibleConsole(_direct(sys.stdout))
    if not console.is_terminal:
        console.width = max(console.width, width)
    return console


def errors_terminal() -> Console:
    """Standard error, for progress."""
    from qvec_deploy.cli.console import VisibleConsole

    return VisibleConsole(_direct(sys.stderr), stderr=True)


def print_table(table: Table, console: Console | None = None, styles: Mapping[str, str] | None = None) -> None:
    """Print a table of the page model."""
    from qvec_deploy.report.render_terminal import render_table

    (console or terminal()).print(render_table(table, styles))

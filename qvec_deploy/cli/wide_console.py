"""The console that tables are printed on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def wide_console(width: int = 120, **settings: Any) -> Console:
    """A console that is at least so wide where it is no terminal: a file or a pipe has room for whole lines."""
    from rich.console import Console

    console = Console(**settings)
    return console if console.is_terminal else Console(width=max(console.width, width), **settings)

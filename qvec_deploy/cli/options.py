"""What commands share: options, progress, and printing a document or a table."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qvec_deploy.errors import RecipeError

if TYPE_CHECKING:
    from rich.console import Console

    from qvec_deploy.progress import Progress
    from qvec_deploy.report.page import Table

PATH = click.Path(path_type=Path)

recipe_option = click.option("--recipe", "recipe_path", type=PATH, required=True, help="The recipe, a YAML file.")
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="FIELD=VALUE", help="Change a field of the recipe; repeatable."
)
batch_size_option = click.option(
    "--batch-size",
    "batch_sizes",
    type=click.IntRange(1),
    multiple=True,
    help="Images in a run; repeatable.  [default: the first recipe's]",
)
threads_option = click.option(
    "--threads", type=click.IntRange(1), help="Threads of every engine.  [default: its recipe's]"
)
blocks_option = click.option(
    "--blocks", type=click.IntRange(2), help="Latency samples of every engine.  [default: the first recipe's]"
)
data_option = click.option(
    "--data", "data_root", type=PATH, help="The images' folder, if it is not where the recipe says."
)
model_arg_option = click.option(
    "--model-arg", "arguments", multiple=True, metavar="NAME=VALUE", help="As in receiver.model_args."
)
offline_option = click.option("--offline", is_flag=True, help="Use the Hub's local cache only.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of tables.")
address_option = click.option("--address", help="Of a running Ray cluster that shares this file system.")
quiet_option = click.option("--quiet", is_flag=True, help="Print results and errors only.")


def progress_shown(quiet: bool) -> Progress:
    """Progress on stderr, or no more than a sign of life a minute."""
    from rich.console import Console

    from qvec_deploy.cli.terminal_progress import QuietProgress, TerminalProgress

    console = Console(stderr=True)
    return QuietProgress(console) if quiet else TerminalProgress(console)


def at_work(title: str) -> contextlib.AbstractContextManager[Any]:
    """Show that a command is at work, if it takes more than a moment."""
    from rich.console import Console

    from qvec_deploy.cli.terminal_progress import busy

    return busy(Console(stderr=True), title)


class Printed:
    """Whether a command has printed its JSON document; `main` hands one to every command as click's `obj`."""

    document = False


def echo_document(text: str) -> None:
    """Print the one JSON document of a command; an error after it, such as a missed gate, adds no second one."""
    click.echo(text)
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
    """Standard output, which takes every text as it is.

    Args:
        width: Columns to fill at least where nobody looks at a terminal, so that a table in a file is not cut.
    """
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = max(console.width, width)
    return console


def print_table(table: Table, console: Console | None = None, styles: Mapping[str, str] | None = None) -> None:
    """Print a table of the page model."""
    from qvec_deploy.report.render_terminal import render_table

    (console or terminal()).print(render_table(table, styles))


def model_arguments(texts: Sequence[str]) -> dict[str, Any]:
    """`--model-arg NAME=VALUE` options as arguments for timm; values are JSON, or text."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise RecipeError(f"--model-arg {text} is not NAME=VALUE", hint="for example --model-arg img_size=32")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found

"""What commands share: options and progress."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qvec_deploy.cli.terminal import errors_terminal
from qvec_deploy.errors import RecipeError

if TYPE_CHECKING:
    from qvec_deploy.progress import Progress

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
    from qvec_deploy.cli.terminal_progress import QuietProgress, TerminalProgress

    console = errors_terminal()
    return QuietProgress(console) if quiet else TerminalProgress(console)


def at_work(title: str) -> contextlib.AbstractContextManager[Any]:
    """Show that a command is at work, if it takes more than a moment."""
    from qvec_deploy.cli.terminal_progress import busy

    return busy(errors_terminal(), title)


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

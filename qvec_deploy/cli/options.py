"""What commands share: options, progress, and printing a document."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qvec_deploy.errors import RecipeError

if TYPE_CHECKING:
    from qvec_deploy.progress import Progress

recipe_option = click.option(
    "--recipe", "recipe_path", type=click.Path(path_type=Path), required=True, help="The recipe, a YAML file."
)
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="FIELD=VALUE", help="Change a field of the recipe; repeatable."
)
offline_option = click.option("--offline", is_flag=True, help="Use the Hub's local cache only.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of tables.")
address_option = click.option("--address", help="Of a running Ray cluster that shares this file system.")
quiet_option = click.option("--quiet", is_flag=True, help="Print results and errors only.")


def progress_shown(quiet: bool) -> Progress:
    """Progress on stderr, or none."""
    from rich.console import Console

    from qvec_deploy.cli.terminal_progress import TerminalProgress
    from qvec_deploy.progress import Progress

    return Progress() if quiet else TerminalProgress(Console(stderr=True))


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


def model_arguments(texts: Sequence[str]) -> dict[str, Any]:
    """`--model-arg NAME=VALUE` options as arguments for timm; values are JSON, or text.

    Raises:
        RecipeError: One that is not NAME=VALUE.
    """
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

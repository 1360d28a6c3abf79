"""What commands share: options, progress, and printing a document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from qvec_deploy.bundle.progress import Progress

recipe_option = click.option(
    "--recipe", "recipe_path", type=click.Path(path_type=Path), required=True, help="The recipe, a YAML file."
)
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="FIELD=VALUE", help="Change a field of the recipe."
)
offline_option = click.option("--offline", is_flag=True, help="Use the Hub's local cache only.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of tables.")
quiet_option = click.option("--quiet", is_flag=True, help="Print results and errors only.")


def progress_shown(quiet: bool) -> Progress:
    """Progress on stderr, or none."""
    from rich.console import Console

    from qvec_deploy.bundle.progress import Progress
    from qvec_deploy.cli.progress import TerminalProgress

    return Progress() if quiet else TerminalProgress(Console(stderr=True))


def echo_json(value: Any) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(value, indent=2, allow_nan=False))

"""`plan`: every decision of a recipe, before anything is read or built."""

from __future__ import annotations

from pathlib import Path

import click

from qvec_deploy.cli.options import echo_json, json_option, offline_option, recipe_option, set_option


@click.command()
@recipe_option
@set_option
@offline_option
@json_option
def plan(recipe_path: Path, overrides: tuple[str, ...], offline: bool, as_json: bool) -> None:
    """Print every decision of a recipe; no weights are read."""
    from qvec_deploy.build import Workshop
    from qvec_deploy.cli.show import plan_document, print_plan
    from qvec_deploy.recipe import load_recipe

    plans = Workshop(offline).plans(load_recipe(recipe_path, overrides))
    if as_json:
        document = plan_document(plans[-1])
        echo_json({**document, "candidates": [made.recipe.name for made in plans]})
    else:
        print_plan(plans[-1])
        click.echo(f"candidates: {', '.join(made.recipe.name for made in plans)}")

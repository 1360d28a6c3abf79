"""`build`: a recipe becomes a measured bundle."""

from __future__ import annotations

from pathlib import Path

import click

from qvec_deploy.cli.options import (
    json_option,
    offline_option,
    progress_shown,
    quiet_option,
    recipe_option,
    set_option,
)
from qvec_deploy.cli.tables import print_report


@click.command()
@recipe_option
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The bundle's directory; out/NAME by default.")
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@set_option
@offline_option
@quiet_option
@json_option
def build(
    recipe_path: Path,
    output: Path | None,
    force: bool,
    overrides: tuple[str, ...],
    offline: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Build a recipe and its baselines, measure them, and leave a bundle."""
    from qvec_deploy.build import Workshop, run
    from qvec_deploy.bundle.finish import require_engine, require_gates
    from qvec_deploy.recipe import load_recipe

    recipe = load_recipe(recipe_path, overrides)
    directory = output or Path("out") / recipe.name
    bundle = run(recipe, directory, force=force, workshop=Workshop(offline, progress_shown(quiet or as_json)))
    _show_report(directory / "report.json", as_json)
    if not as_json:
        click.echo(f"\nbundle  {directory}\n" + (f"report  {directory}/report.html" if _has_report(directory) else ""))
    require_engine(bundle)
    require_gates(bundle)


def _has_report(directory: Path) -> bool:
    return (directory / "report.html").is_file()


def _show_report(path: Path, as_json: bool) -> None:
    from qvec_deploy.report.document import from_json

    if not path.is_file():
        return
    data = path.read_bytes()
    if as_json:
        click.echo(data.decode())
    else:
        print_report(from_json(data))

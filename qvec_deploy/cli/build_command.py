"""`build`: a recipe becomes a measured bundle, or many recipes many."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qvec_deploy.cli import options
from qvec_deploy.cli.report_table import print_report
from qvec_deploy.cli.terminal import say
from qvec_deploy.errors import RecipeError

if TYPE_CHECKING:
    from qvec_deploy.jobs.executors import ExecutorName


@click.command()
@click.option(
    "--recipe",
    "recipe_paths",
    type=options.PATH,
    required=True,
    multiple=True,
    help="The recipe, a YAML file; repeatable.",
)
@click.option(
    "-o",
    "--output",
    type=options.PATH,
    help="The bundle's directory, out/NAME by default; of several builds the folder with all of them, out by default.",
)
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@click.option("--jobs", type=click.IntRange(1), help="Of several builds: so many at a time.")
@click.option(
    "--executor",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Of several builds: where.",
)
@click.option("--accept-float", is_flag=True, help="Build although the float receiver's answers do not fit the labels.")
@options.address_option
@options.set_option
@options.offline_option
@options.quiet_option
@options.json_option
def build(
    recipe_paths: tuple[Path, ...],
    output: Path | None,
    force: bool,
    jobs: int | None,
    executor: ExecutorName,
    accept_float: bool,
    address: str | None,
    overrides: tuple[str, ...],
    offline: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """Build a recipe and its baselines, measure them, and leave a bundle.

    Several recipes, or one with a `matrix`, are built side by side: one table at the end, and the exit code of the
    worst outcome. The same command again builds what is missing.
    """
    from qvec_deploy.builder.context import BuildContext
    from qvec_deploy.builder.pipeline import build as build_bundle
    from qvec_deploy.bundle.write import require_engine, require_gates
    from qvec_deploy.io.machine_lock import MachineLock
    from qvec_deploy.jobs.executors import check_address, start_executor
    from qvec_deploy.recipe import load_recipes

    check_address(executor, address)
    loaded = [load_recipes(path, overrides) for path in recipe_paths]
    if accept_float:
        loaded = [tuple(recipe.accepting_float() for recipe in recipes) for recipes in loaded]
    if len(loaded) > 1 or len(loaded[0]) > 1:
        from qvec_deploy.cli.sweep_command import run_sweep

        recipes = [recipe for recipes in loaded for recipe in recipes]
        return run_sweep(
            recipes,
            output or Path("out"),
            jobs=jobs,
            force=force,
            offline=offline,
            quiet=quiet,
            as_json=as_json,
            start=functools.partial(start_executor, executor, address=address),
        )
    if executor != "local":
        raise RecipeError("--executor is for several builds", hint="leave it out, or give the recipe a `matrix`")
    recipe = loaded[0][0]
    directory = output or Path("out") / recipe.name
    machine = MachineLock.here()
    context = BuildContext(offline, options.progress_shown(quiet or as_json), machine=machine)
    with machine.shared(context.progress.stage("wait")):
        built = build_bundle(recipe, directory, force=force, context=context)
    if built.report is not None:
        print_report(built.report, as_json)
    if not as_json:
        say("", f"bundle  {directory}")
        if built.report is not None:
            say(f"report  {directory}/report.html")
    not_run = built.bundle.manifest.engine.not_run
    if not_run is not None:
        said = f"engine  built, and not run here: {not_run}; nor are parity, speed and gates known"
        say(said, err=as_json)
    require_engine(built.bundle)
    require_gates(built.bundle)
    return 0

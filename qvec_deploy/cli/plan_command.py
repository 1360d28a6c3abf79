"""`plan`: every decision of a recipe, before anything is read or built; on request, how fast it can get at best."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qvec_deploy.cli.options import (
    batch_size_option,
    json_option,
    offline_option,
    progress_shown,
    quiet_option,
    recipe_option,
    set_option,
)
from qvec_deploy.cli.terminal import say, show
from qvec_deploy.errors import RecipeError

if TYPE_CHECKING:
    from qvec_deploy.bench.roofline.outlook import Outlook
    from qvec_deploy.bench.roofline.roofline_values import Device
    from qvec_deploy.planner import Plan


@click.command()
@recipe_option
@set_option
@offline_option
@click.option("--roofline", is_flag=True, help="Predict the shortest time at float, at int8 and at the recipe's bits.")
@click.option("--device", metavar="NAME", help="Predict for this GPU, or `cpu`, measured here; default: as the target.")
@batch_size_option
@click.option("--tensors", is_flag=True, help="Print what happens to every tensor, too.")
@quiet_option
@json_option
def plan(
    recipe_path: Path,
    overrides: tuple[str, ...],
    offline: bool,
    roofline: bool,
    device: str | None,
    batch_sizes: tuple[int, ...],
    tensors: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Print what a build would do with what is there, or what it can gain at best; no weights are read."""
    if not roofline and (device is not None or batch_sizes):
        raise RecipeError("--device and --batch-size say what to predict for", hint="add --roofline")
    with progress_shown(quiet).stage("plan", str(recipe_path)):
        from qvec_deploy.builder.preview import preview, require_files
        from qvec_deploy.cli.plan_text import plan_document, print_plan, print_tensors
        from qvec_deploy.cli.roofline_table import print_roofline, roofline_document
        from qvec_deploy.recipe import load_recipes

        recipes = load_recipes(recipe_path, overrides)
        found = preview(recipes[0], offline=offline) if len(recipes) == 1 else None
    if found is None:
        if roofline:
            raise RecipeError("--roofline looks at one build", hint="fix the matrix's fields: --set matrix={}")
        from qvec_deploy.cli.sweep_command import list_builds

        list_builds(recipes, offline=offline, as_json=as_json)
        return
    ahead = _look_ahead(found.plan, device, batch_sizes) if roofline else None
    document = plan_document(found) | ({"roofline": roofline_document(*ahead)} if ahead is not None else {})

    def print_text() -> None:
        print_plan(found)
        if tensors:
            say("")
            print_tensors(found.plan)
        if ahead is not None:
            say("")
            print_roofline(*ahead)

    show(document, as_json, print_text)
    require_files(found)


def _look_ahead(plan: Plan, name: str | None, batch_sizes: tuple[int, ...]) -> tuple[Device, str, list[Outlook]]:
    """Device, where its figures are from, and one outlook per batch size, ascending."""
    from qvec_deploy.bench.roofline.operations import count_operations
    from qvec_deploy.bench.roofline.outlook import look_ahead

    device, source = _find_device(plan, name)
    model, sizes = plan.architecture, sorted(set(batch_sizes or plan.recipe.target.batch_sizes))
    operations = count_operations(model.name, model.classes, plan.recipe.receiver.model_args, model.input_shape)
    return device, source, [look_ahead(plan, operations, device, size) for size in sizes]


def _find_device(plan: Plan, name: str | None) -> tuple[Device, str]:
    from qvec_deploy.bench.environment import available_threads
    from qvec_deploy.bench.roofline.devices import CPU, LISTED, find_gpu_here, find_listed, measure_device

    target = plan.recipe.target
    if name == CPU or (name is None and target.on_cpu):
        return measure_device(target.threads or available_threads()), "measured here"
    listed = find_listed(name) if name is not None else find_gpu_here()
    if listed is None:
        raise RecipeError(
            f"runtime `{target.runtime}` needs a GPU, and none that is listed is here",
            hint=f"name one with --device: {', '.join(LISTED)}",
        )
    return listed.device, listed.sheet

"""`init`: a first recipe for a checkpoint."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qvec_deploy.cli.options import PATH, at_work, json_option, model_arg_option, model_arguments, offline_option
from qvec_deploy.cli.terminal import say, show
from qvec_deploy.errors import StorageError

if TYPE_CHECKING:
    from qvec_deploy.io.state_dict import Weights


@click.command()
@click.argument("checkpoint")
@click.option("--model", metavar="NAME", help="timm's name of the model.  [default: found by looking at the file]")
@model_arg_option
@click.option("--weights", type=click.Choice(["raw", "ema"]), help="Which to take from a file that holds both.")
@click.option("--images", type=PATH, help="A folder of images: train, val, test, one folder per class, or no labels.")
@click.option("-o", "--output", type=PATH, help="The recipe.  [default: after the checkpoint, in this folder]")
@click.option("--force", is_flag=True, help="Replace the recipe if it exists.")
@offline_option
@json_option
def init(
    checkpoint: str,
    model: str | None,
    arguments: tuple[str, ...],
    weights: Weights | None,
    images: Path | None,
    output: Path | None,
    force: bool,
    offline: bool,
    as_json: bool,
) -> None:
    """Look at a checkpoint, at images and at this machine, and write a recipe to begin with.

    CHECKPOINT is a file, or hf://org/repo@revision/path.
    """
    with at_work(f"look at  {checkpoint}") as advance:
        from qvec_deploy.builder.preview import preview
        from qvec_deploy.builder.starter import Wanted, first_recipe
        from qvec_deploy.cli.plan_text import plan_document, print_plan
        from qvec_deploy.io.files import write_bytes

        folder = output.parent if output is not None else Path()
        name = output.stem if output is not None else None
        wanted = Wanted(checkpoint, folder, model, model_arguments(arguments), weights, images, name)
        recipe, text = first_recipe(wanted, offline=offline, advance=advance)
        found = preview(recipe, offline=offline)
    path = output or Path(f"{recipe.name}.yaml")
    if path.is_dir():
        raise StorageError(f"{path} is a folder", hint="name the recipe's file in it with -o")
    if path.exists() and not force:
        raise StorageError(f"{path} exists", hint="name another with -o, or replace it with --force")
    write_bytes(path, text.encode())

    def print_text() -> None:
        print_plan(found)
        say("", f"written to {path}. Read it, then: qvec-deploy build --recipe {shlex.quote(str(path))}")

    show({"written": str(path), **plan_document(found)}, as_json, print_text)

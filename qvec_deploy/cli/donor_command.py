"""`qvec-deploy donor`: make donors, and with them quantization vectors."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qvec_deploy.cli import options
from qvec_deploy.cli.terminal import errors_terminal, print_table, say, show

if TYPE_CHECKING:
    from qvec_deploy.donors.train_config import TrainingProgress

_TITLES = {"fp": "float fine-tune", "qat": "quantization-aware fine-tune"}


@click.group()
def donor() -> None:
    """Fine-tune donors, whose difference is a quantization vector."""


@donor.command()
@options.recipe_option
@click.option("-o", "--output", type=options.PATH, required=True, help="The donor's directory.")
@click.option("--force", is_flag=True, help="Start over; replace the donor that is there.")
@options.set_option
@options.offline_option
@options.quiet_option
@options.json_option
def train(
    recipe_path: Path,
    output: Path,
    force: bool,
    overrides: tuple[str, ...],
    offline: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Fine-tune a base in float and on a grid, and write the vector between the two.

    After a kill or Ctrl-C the same command goes on where the last saved state was.
    """
    from qvec_deploy.donors.donor_recipe import load_donor_recipe

    recipe = load_donor_recipe(recipe_path, overrides)
    record = _train(recipe, output, force=force, offline=offline, quiet=quiet or as_json)
    show(record, as_json, lambda: _print_record(record, output))


def _train(recipe: Any, output: Path, *, force: bool, offline: bool, quiet: bool) -> dict[str, Any]:
    import dataclasses

    import torch

    from qvec_deploy.bench.environment import capture_environment
    from qvec_deploy.donors.donor import train_donor

    environment = dataclasses.asdict(capture_environment(torch.get_num_threads()))
    try:
        with _bars(quiet) as watch:
            return train_donor(recipe, output, force=force, offline=offline, environment=environment, watch=watch)
    except KeyboardInterrupt:
        say("the same command goes on from the last saved state", err=True)
        raise


@contextlib.contextmanager
def _bars(quiet: bool) -> Iterator[Callable[[str, TrainingProgress], None]]:
    """A bar a run on a terminal, with loss and time left; elsewhere lines, few of them when quiet."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = errors_terminal()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bars:
        tasks: dict[str, Any] = {}
        told = time.monotonic()

        def watch(run: str, progress: TrainingProgress) -> None:
            nonlocal told
            if bars.disable and time.monotonic() - told > (60 if quiet else 5):
                told = time.monotonic()
                at = f"step {progress.step}/{progress.steps}, loss {progress.loss:.3f}"
                console.print(f"{progress.seconds:7.1f} s  {_TITLES[run]}, {at} ...", style="dim")
            if run not in tasks:
                tasks[run] = bars.add_task(_TITLES[run], total=progress.steps, loss=progress.loss)
            bars.update(tasks[run], completed=progress.step, loss=progress.loss)
            if progress.step == progress.steps:
                bars.remove_task(tasks[run])
            if progress.step == progress.steps and not quiet:
                console.print(f"{progress.seconds:7.1f} s  {_TITLES[run]}, loss {progress.loss:.3f}", style="dim")

        yield watch


def _print_record(record: dict[str, Any], output: Path) -> None:
    from qvec_deploy.report.page import Table

    val, grid = record["val"], record["recipe"]["scheme"]
    if val is None:
        say(f"accuracy was not measured: {record['val_missing']}")
    else:
        weights = {
            "float fine-tune": "fp_top1",
            f"the same after PTQ, {grid['bits']} bits {grid['granularity']}, {grid['method']}": "ptq_top1",
            "quantization-aware fine-tune on that grid": "qat_top1",
        }
        rows = tuple((title, f"{100 * val[key]:.1f} %") for title, key in weights.items())
        print_table(Table("", ("Weights", f"Top-1 on {val['images']} images"), rows, "lr"))
    say("", f"norm of the vector  {100 * record['vector']['share']:.2f} % of the weights'")
    say(f"vector  {output / 'vector.safetensors'}")

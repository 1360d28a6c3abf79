"""`bench`: bundles side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qvec_deploy.cli import options
from qvec_deploy.cli.report_table import print_report
from qvec_deploy.cli.terminal import say
from qvec_deploy.errors import RecipeError


def _cores(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    """`0,1` as numbers."""
    if text is None:
        return None
    try:
        cores = sorted({int(part) for part in text.split(",")})
    except ValueError:
        cores = [-1]
    if cores[0] < 0:
        raise click.BadParameter(f"{text} is no list of cores such as 0,1")
    return tuple(cores)


@click.command()
@click.argument("bundles", nargs=-1, required=True, type=options.PATH)
@click.option(
    "--lowering", "lowerings", multiple=True, help="Run every bundle with this lowering instead of its own; repeatable."
)
@options.threads_option
@options.batch_size_option
@options.blocks_option
@click.option(
    "--max-seconds",
    type=click.FloatRange(0, min_open=True),
    help="Time for all latency samples.  [default: the first recipe's]",
)
@click.option("--cores", callback=_cores, metavar="0,1", help="Measure on these cores only.")
@click.option("--l2", type=click.Choice(("warm", "cold")), help="Empty the GPU's L2 cache before every run, or do not.")
@click.option(
    "--scenario",
    "scenarios",
    type=click.Choice(("single_stream", "offline")),
    multiple=True,
    help="MLPerf's scenario; repeatable.",
)
@options.data_option
@click.option("--no-accuracy", is_flag=True, help="Measure latency, memory and size only; no image is opened.")
@click.option("-o", "--output", type=options.PATH, help="Write the report into this directory.")
@options.quiet_option
@options.json_option
def bench(
    bundles: tuple[Path, ...],
    max_seconds: float | None,
    cores: tuple[int, ...] | None,
    l2: str | None,
    scenarios: tuple[str, ...],
    no_accuracy: bool,
    output: Path | None,
    quiet: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Measure bundles side by side, interleaved; the first is the baseline."""
    from qvec_deploy.bundle.side_by_side import bench_bundles
    from qvec_deploy.io.output_places import require_report_folder
    from qvec_deploy.report.write_report import write_report, write_tables

    if no_accuracy and settings["data_root"] is not None:
        raise RecipeError("--data names images, and --no-accuracy wants none", hint="leave one of them out")
    if output is not None:
        require_report_folder(output)
    asked: dict[str, Any] = {
        "max_seconds": max_seconds,
        "cores": cores,
        "l2": l2,
        "scenarios": tuple(dict.fromkeys(scenarios)) or None,
    }
    report = bench_bundles(
        bundles,
        evaluate=not no_accuracy,
        measure={name: value for name, value in asked.items() if value is not None},
        progress=options.progress_shown(quiet or as_json),
        **settings,
    )
    if output is not None:
        write_report(report, output)
        write_tables({report.title: report}, output)
    print_report(report, as_json, scenarios)
    if output is not None and not as_json:
        say("", f"report  {output}/report.html")

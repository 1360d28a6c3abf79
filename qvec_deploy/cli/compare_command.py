"""`compare`: a bundle against the one it may replace."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qvec_deploy.cli import options
from qvec_deploy.cli.terminal import echo_document, print_table, terminal

if TYPE_CHECKING:
    from qvec_deploy.bench.comparison import Comparison


class _Finite(click.FloatRange):
    """A range that NaN is not in, which no comparison would tell."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        return number if math.isfinite(number) else self.fail(f"{value} is not a number", param, ctx)


_SHARE, _POINTS = _Finite(0, 100), _Finite(0, 100)


@click.command()
@click.argument("old", type=options.PATH)
@click.argument("new", type=options.PATH)
@click.option("--stored", is_flag=True, help="Measure nothing: take the samples in the two bundles' reports.")
@click.option("--strict", is_flag=True, help="Exit 3 also for what is UNSURE.")
@click.option(
    "--level",
    type=_Finite(0.0001, 0.5),
    metavar="P",
    default=0.01,
    show_default=True,
    help="Probability of a false alarm in each test.",
)
@click.option(
    "--accuracy-tolerance",
    type=_POINTS,
    metavar="POINTS",
    default=0.5,
    show_default=True,
    help="Points of top-1 that do not matter. A loss counts if a test finds it and it was measured to be more.",
)
@click.option(
    "--latency-tolerance",
    type=_SHARE,
    metavar="SHARE",
    default=0.02,
    show_default=True,
    help="Share of latency that does not matter.",
)
@click.option(
    "--size-tolerance",
    type=_SHARE,
    metavar="SHARE",
    default=0.01,
    show_default=True,
    help="Share of the bytes that does not matter.",
)
@options.threads_option
@options.batch_size_option
@options.blocks_option
@options.data_option
@click.option("-o", "--output", type=options.PATH, help="Write comparison.md and .json here.")
@options.quiet_option
@options.json_option
def compare(
    old: Path,
    new: Path,
    strict: bool,
    level: float,
    accuracy_tolerance: float,
    latency_tolerance: float,
    size_tolerance: float,
    output: Path | None,
    quiet: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Say what changed from OLD to NEW, in words that a test stands behind; exit 3 when NEW is a regression."""
    from qvec_deploy.bench.comparison import Tolerances, comparison_json
    from qvec_deploy.bundle.compare import compare_bundles, require_no_regression
    from qvec_deploy.bundle.compare_stored import CompareOptions
    from qvec_deploy.io.files import write_bytes
    from qvec_deploy.io.output_places import require_report_folder
    from qvec_deploy.report.comparison_page import comparison_page
    from qvec_deploy.report.render_markdown import render_markdown

    measured_only = {"--threads": "threads", "--blocks": "blocks", "--data": "data_root"}
    useless = [option for option, name in measured_only.items() if settings[name] is not None]
    if settings["stored"] and useless:
        raise click.UsageError(f"--stored measures nothing, so {', '.join(useless)} cannot go with it")
    if output is not None:
        require_report_folder(output)
    tolerances = Tolerances(level, latency_tolerance, accuracy_tolerance, size_tolerance)
    comparison = compare_bundles(
        old, new, CompareOptions(tolerances, **settings), options.progress_shown(quiet or as_json)
    )
    document = comparison_json(comparison)
    if output is not None:
        write_bytes(output / "comparison.json", document)
        write_bytes(output / "comparison.md", render_markdown(comparison_page(comparison), "").encode())
    if as_json:
        echo_document(document.decode())
    else:
        _print(comparison, output)
    require_no_regression(comparison, strict=strict)


def _print(comparison: Comparison, output: Path | None) -> None:
    from qvec_deploy.report.comparison_page import changes_table, verdict_table

    console = terminal(160)
    print_table(verdict_table(comparison), console)
    console.print()
    changes = changes_table(comparison)
    if changes is not None:
        print_table(changes, console)
        console.print()
    for doubt in comparison.warnings:
        text = f"warning: {doubt.warning} ({doubt.subject}): {doubt.detail} {doubt.warning.remedy}"
        console.print(text, style="yellow")
    for text in comparison.doubts():
        console.print(f"unsure: {text}", style="yellow")
    console.print(comparison.outcome(), style="bold")
    if output is not None:
        console.print(f"comparison  {output}/comparison.md")

"""A report as a table on the terminal."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from qvec_deploy.cli.wide_console import wide_console

if TYPE_CHECKING:
    from qvec_deploy.bench.results import Report

SHOWN = 2
"""Details of a warning on the terminal; the report has all of them."""


def print_report(report: Report, scenarios: Collection[str] = ()) -> None:
    """The table, latency by batch size where there are several, what was chosen, the gates and the warnings."""
    from rich.text import Text

    from qvec_deploy.bench.summary import numbered_warnings, rows
    from qvec_deploy.report.columns import batch_table, comparison_table
    from qvec_deploy.report.prose import setup
    from qvec_deploy.report.render_terminal import render_candidates, render_table, verdict_lines
    from qvec_deploy.report.timing_section import scenarios as scenario_table

    console = wide_console()
    computed = rows(report)
    console.print(render_candidates(comparison_table(report, computed, on_terminal=True), report.title))
    batches = batch_table(computed)
    if batches is not None and len(report[report.baseline].latency) > 1:
        console.print(render_candidates(batches, "\nLatency by batch size"))
    table = scenario_table(report, scenarios)
    if table is not None:
        console.print(Text(), render_table(table), sep="\n")
        console.print(table.note, style="dim", highlight=False, markup=False)
    console.print("\n" + setup(report), style="dim", highlight=False, markup=False)
    for line in verdict_lines(report):
        console.print(line, highlight=False)
    for doubt in numbered_warnings(report):
        console.print(f"warning: {doubt.title}. {doubt.remedy}", style="yellow", highlight=False, markup=False)
        for subject, detail in doubt.details[:SHOWN]:
            console.print(f"  {subject}: {detail}", highlight=False, markup=False)
        more = [subject for subject, _ in doubt.details[SHOWN:]]
        if more:
            console.print(f"  and {', '.join(dict.fromkeys(more))}: see the report", highlight=False, markup=False)

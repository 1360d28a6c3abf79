"""A report as a table on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qvec_deploy.report.values import Report

SHOWN = 2
"""Details of a warning on the terminal; the report has all of them."""


def print_report(report: Report) -> None:
    """The table, what was chosen, the gates and the warnings."""
    from rich.console import Console

    from qvec_deploy.report.console import summary_table, verdict_lines
    from qvec_deploy.report.prose import setup
    from qvec_deploy.report.summary import numbered_warnings

    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, 120))
    console.print(summary_table(report))
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

"""A report as a table on the terminal."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from qvec_deploy.cli.terminal import echo_document, print_table, terminal

if TYPE_CHECKING:
    from qvec_deploy.bench.results import Report


def print_report(report: Report, as_json: bool = False, scenarios: Collection[str] = ()) -> None:
    """The decision, the table, latency by batch size where there are several, what was chosen, gates and warnings."""
    from qvec_deploy.report.report_json import to_json

    if as_json:
        echo_document(to_json(report).decode())
    else:
        _print(report, scenarios)


def _print(report: Report, scenarios: Collection[str]) -> None:
    from qvec_deploy.bench.decision import decide
    from qvec_deploy.bench.summary import numbered_warnings, rows
    from qvec_deploy.bench.warnings import INPUT_DOUBTS
    from qvec_deploy.report.columns import batch_table, comparison_table
    from qvec_deploy.report.prose import setup
    from qvec_deploy.report.render_terminal import render_candidates, verdict_lines
    from qvec_deploy.report.timing_section import scenarios as scenario_table

    console, decision = terminal(), decide(report)
    if decision is not None:
        console.print(decision.sentence, style="bold")
        console.print()
    computed = rows(report)
    console.print(render_candidates(comparison_table(report, computed, on_terminal=True), report.title))
    batches = batch_table(computed)
    if batches is not None and len(report[report.baseline].latency) > 1:
        console.print()
        console.print(render_candidates(batches, "Latency by batch size"))
    table = scenario_table(report, scenarios)
    if table is not None:
        console.print()
        print_table(table, console)
        console.print(table.note, style="dim")
    console.print()
    console.print(setup(report), style="dim")
    for line in verdict_lines(report):
        console.print(line)
    for doubt in numbered_warnings(report):
        console.print(f"warning: {doubt.title} ({len(doubt.details)}). {doubt.remedy}", style="yellow")
        if doubt.title in INPUT_DOUBTS:
            for subject, detail in doubt.details:
                console.print(f"  {subject}: {detail}")

"""Report -> a compact table for the terminal."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from qvec_deploy.report.formatting import short
from qvec_deploy.report.summary import rows
from qvec_deploy.report.table import columns
from qvec_deploy.report.values import Report

COMPACT = ("size", "top1", "median", "speed_up", "peak")


def summary_table(report: Report) -> Table:
    """Candidate, stored bits, size, top-1, latency, speed-up, peak memory; the selected one in bold."""
    shown = [column for column in columns(report) if column.key in COMPACT]
    table = Table(title=Text(report.title), title_justify="left", box=None, pad_edge=False)
    table.add_column("Candidate", overflow="fold")
    table.add_column("Bits\nstored", justify="right")
    for column in shown:
        table.add_column(Text(f"{column.title}\n{column.unit}"), justify="right")
    for row in rows(report):
        # Text, not str: a name is data, and rich would read its brackets as markup.
        cells = [row.candidate.name, short(row.candidate.stored_bits_per_weight)]
        cells += [str(column.cell(row)) for column in shown]
        table.add_row(*(Text(cell) for cell in cells), style="bold" if row.selected else "")
    return table

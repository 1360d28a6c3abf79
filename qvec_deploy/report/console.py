"""Report -> a compact table for the terminal, and the lines below it: what was selected, which gates were missed."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from qvec_deploy.bench.results import Report
from qvec_deploy.bench.summary import rows
from qvec_deploy.formatting import short
from qvec_deploy.report import page
from qvec_deploy.report import report_verdict as verdict
from qvec_deploy.report.table import batch_columns, columns

COMPACT = ("size", "top1", "median", "speed_up", "peak")
MARK = " *"


def summary_table(report: Report) -> Table:
    """Candidate, stored bits, size, top-1, latency, speed-up, peak memory; the selected one in bold, with a star."""
    computed = rows(report)
    shown = [column for column in columns(report, computed) if column.key in COMPACT]
    table = Table(title=Text(report.title), title_justify="left", box=None, pad_edge=False)
    if report.selected is not None:
        table.caption, table.caption_justify = Text("* what the bundle ships"), "left"
    table.add_column("Candidate", overflow="fold")
    table.add_column("Bits\nstored", justify="right")
    for column in shown:
        table.add_column(Text(f"{column.title}\n{column.unit}"), justify="right")
    for row in computed:
        # Text, not str: a name is data, and rich would read its brackets as markup.
        name = row.candidate.name + (MARK if row.selected else "")
        cells = [name, short(row.candidate.stored_bits_per_weight)]
        cells += [str(column.cell(row)) for column in shown]
        table.add_row(*(Text(cell) for cell in cells), style="bold" if row.selected else "")
    return table


def batch_table(report: Report) -> Table:
    """Candidate and batch size: latency with its interval, p90, p99, variation, throughput, speed-up."""
    table = Table(title=Text("\nLatency by batch size"), title_justify="left", box=None, pad_edge=False)
    shown = batch_columns()
    table.add_column("Candidate", overflow="fold")
    for title, _ in shown:
        table.add_column(title, justify="right")
    for row in rows(report):
        for entry in row.latency:
            name = row.candidate.name + (MARK if row.selected else "")
            cells = (Text(str(cell(row, entry))) for _, cell in shown)
            table.add_row(Text(name), *cells, style="bold" if row.selected else "")
    return table


def listing_table(listing: page.Table) -> Table:
    """A small table; the row of what ships, or comes first, in bold with a star."""
    table = Table(title=Text(listing.title), title_justify="left", box=None, pad_edge=False)
    for title, side in zip(listing.columns, listing.alignment, strict=True):
        table.add_column(Text(title), justify="right" if side == "r" else "left", overflow="fold")
    for first, *others in listing.rows:
        marked = first == listing.shipped
        table.add_row(Text(first + MARK if marked else first), *map(Text, others), style="bold" if marked else "")
    return table


def verdict_lines(report: Report) -> list[Text]:
    """How the selected candidate was chosen, what must not be overlooked about it, and a line for every gate."""
    lines = []
    if report.selection is not None:
        lines.append(Text(f"selected: {verdict.chosen(report)}"))
        lines += [Text(f"note: {remark}", style="yellow") for remark in verdict.remarks(report)]
    for gate in report.gates:
        text = f"gate {gate.name}: {verdict.verdict_of(gate)}; wanted {gate.wanted}, found {gate.found}"
        lines.append(Text(text, style="" if gate.passed else "bold red"))
    return lines

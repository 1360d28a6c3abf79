"""Tables of a page as rich tables, and the lines below a report: what was selected, which gates were missed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table as RichTable
from rich.text import Text

from qvec_deploy.bench.results import Report
from qvec_deploy.report import report_verdict as verdict
from qvec_deploy.report.page import VERDICTS, CandidateTable, Table
from qvec_deploy.visible import visible

MARK = " *"
STYLES = {"good": "green", "bad": "bold red", "unsure": "yellow"}


def render_table(table: Table, styles: Mapping[str, str] | None = None) -> RichTable:
    """A small table; the row of what the bundle holds, or comes first, in bold with a star.

    Args:
        styles: Rich's style of a row, by its first cell.
    """
    shown = _empty(table.title)
    for title, side in zip(table.columns, table.alignment, strict=True):
        shown.add_column(_shown(title, keep="\n"), justify="right" if side == "r" else "left", overflow="fold")
    for first, *others in table.rows:
        marked = first == table.shipped
        cells = [first + MARK if marked else first, *others]
        style = "bold" if marked else (styles or {}).get(first, "")
        shown.add_row(*(_shown(cell, STYLES.get(VERDICTS.get(cell, ""), "")) for cell in cells), style=style)
    return shown


def render_candidates(table: CandidateTable, title: str) -> RichTable:
    """A row per line of every candidate; the selected one in bold, with a star."""
    shown = _empty(title)
    if any(entry.selected for entry in table.candidates):
        shown.caption, shown.caption_justify = _shown("* in the bundle"), "left"
    shown.add_column("Candidate", overflow="fold")
    for name, unit in table.columns:
        shown.add_column(_shown(f"{name}\n{unit}" if unit else name, keep="\n"), justify="right")
    for entry in table.candidates:
        for line in entry.lines:
            cells = [entry.name + (MARK if entry.selected else ""), *map(str, line)]
            shown.add_row(*map(_shown, cells), style="bold" if entry.selected else "")
    return shown


def verdict_lines(report: Report) -> Sequence[Text]:
    """How the selected candidate was chosen, what must not be overlooked about it, and a line for every gate."""
    lines = []
    if report.selection is not None:
        lines.append(_shown(f"selected: {verdict.chosen(report)}"))
        lines += [_shown(f"note: {remark}", "yellow") for remark in verdict.remarks(report)]
    for gate in report.gates:
        text = f"gate {gate.name}: {verdict.verdict_of(gate)}; wanted {gate.wanted}, found {gate.found}"
        lines.append(_shown(text, "" if gate.passed else "bold red"))
    return lines


def _shown(text: str, style: str = "", keep: str = "") -> Text:
    """A text that is no markup, with everything in it visible."""
    return Text(visible(text, keep), style)


def _empty(title: str) -> RichTable:
    return RichTable(title=_shown(title), title_justify="left", box=None, pad_edge=False)

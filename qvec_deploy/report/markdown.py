"""Report -> Markdown: for a pull request, a model card, or a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from qvec_deploy.report import prose, verdict
from qvec_deploy.report.summary import Row, numbered_warnings, rows
from qvec_deploy.report.table import batch_columns, columns
from qvec_deploy.report.values import Report
from qvec_deploy.report.verdict import Listing

SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def to_markdown(report: Report) -> str:
    """The report as GitHub-flavoured Markdown: paragraph, table, footnotes, candidates, environment."""
    computed = rows(report)
    sections = [
        f"# {escape(report.title)}",
        escape(prose.headline(report, computed)),
        escape(prose.setup(report)),
        _comparison(report, computed),
        _batches(computed),
        _gates(report),
        _selection(report),
        _warnings(report),
        "## How it was measured",
        "\n".join(f"- **{term}.** {escape(text)}" for term, text in prose.method(report, computed)),
        "## Candidates",
        "\n".join(f"- **{escape(row.candidate.name)}**: {_facts(prose.facts(report, row))}" for row in computed),
        "## Environment",
        _table(["", ""], [[escape(term), escape(text)] for term, text in prose.environment_facts(report)], "ll"),
        f"Recipe {escape(report.recipe)}, {escape(report.created_by)}.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def escape(text: str) -> str:
    """Text that Markdown shows as it is: no cell, line, tag, link or emphasis comes out of it.

    Brackets stay where they cannot make a link, so that intervals read well in the source too.
    """
    flat = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*|]|\](?=[(\[:])|(?<!\w)_|_(?!\w))", r"\\\1", flat)


def _comparison(report: Report, computed: Sequence[Row]) -> str:
    shown = columns(report)
    titles = ["Candidate", *(escape(f"{column.title} ({column.unit})") for column in shown)]
    body = [[_name(row), *(escape(str(column.cell(row))) for column in shown)] for row in computed]
    return _table(titles, body, "l" + "r" * len(shown))


def _batches(computed: Sequence[Row]) -> str:
    """All batch sizes, where there is more than the one in the comparison."""
    if max(len(row.latency) for row in computed) < 2:
        return ""
    shown = batch_columns()
    body = [
        [_name(row), *(escape(str(cell(row, entry))) for _, cell in shown)] for row in computed for entry in row.latency
    ]
    table = _table(["Candidate", *(title for title, _ in shown)], body, "l" + "r" * len(shown))
    return f"## Latency by batch size\n\n{table}"


def _name(row: Row) -> str:
    marks = "".join(f"⁽{str(mark).translate(SUPERSCRIPTS)}⁾" for mark in row.marks)
    name = escape(row.candidate.name)
    return f"**{name}**{marks}" if row.selected else f"{name}{marks}"


def _table(titles: Sequence[str], body: Iterable[Sequence[str]], alignment: str) -> str:
    rule = ["--:" if side == "r" else ":--" for side in alignment]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (titles, rule, *body))


def _gates(report: Report) -> str:
    listing = verdict.gates(report)
    return f"## Gates\n\n{_listing(listing)}" if listing is not None else ""


def _selection(report: Report) -> str:
    if report.selection is None:
        return ""
    sentence = " ".join((f"Selected: {verdict.chosen(report)}", *verdict.remarks(report)))
    parts = ["## Selection", escape(sentence)]
    for listing in (verdict.finalists(report), verdict.donors(report)):
        if listing is not None:
            parts += [f"{escape(listing.title)}:", _listing(listing)]
    return "\n\n".join(parts)


def _listing(listing: Listing) -> str:
    body = []
    for first, *others in listing.rows:
        name = f"**{escape(first)}**" if first == listing.shipped else escape(first)
        body.append([name, *(escape(cell) for cell in others)])
    return _table([escape(title) for title in listing.columns], body, listing.alignment)


def _warnings(report: Report) -> str:
    entries = [
        f"{entry.number}. **{escape(entry.title.capitalize())}.** {escape(entry.remedy)}\n"
        + "\n".join(f"   - {escape(subject)}: {escape(detail)}" for subject, detail in entry.details)
        for entry in numbered_warnings(report)
    ]
    return "## Warnings\n\n" + "\n".join(entries) if entries else ""


def _facts(entries: Iterable[tuple[str, str]]) -> str:
    return escape("; ".join(f"{term.lower()}: {text}" for term, text in entries)) + "."

"""Report -> Markdown: for a pull request, a model card, or a terminal."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from qvec_deploy.bench.results import Report
from qvec_deploy.bench.summary import CandidateRow, numbered_warnings, rows
from qvec_deploy.report import accuracy_section as accuracy
from qvec_deploy.report import overview, prose
from qvec_deploy.report import report_verdict as verdict
from qvec_deploy.report import timing_section as timing
from qvec_deploy.report.environment_facts import environment_facts
from qvec_deploy.report.html_listing import Listing
from qvec_deploy.report.overview import Overview
from qvec_deploy.report.table import batch_columns, columns

_AUTOLINK = re.compile(
    r"((?:https?|ftp):(?=//)|www(?=\.)|#(?=\d)|gh-(?=\d)|(?<!\w)@(?=\w)|@(?=[\w-]+\.\w))", re.IGNORECASE
)
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def to_markdown(report: Report) -> str:
    """The report as GitHub-flavoured Markdown: what a pull request needs in sight, the rest folded."""
    computed = rows(report)
    sections = [
        f"# {escape(report.title)}",
        escape(prose.headline(report, computed)),
        escape(prose.setup(report)),
        _gates(report),
        comparison(report, computed),
        warnings(report),
        _section("Accuracy", accuracy.answers(report, computed)),
        _batches(computed),
        _section("Parts of a run", timing.stages(report)),
        _folded("MLPerf's scenarios", listing_text(timing.scenarios(report))),
        _section("Roofline", timing.predicted(report, computed)),
        _selection(report),
        _folded("Classes", listing_text(accuracy.by_class(report))),
        _folded("Changed answers", listing_text(accuracy.changes(report))),
        _folded("How it was measured", _terms((*prose.method(report, computed), *timing.definitions(report)))),
        _folded("Candidates", "\n".join(_candidate(report, row) for row in computed)),
        _folded("Environment", _terms(environment_facts(report))),
        f"Recipe {escape(report.recipe)}, {escape(report.created_by)}.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def escape(text: str) -> str:
    """Text that Markdown shows as it is: no cell, line, tag, link, mention, emphasis or formula comes out of it.

    GitHub makes links of addresses and of `#12`, and calls people, even where characters are escaped; a comment in
    between keeps it from that, and nobody sees it. Brackets stay where they cannot make a link, so that intervals read
    well in the source too.
    """
    flat = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    shown = re.sub(r"([\\`*|~]|\](?=[(\[:])|(?<!\w)_|_(?!\w))", r"\\\1", flat)
    return _AUTOLINK.sub(r"\1<!-- -->", shown).replace("$", "<span>$</span>")


def overview_markdown(shown: Overview) -> str:
    """Several reports as Markdown: what they ship side by side, then each report's own table, folded."""
    best = shown.best.report
    sections = [
        f"# {len(shown.standings)} bundles on {escape(best.dataset)}",
        escape(overview.headline(shown)),
        listing_text(overview.listing(shown)),
    ]
    for standing in shown.standings:
        own = standing.report
        computed = rows(own)
        parts = (escape(prose.headline(own, computed)), comparison(own, computed), _gates(own), warnings(own))
        sections.append(_folded(standing.name, "\n\n".join(part for part in parts if part)))
    return "\n\n".join([*sections, f"{escape(best.created_by)}."]) + "\n"


def comparison(report: Report, computed: Sequence[CandidateRow]) -> str:
    """The main table: a row per candidate."""
    shown = columns(report, computed)
    titles = ["Candidate", *(escape(f"{column.title} ({column.unit})") for column in shown)]
    body = [[_name(row), *(escape(str(column.cell(row))) for column in shown)] for row in computed]
    return _table(titles, body, "l" + "r" * len(shown))


def _batches(computed: Sequence[CandidateRow]) -> str:
    """A row per candidate and batch size; empty where nothing was timed."""
    if not any(row.latency for row in computed):
        return ""
    shown = batch_columns()
    body = [
        [_name(row), *(escape(str(cell(row, entry))) for _, cell in shown)] for row in computed for entry in row.latency
    ]
    table = _table(["Candidate", *(title for title, _ in shown)], body, "l" + "r" * len(shown))
    return f"## Latency\n\n{table}"


def _name(row: CandidateRow) -> str:
    marks = "".join(f"⁽{str(mark).translate(SUPERSCRIPTS)}⁾" for mark in row.marks)
    name = escape(row.candidate.name)
    return f"**{name}**{marks}" if row.selected else f"{name}{marks}"


def _table(titles: Sequence[str], body: Iterable[Sequence[str]], alignment: str) -> str:
    rule = ["--:" if side == "r" else ":--" for side in alignment]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (titles, rule, *body))


def _gates(report: Report) -> str:
    return _section("Gates", verdict.gates(report))


def _selection(report: Report) -> str:
    if report.selection is None:
        return ""
    sentence = " ".join((f"Selected: {verdict.chosen(report)}", *verdict.remarks(report)))
    parts = ["## Selection", escape(sentence)]
    for listing in (verdict.finalists(report), verdict.donors(report)):
        if listing is not None:
            parts += [f"{escape(listing.title)}:", listing_text(listing)]
    return "\n\n".join(parts)


def _section(title: str, listing: Listing | None) -> str:
    return f"## {title}\n\n{listing_text(listing)}" if listing is not None else ""


def _folded(title: str, text: str) -> str:
    """A section that GitHub shows when it is asked to; empty without text."""
    if not text:
        return ""
    summary = html.escape(" ".join(title.split()))
    return f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>"


def _terms(entries: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"- **{escape(term)}.** {escape(text)}" for term, text in entries)


def _candidate(report: Report, row: CandidateRow) -> str:
    return f"- **{escape(row.candidate.name)}**: {_facts(prose.facts(report, row))}"


def listing_text(listing: Listing | None) -> str:
    """A small table with its note; empty without one."""
    if listing is None:
        return ""
    body = []
    for first, *others in listing.rows:
        name = f"**{escape(first)}**" if first == listing.shipped else escape(first)
        body.append([name, *(escape(cell) for cell in others)])
    table = _table([escape(title) for title in listing.columns], body, listing.alignment)
    return f"{table}\n\n{escape(listing.note)}" if listing.note else table


def warnings(report: Report) -> str:
    """The doubts, numbered; empty without any."""
    entries = [
        f"{entry.number}. **{escape(entry.title.capitalize())}.** {escape(entry.remedy)}\n"
        + "\n".join(f"   - {escape(subject)}: {escape(detail)}" for subject, detail in entry.details)
        for entry in numbered_warnings(report)
    ]
    return "## Warnings\n\n" + "\n".join(entries) if entries else ""


def _facts(entries: Iterable[tuple[str, str]]) -> str:
    return escape("; ".join(f"{term.lower()}: {text}" for term, text in entries)) + "."

"""A page -> GitHub-flavoured Markdown: for a pull request, a model card, or a terminal."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from functools import singledispatch

from qvec_deploy.report.page import (
    VERDICTS,
    Beside,
    Block,
    CandidateLines,
    CandidateTable,
    Cards,
    Commands,
    Doubts,
    Facts,
    Fold,
    HeadlineTile,
    Page,
    Points,
    Prose,
    Section,
    Table,
    Verbatim,
    groups,
)
from qvec_deploy.visible import visible

_AUTOLINK = re.compile(
    r"((?:https?|ftp):(?=//)|www(?=\.)|#(?=\d)|gh-(?=\d)|(?<!\w)@(?=\w)|@(?=[\w-]+\.\w))", re.IGNORECASE
)
_MARKER = re.compile(r"^(\d{1,9}(?=[.)](?: |$))|(?=#{1,6}(?: |$)|>|[-+](?:[ -]|$)))")
"""Where a line is a heading, a quotation, a list or a rule for what it begins with."""
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def render_markdown(page: Page, figures_in: str) -> str:
    """A page without its figures; long tables are folded."""
    top = [f"# {escape(page.title)}", escape(page.kicker)]
    if page.answer is not None:
        answer = page.answer
        pill = f" ({escape(answer.pill.text)})" if answer.pill is not None else ""
        top.append(f"**{escape(answer.name)}** {escape(answer.text)}{pill}")
    top += [_blocks(page.lead, figures_in), _tiles(page.tiles), _blocks(page.opening, figures_in)]
    sections = [_section(section, figures_in) for section in page.shown]
    return "\n\n".join(part for part in [*top, *sections, escape(page.footer)] if part) + "\n"


def _section(section: Section, figures_in: str) -> str:
    text = _blocks(section.blocks, figures_in)
    return folded(section.title, text) if section.folded else f"## {escape(section.title)}\n\n{text}"


def _tiles(tiles: Sequence[HeadlineTile]) -> str:
    return "\n".join(
        f"- **{escape(tile.term)}:** {escape(f'{tile.value} {tile.unit}')}; {escape('; '.join(tile.notes))}."
        for tile in tiles
    )


def _blocks(blocks: Sequence[Block], figures_in: str) -> str:
    parts = []
    for kind, found in groups(blocks):
        if kind == "figure":
            titles = "; ".join(getattr(block, "title", "") for block in found)
            parts.append(escape(f"Figures in {figures_in}: {titles}."))
            continue
        for block in found:
            if isinstance(block, Fold):
                pill = f" ({block.pill.text})" if block.pill is not None else ""
                parts.append(folded(f"{block.title}{pill}", _blocks(block.blocks, figures_in)))
            elif isinstance(block, Beside):
                parts.append(_blocks((*block.left, *block.right), figures_in))
            else:
                parts.append(_text(block))
    return "\n\n".join(part for part in parts if part)


@singledispatch
def _text(block: object) -> str:
    raise TypeError(f"no Markdown for {type(block).__name__}")


@_text.register
def _prose(block: Prose) -> str:
    return escape(block.text)


@_text.register
def _table(block: Table) -> str:
    text = table_text(block)
    if block.folded:
        return folded(block.title, text)
    return f"### {escape(block.title)}\n\n{text}" if block.titled else text


@_text.register
def candidate_table(block: CandidateTable) -> str:
    """A row per line of every candidate."""
    titles = ["Candidate", *(escape(f"{title} ({unit})" if unit else title) for title, unit in block.columns)]
    body = [[_name(entry), *(escape(str(cell)) for cell in line)] for entry in block.candidates for line in entry.lines]
    table = table_rows(titles, body, "l" + "r" * len(block.columns))
    return f"{table}\n\n{escape(block.note)}" if block.note else table


@_text.register
def _facts(block: Facts) -> str:
    heading = f"### {escape(block.title)}\n\n" if block.title else ""
    return heading + "\n".join(f"- **{escape(term)}.** {escape(text)}" for term, text in block.entries)


@_text.register
def _doubts(block: Doubts) -> str:
    return "\n\n".join(
        folded(
            f"{entry.number}. {entry.title.capitalize()} ({len(entry.details)}). {entry.remedy}",
            "\n".join(f"- {escape(subject)}: {escape(detail)}" for subject, detail in entry.details),
        )
        for entry in block.entries
    )


@_text.register
def _cards(block: Cards) -> str:
    lines = []
    for card in block.entries:
        facts = escape("; ".join(f"{term.lower()}: {text}" for term, text in card.facts))
        lines.append(f"- **{escape(card.name)}**: {facts}.")
    return "\n".join(lines)


@_text.register
def _points(block: Points) -> str:
    return "\n".join(f"- {escape(entry)}" for entry in block.entries)


@_text.register
def _verbatim(block: Verbatim) -> str:
    quoted = "\n".join(f"    {visible(line)}" for line in block.text.rstrip("\n").split("\n"))
    return f"{escape(block.title)}:\n\n{quoted}"


@_text.register
def _commands(block: Commands) -> str:
    lines = "\n".join(map(visible, block.lines))
    return f"```bash\n{lines}\n```"


def _name(entry: CandidateLines) -> str:
    marks = "".join(f"⁽{str(mark).translate(_SUPERSCRIPTS)}⁾" for mark in entry.marks)
    name = escape(entry.name)
    named = f"**{name}**{marks}" if entry.selected else f"{name}{marks}"
    return f"{named}<br>{escape(entry.what)}" if entry.what else named


def escape(text: str) -> str:
    """Text that Markdown shows as it is: no cell, line, tag, link, mention, emphasis or formula comes out of it.

    GitHub makes links of addresses and of `#12`, and calls people, even where characters are escaped; a comment in
    between keeps it from that, and nobody sees it. Brackets stay where they cannot make a link, so that intervals read
    well in the source too.
    """
    flat = _flat(text).replace("&", "&amp;").replace("<", "&lt;")
    shown = re.sub(r"([\\`*|~]|\](?=[(\[:])|(?<!\w)_|_(?!\w))", r"\\\1", flat)
    shown = _MARKER.sub(r"\1\\", shown)
    return _AUTOLINK.sub(r"\1<!-- -->", shown).replace("$", "<span>$</span>")


def _flat(text: str) -> str:
    """Text in one line, in which everything is visible."""
    return visible(" ".join(re.split(r"[ \t\n]+", text)).strip())


def table_rows(titles: Sequence[str], body: Iterable[Sequence[str]], alignment: str) -> str:
    """Lines of a Markdown table; every text is escaped already."""
    rule = ["--:" if side == "r" else ":--" for side in alignment]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (titles, rule, *body))


def table_text(table: Table) -> str:
    """A small table with its note."""
    body = []
    for first, *others in table.rows:
        name = f"**{escape(first)}**" if first == table.shipped else escape(first)
        body.append([name, *(f"**{cell}**" if cell in VERDICTS else escape(cell) for cell in others)])
    text = table_rows([escape(title) for title in table.columns], body, table.alignment)
    return f"{text}\n\n{escape(table.note)}" if table.note else text


def folded(title: str, text: str) -> str:
    """A section that GitHub shows when it is asked to."""
    summary = _AUTOLINK.sub(r"\1<!-- -->", html.escape(_flat(title)))
    return f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>"

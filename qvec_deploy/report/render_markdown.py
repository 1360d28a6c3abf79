"""A page -> GitHub-flavoured Markdown: for a pull request, a model card, or a terminal."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from qvec_deploy.report.page import Block, Facts, Page, Prose, Section, Table, Verbatim

_AUTOLINK = re.compile(
    r"((?:https?|ftp):(?=//)|www(?=\.)|#(?=\d)|gh-(?=\d)|(?<!\w)@(?=\w)|@(?=[\w-]+\.\w))", re.IGNORECASE
)


def render_markdown(page: Page, figures_in: str) -> str:
    """A page without its figures; long tables are folded.

    Args:
        figures_in: The file that has the figures.
    """
    top = [f"# {escape(page.title)}", escape(page.kicker), *(escape(each.text) for each in page.lead)]
    sections = [_section(section, figures_in) for section in page.shown]
    return "\n\n".join([*top, *sections, escape(page.footer)]) + "\n"


def _section(section: Section, figures_in: str) -> str:
    parts = [f"## {escape(section.title)}"]
    for kind, blocks in section.groups:
        if kind == "figure":
            titles = "; ".join(block.title for block in blocks if not isinstance(block, Prose | Facts))
            parts.append(escape(f"Figures in {figures_in}: {titles}."))
        else:
            parts += map(_block, blocks)
    return "\n\n".join(parts)


def _block(block: Block) -> str:
    if isinstance(block, Table):
        text = table_text(block)
        return folded(block.title, text) if block.folded else f"### {escape(block.title)}\n\n{text}"
    if isinstance(block, Facts):
        return terms(block.entries)
    if isinstance(block, Verbatim):
        quoted = "\n".join(f"    {line}" for line in block.text.splitlines())
        return f"{escape(block.title)}:\n\n{quoted}"
    return escape(block.text) if isinstance(block, Prose) else ""


def escape(text: str) -> str:
    """Text that Markdown shows as it is: no cell, line, tag, link, mention, emphasis or formula comes out of it.

    GitHub makes links of addresses and of `#12`, and calls people, even where characters are escaped; a comment in
    between keeps it from that, and nobody sees it. Brackets stay where they cannot make a link, so that intervals read
    well in the source too.
    """
    flat = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    shown = re.sub(r"([\\`*|~]|\](?=[(\[:])|(?<!\w)_|_(?!\w))", r"\\\1", flat)
    return _AUTOLINK.sub(r"\1<!-- -->", shown).replace("$", "<span>$</span>")


def table_rows(titles: Sequence[str], body: Iterable[Sequence[str]], alignment: str) -> str:
    """A table of text that is escaped already."""
    rule = ["--:" if side == "r" else ":--" for side in alignment]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (titles, rule, *body))


def table_text(listing: Table | None) -> str:
    """A small table with its note; empty without one."""
    if listing is None:
        return ""
    body = []
    for first, *others in listing.rows:
        name = f"**{escape(first)}**" if first == listing.shipped else escape(first)
        body.append([name, *(escape(cell) for cell in others)])
    table = table_rows([escape(title) for title in listing.columns], body, listing.alignment)
    return f"{table}\n\n{escape(listing.note)}" if listing.note else table


def folded(title: str, text: str) -> str:
    """A section that GitHub shows when it is asked to; empty without text."""
    if not text:
        return ""
    summary = html.escape(" ".join(title.split()))
    return f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>"


def terms(entries: Iterable[tuple[str, str]]) -> str:
    """Terms and what they are, as a list."""
    return "\n".join(f"- **{escape(term)}.** {escape(text)}" for term, text in entries)

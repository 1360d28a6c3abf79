"""A study's report as sections of sentences, tables, figures and facts -> one HTML page, and Markdown."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from qvec_deploy.report.html import page_environment
from qvec_deploy.report.html_listing import Listing
from qvec_deploy.report.markdown import escape, listing_text
from qvec_deploy.report.svg import Figure

LONG = 12  # rows from which a folded table starts closed


@dataclass(frozen=True)
class Section:
    """A part of the page; what is empty is left out.

    Attributes:
        name: Unique in the page: its anchor.
        title: Above it, and in the list of sections.
        sentences: A paragraph each.
        listings: Tables, each under its title.
        figures: Drawings; Markdown leaves them to the page.
        folded: Tables that are opened when they are wanted.
        facts: Terms and what they are.
        text: A file in full, line by line.
        text_title: What it is.
    """

    name: str
    title: str
    sentences: tuple[str, ...] = ()
    listings: tuple[Listing, ...] = ()
    figures: tuple[Figure, ...] = ()
    folded: tuple[Listing, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    text: str = ""
    text_title: str = ""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to show."""
        parts = (self.sentences, self.listings, self.figures, self.folded, self.facts, self.text)
        return not any(parts)


@dataclass(frozen=True)
class Page:
    """A study's report.

    Attributes:
        title: Of the study.
        kicker: What was studied, in a line.
        question: What was asked, for who does not know.
        answers: What the tests show, in a few sentences.
        remarks: What qualifies it.
        sections: In order.
        footer: Who made it.
    """

    title: str
    kicker: str
    question: str
    answers: tuple[str, ...]
    remarks: tuple[str, ...]
    sections: tuple[Section, ...]
    footer: str

    @property
    def shown(self) -> tuple[Section, ...]:
        """Sections that have something to show."""
        return tuple(section for section in self.sections if not section.empty)


def to_html(page: Page) -> str:
    """One page without script or network. Every text is escaped; figures are SVG that this package drew."""
    css = _resource("qvec_deploy.report", "report.css") + _resource("qvec_deploy.research.study", "study.css")
    return page_environment(_template).get_template("study.html").render(page=page, css=css, long=LONG)


def to_markdown(page: Page) -> str:
    """The same without figures, as GitHub-flavoured Markdown; long tables are folded."""
    top = (page.kicker, page.question, *page.answers, *page.remarks)
    parts = [f"# {escape(page.title)}", *map(escape, top)]
    for section in page.shown:
        parts.append(_section(section))
    return "\n\n".join([*parts, escape(page.footer)]) + "\n"


def _section(section: Section) -> str:
    parts = [f"## {escape(section.title)}", *map(escape, section.sentences)]
    for listing in section.listings:
        parts += [f"### {escape(listing.title)}", listing_text(listing)]
    if section.figures:
        titles = "; ".join(figure.title for figure in section.figures)
        parts.append(escape(f"Figures in study.html: {titles}."))
    parts += [_fold(listing) for listing in section.folded]
    if section.facts:
        parts.append(_terms(section.facts))
    if section.text:
        quoted = "\n".join(f"    {line}" for line in section.text.splitlines())
        parts.append(f"{escape(section.text_title)}:\n\n{quoted}")
    return "\n\n".join(parts)


def _fold(listing: Listing) -> str:
    summary = html.escape(" ".join(listing.title.split()))
    return f"<details><summary>{summary}</summary>\n\n{listing_text(listing)}\n\n</details>"


def _terms(entries: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"- **{escape(term)}.** {escape(text)}" for term, text in entries)


def _template(name: str) -> str:
    return _resource("qvec_deploy.research.study" if name == "study.html" else "qvec_deploy.report", name)


def _resource(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")

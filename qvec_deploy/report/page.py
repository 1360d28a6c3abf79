"""A page as typed blocks: what a report says, before it is HTML or Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar, TypeVar

from qvec_deploy.report.svg import Figure

T = TypeVar("T")


@dataclass(frozen=True)
class Prose:
    """A paragraph.

    Attributes:
        style: Its class in the page's style sheet.
        link: Anchor and text of a link behind it.
    """

    kind: ClassVar[str] = "prose"
    text: str
    style: str = "chosen"
    link: tuple[str, str] | None = None


@dataclass(frozen=True)
class Table:
    """A small table of text, drawn alike in every format.

    Attributes:
        columns: Headings; the first column names what a row is about.
        alignment: `l` or `r` for every column.
        shipped: The row of this name is what the bundle ships; None where rows are no candidates.
        note: Below it; empty for none.
        folded: Opened when it is wanted.
    """

    kind: ClassVar[str] = "table"
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    alignment: str
    shipped: str | None = None
    note: str = ""
    folded: bool = False

    @classmethod
    def of(
        cls,
        title: str,
        items: Iterable[T],
        columns: Mapping[str, Callable[[T], str]],
        *,
        words: int = 1,
        note: str = "",
        folded: bool = False,
    ) -> Table:
        """A row for each item.

        Args:
            columns: What a cell says of an item, by heading.
            words: So many columns, from the first, are words and stand on the left; the others are numbers.
        """
        rows = tuple(tuple(cell(item) for cell in columns.values()) for item in items)
        alignment = "l" * words + "r" * (len(columns) - words)
        return cls(title, tuple(columns), rows, alignment, note=note, folded=folded)


@dataclass(frozen=True)
class Facts:
    """Terms and what they are."""

    kind: ClassVar[str] = "facts"
    entries: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Verbatim:
    """A file in full, line by line, under a title."""

    kind: ClassVar[str] = "verbatim"
    title: str
    text: str


Block = Prose | Table | Figure | Facts | Verbatim


@dataclass(frozen=True)
class Section:
    """A part of a page; its name is its anchor. One without blocks is not shown."""

    name: str
    title: str
    blocks: tuple[Block, ...] = ()

    @property
    def groups(self) -> Iterator[tuple[str, list[Block]]]:
        """Neighbours of a kind with their kind: figures are drawn side by side."""
        for kind, blocks in groupby(self.blocks, key=lambda block: block.kind):
            yield kind, list(blocks)


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        kicker: What it is about, in a line above the title.
        lead: Paragraphs below the title.
    """

    title: str
    kicker: str
    lead: tuple[Prose, ...]
    sections: tuple[Section, ...]
    footer: str

    @property
    def shown(self) -> tuple[Section, ...]:
        """Sections that have something to show."""
        return tuple(section for section in self.sections if section.blocks)

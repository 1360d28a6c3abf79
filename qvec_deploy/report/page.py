"""A page as typed blocks: what a report says, before it is HTML, Markdown or lines on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar, TypeVar

from qvec_deploy.bench.summary import NumberedWarning
from qvec_deploy.report.svg import Figure

T = TypeVar("T")
Terms = tuple[tuple[str, str], ...]

VERDICTS = {
    **dict.fromkeys(("FASTER", "BETTER", "SMALLER", "PASSED"), "good"),
    **dict.fromkeys(("SLOWER", "WORSE", "LARGER", "MISSED"), "bad"),
    "UNSURE": "unsure",
}
"""Words of tables that stand out in every format."""


@dataclass(frozen=True)
class Prose:
    """A paragraph."""

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
        shipped: The row of this name is what the bundle holds, or comes first; None where no row stands out.
        titled: Whether the title is shown; else the section's title says it.
    """

    kind: ClassVar[str] = "table"
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    alignment: str
    shipped: str | None = None
    note: str = ""
    folded: bool = False
    badge: str = "in the bundle"
    titled: bool = True

    @classmethod
    def of(
        cls,
        title: str,
        items: Iterable[T],
        columns: Mapping[str, Callable[[T], str]],
        *,
        words: int = 1,
        **settings: Any,
    ) -> Table:
        """A row for each item; `settings` are the other attributes.

        Args:
            columns: What a cell says of an item, by heading.
            words: So many columns, from the first, are words and stand on the left; the others are numbers.
        """
        rows = tuple(tuple(cell(item) for cell in columns.values()) for item in items)
        alignment = "l" * words + "r" * (len(columns) - words)
        return cls(title, tuple(columns), rows, alignment, **settings)


@dataclass(frozen=True)
class TableCell:
    """A value, and beside it its interval or a remark."""

    text: str
    aside: str = ""

    def __str__(self) -> str:
        return f"{self.text} {self.aside}".rstrip()


@dataclass(frozen=True)
class CandidateLines:
    """A candidate in a table, with one line of cells or several.

    Attributes:
        what: What it is, in a few words; empty where another table has said it.
    """

    name: str
    what: str
    role: str
    selected: bool
    marks: tuple[int, ...]
    lines: tuple[tuple[TableCell, ...], ...]


@dataclass(frozen=True)
class CandidateTable:
    """A table with a row per candidate, or per candidate and batch size.

    Attributes:
        columns: Heading and unit of every column after the name; the unit may be empty.
        anchors: Before the number of a warning in links to it.
    """

    kind: ClassVar[str] = "candidates"
    title: str
    columns: tuple[tuple[str, str], ...]
    candidates: tuple[CandidateLines, ...]
    note: str = ""
    anchors: str = ""


@dataclass(frozen=True)
class Facts:
    """Terms and what they are."""

    kind: ClassVar[str] = "facts"
    entries: Terms
    title: str = ""


@dataclass(frozen=True)
class Doubts:
    """Numbered warnings, each with its remedy."""

    kind: ClassVar[str] = "doubts"
    entries: tuple[NumberedWarning, ...]
    anchors: str = ""


@dataclass(frozen=True)
class Card:
    """What one candidate is."""

    name: str
    role: str
    selected: bool
    facts: Terms


@dataclass(frozen=True)
class Cards:
    """What every candidate is."""

    kind: ClassVar[str] = "cards"
    entries: tuple[Card, ...]


@dataclass(frozen=True)
class Points:
    """A list of remarks."""

    kind: ClassVar[str] = "points"
    entries: tuple[str, ...]


@dataclass(frozen=True)
class Verbatim:
    """A file in full, line by line, under a title."""

    kind: ClassVar[str] = "verbatim"
    title: str
    text: str


@dataclass(frozen=True)
class Commands:
    """Lines for a shell."""

    kind: ClassVar[str] = "commands"
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Pill:
    """A verdict in a few words.

    Attributes:
        style: `passed`, `missed` or `none`.
    """

    text: str
    style: str


@dataclass(frozen=True)
class Fold:
    """Blocks that are opened when they are wanted, under a title; its name is its anchor."""

    kind: ClassVar[str] = "fold"
    name: str
    title: str
    blocks: tuple[Block, ...]
    pill: Pill | None = None


@dataclass(frozen=True)
class Beside:
    """Blocks on the left and on the right of each other, where there is room."""

    kind: ClassVar[str] = "beside"
    left: tuple[Block, ...]
    right: tuple[Block, ...]


Block = Prose | Table | CandidateTable | Figure | Facts | Doubts | Cards | Points | Verbatim | Commands | Fold | Beside


def groups(blocks: Sequence[Block]) -> Iterator[tuple[str, list[Block]]]:
    """Neighbours of a kind with their kind: figures are drawn side by side."""
    for kind, found in groupby(blocks, key=lambda block: block.kind):
        yield kind, list(found)


@dataclass(frozen=True)
class Section:
    """A part of a page; its name is its anchor. One without blocks is not shown."""

    name: str
    title: str
    blocks: tuple[Block, ...] = ()
    folded: bool = False


@dataclass(frozen=True)
class HeadlineTile:
    """A number at a glance: what it is, the number, its unit, and what to hold it against."""

    term: str
    value: str
    unit: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """The line that a reader came for: a verdict or a name, and what is said of it.

    Attributes:
        style: `passed`, `missed` or `none`, as a pill's.
    """

    name: str
    text: str
    pill: Pill | None = None
    style: str = "none"


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        opening: Blocks after the tiles, before the first section.
    """

    title: str
    kicker: str
    lead: tuple[Prose, ...]
    sections: tuple[Section, ...]
    footer: str
    answer: Answer | None = None
    tiles: tuple[HeadlineTile, ...] = ()
    opening: tuple[Block, ...] = ()

    @property
    def shown(self) -> tuple[Section, ...]:
        """Sections that have something to show."""
        return tuple(section for section in self.sections if section.blocks)

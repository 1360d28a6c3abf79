"""A small table of text, drawn alike in every format."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Listing:
    """A small table of text.

    Attributes:
        title: Above it.
        columns: Headings; the first column names what a row is about.
        rows: Their cells.
        alignment: `l` or `r` for every column.
        shipped: The row of this name is what the bundle ships; None where rows are no candidates.
        note: Below it; empty for none.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    alignment: str
    shipped: str | None = None
    note: str = ""

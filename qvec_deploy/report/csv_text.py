"""Tables of numbers as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from urllib.parse import quote

Value = str | float | int | bool | None

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would run


def to_csv(columns: Sequence[str], lines: Iterable[Sequence[Value]]) -> str:
    """A table as RFC 4180 has it; numbers in full, None as an empty cell.

    A text that a spreadsheet would take for a formula gets an apostrophe before it.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\r\n")
    writer.writerow(columns)
    writer.writerows([_cell(value) for value in line] for line in lines)
    return stream.getvalue()


def data_uri(text: str) -> str:
    """A CSV inside a page."""
    return f"data:text/csv;charset=utf-8,{quote(text, safe=',:;/')}"


def _cell(value: Value) -> Value:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value

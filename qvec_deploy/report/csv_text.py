"""Tables of numbers as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from urllib.parse import quote

from qvec_deploy.visible import visible

Value = str | float | int | bool | None

_FORMULA = tuple("=+-@\t\r\n＝＋－＠")
"""How texts begin that a spreadsheet would run."""


def to_csv(columns: Sequence[str], lines: Iterable[Sequence[Value]]) -> str:
    """A table as RFC 4180 has it; numbers in full, None as an empty cell.

    Everything in a text is visible, and one that a spreadsheet would take for a formula gets an apostrophe before it.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\r\n")
    writer.writerow(map(_cell, columns))
    writer.writerows([_cell(value) for value in line] for line in lines)
    return stream.getvalue()


def data_uri(text: str) -> str:
    """A CSV inside a page."""
    return f"data:text/csv;charset=utf-8,{quote(text, safe=',:;/')}"


def _cell(value: Value) -> Value:
    if not isinstance(value, str):
        return value
    text = visible(value, keep="\n\t")
    return f"'{text}" if value.lstrip(" ").startswith(_FORMULA) else text

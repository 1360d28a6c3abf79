"""Text from files, paths and programs, with everything shown that a terminal or a browser would obey or hide."""

from __future__ import annotations

import re

_RANGES = (
    ("\x00", "\x1f"),  # controls: escape sequences, carriage returns, backspaces
    ("\x7f", "\x9f"),
    ("\xad", "\xad"),  # a hyphen that is hardly ever drawn
    ("\u034f", "\u034f"),
    ("\u061c", "\u061c"),
    ("\u115f", "\u1160"),  # letters that are drawn as nothing
    ("\u17b4", "\u17b5"),
    ("\u180b", "\u180f"),
    ("\u200b", "\u200f"),  # without a width, or a change of direction
    ("\u2028", "\u202e"),
    ("\u2060", "\u206f"),
    ("\u3164", "\u3164"),
    ("\ud800", "\udfff"),  # halves of characters: bytes of a path that are no text
    ("\ufdd0", "\ufdef"),  # no characters, and none in XML
    ("\ufeff", "\ufeff"),
    ("\uffa0", "\uffa0"),
    ("\ufff0", "\ufffb"),
    ("\ufffe", "\uffff"),
    ("\U0001bca0", "\U0001bca3"),
    ("\U0001d173", "\U0001d17a"),
    *((chr(plane + 0xFFFE), chr(plane + 0xFFFF)) for plane in range(0x10000, 0x110000, 0x10000)),
    ("\U000e0000", "\U000e0fff"),
)
_HIDDEN = re.compile("[" + "".join(f"{first}-{last}" for first, last in _RANGES) + "]")
_NAMES = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def visible(text: str, keep: str = "") -> str:
    r"""A line in which control characters, changes of direction and invisible characters are seen: `\x1b`, `\u202e`.

    Text that was made visible stays as it is. What remains can be encoded as UTF-8 and stands in one line.

    Args:
        keep: Characters that stay as they are, such as the line breaks of a text with several lines.
    """
    return _HIDDEN.sub(lambda found: found[0] if found[0] in keep else _shown(found[0]), text)


def _shown(character: str) -> str:
    code = ord(character)
    if character in _NAMES:
        return _NAMES[character]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

"""Characters that a terminal obeys or a browser hides are seen."""

from __future__ import annotations

import sys
import unicodedata

import pytest
from hostile_text import HOSTILE, hidden

from qvec_deploy.datasets.standalone_run import shown
from qvec_deploy.visible import visible

DRAWN = {0x600, 0x601, 0x602, 0x603, 0x604, 0x605, 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD} | set(
    range(0x13430, 0x13440)
)
"""Format characters of Unicode that are drawn: signs around Arabic numbers, and hieroglyphs side by side."""


def test_every_control_and_format_character_is_shown_and_no_other_character_is_changed() -> None:
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        category, changed = unicodedata.category(character), visible(character)
        if category in ("Cc", "Cs", "Zl", "Zp") or (category == "Cf" and code not in DRAWN):
            assert changed.isascii() and changed.startswith("\\"), hex(code)
        elif category[0] in "LMNPSZ" and changed != character:  # letters that are drawn as nothing
            name = unicodedata.name(character)
            assert "FILLER" in name or "VOWEL INHERENT" in name or "SELECTOR" in name or "JOINER" in name, name


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("\x1b[31m", r"\x1b[31m"),
        ("a\r\n\tb\x7f\x9b", r"a\r\n\tb\x7f\x9b"),
        ("\u202egpj\u202c\u2066\u200b", r"\u202egpj\u202c\u2066\u200b"),
        ("\udcff\U000e0041", r"\udcff\U000e0041"),
        ("naïve 日本語 − λ × \u00a0 👍🏽", "naïve 日本語 − λ × \u00a0 👍🏽"),
    ],
)
def test_it_is_shown_by_its_code(text: str, seen: str) -> None:
    assert visible(text) == seen


def test_what_is_kept_stays() -> None:
    assert visible("a\nb\tc\r", keep="\n\t") == "a\nb\tc\\r"


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_visible_stays_as_it_is(text: str) -> None:
    once = visible(text)
    assert visible(once) == once and once.encode() and len(once.splitlines()) == 1
    assert hidden(shown(text)) == set(), "the script of a release shows as much"

"""Text that attacks whoever shows it, and a walk over values by their types that puts it into every text there is."""

from __future__ import annotations

import dataclasses
import re
import types
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from html.parser import HTMLParser
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from markdown_it import MarkdownIt

HOSTILE = (
    "\x1b[31mred\x1b[0m\x1b]0;title\x07\x1b]8;;http://evil.example\x1b\\x\x9b31m\x85c1\x80",
    "over\rwritten\b\b\b\x7f\x00end lines\u2028and\u2029paragraphs\x0b\x0c\x1c",
    "\u202egpj.exe\u202c \u2066left\u2069 \u200f\u200emarks zero\u200bwidth\u200d\ufeff\u2060\xad\u00a0",
    "half \udcff\udc80 \ud800 of \ufffe \uffff",
    "[red]markup[/] [/] [link=http://evil.example]x[/link] :warning: {{ 7 * 7 }} {% raw %} ${x} $(touch x)",
    "<script>alert(1)</script><!-- <img src=x onerror='1'> -->&amp;\"' ]]></svg><svg onload=alert(1)>",
    "a|b `c` *d* _e_ ~~f~~ [x](javascript:1) ![y](http://evil.example) @mention #12 GH-7 $z$ \\",
    "<!-- @org/team --> </details></summary> -->",
    "# heading\n\n- list\n> quote\n| --- |\n```\n",
    "- item\n1. item",
    "1. item",
    "> quote",
    '=HYPERLINK("http://evil.example")',
    "+1+cmd|' /C calc'!A0",
    "\t=1+1",
    "\r@SUM(1)",
    "---\nkey: value # comment\n...",
)
"""Each is tried in every place."""

Place = tuple[str, str]
"""A class and its field."""


def text_fields(kind: Any, place: Place = ("", ""), seen: set[Any] | None = None) -> Iterator[Place]:
    """Every field that may hold any text, of a class and of all that it is made of."""
    seen = set() if seen is None else seen
    if kind is str:
        yield place
    elif _is_record(kind):
        if kind not in seen:
            seen.add(kind)
            for name, hint in _hints(kind).items():
                yield from text_fields(hint, (kind.__name__, name), seen)
    elif get_origin(kind) is not Literal:
        for part in get_args(kind):
            yield from text_fields(part, place, seen)


def with_texts(value: Any, kind: Any, change: Callable[[str, Place], str], place: Place = ("", "")) -> Any:
    """The value with every text of it changed; what a type allows some words for stays."""
    if isinstance(value, str):
        return change(value, place) if _allows_text(kind) else value
    if _is_record(type(value)):
        return _record(value, change)
    parts = [part for part in _alternatives(kind) if get_args(part)]
    inner = get_args(parts[0]) if parts else ()
    if isinstance(value, Mapping):
        key, item = inner or (Any, Any)
        return {with_texts(k, key, change, place): with_texts(v, item, change, place) for k, v in value.items()}
    if isinstance(value, tuple | list):
        kinds = inner if len(inner) == len(value) and Ellipsis not in inner else (inner or (Any,))[:1] * len(value)
        return type(value)(with_texts(v, k, change, place) for v, k in zip(value, kinds, strict=True))
    return value


def _record(value: Any, change: Callable[[str, Place], str]) -> Any:
    kind = type(value)
    found = {
        name: with_texts(getattr(value, name), hint, change, (kind.__name__, name))
        for name, hint in _hints(kind).items()
    }
    changed = {name: new for name, new in found.items() if new != getattr(value, name)}
    if dataclasses.is_dataclass(kind):
        return dataclasses.replace(value, **changed) if changed else value
    return value.model_copy(update=changed)


def _is_record(kind: Any) -> bool:
    return isinstance(kind, type) and (dataclasses.is_dataclass(kind) or hasattr(kind, "model_fields"))


def _hints(kind: type) -> dict[str, Any]:
    names = (
        set(kind.model_fields)
        if hasattr(kind, "model_fields")
        else {f.name for f in dataclasses.fields(kind) if f.init}
    )
    hints = get_type_hints(kind)
    return {name: hint for name, hint in hints.items() if name in names and get_origin(hint) is not ClassVar}


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _allows_text(kind: Any) -> bool:
    return any(part in (str, Any, object) for part in _alternatives(kind))


class Texts:
    """Replaces equal texts by equal ones, so that what refers to something by its name still finds it.

    Args:
        kept: Fields whose texts are names of the product's own tables, which no reader takes otherwise.
        number: Which hostile text the first field gets; the next gets the next.
    """

    def __init__(self, kept: set[Place], number: int | None) -> None:
        self._kept, self._number = kept, number
        self._given: dict[str, str] = {}
        self.reached: set[Place] = set()

    def __call__(self, text: str, place: Place) -> str:
        """The text in its place."""
        self.reached.add(place)
        if place in self._kept:
            return text
        if text not in self._given:
            count = len(self._given)
            attack = "harmless" if self._number is None else HOSTILE[(count + self._number) % len(HOSTILE)]
            self._given[text] = f"{attack} {count:03}"
        return self._given[text]


def hidden(text: str) -> set[str]:
    """Characters that a terminal obeys, or that nobody sees; line breaks and blanks are none."""
    return {
        character
        for character in text
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in "\n"
    }


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, ...]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "wbr":  # after every underscore of a name
            self.found.append(("start", tag, *sorted(name for name, _ in attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.found.append(("end", tag))

    def handle_comment(self, data: str) -> None:
        self.found.append(("comment", data))

    def handle_decl(self, decl: str) -> None:
        self.found.append(("declaration", decl))

    def unknown_decl(self, data: str) -> None:
        self.found.append(("unknown", data))

    def handle_pi(self, data: str) -> None:
        self.found.append(("instruction", data))


def elements(page: str) -> list[tuple[str, ...]]:
    """What an HTML page is made of, without its text."""
    parser = _Elements()
    parser.feed(page)
    parser.close()
    return parser.found


QUIET = ("<!-- -->", "<span>", "</span>")
"""What keeps GitHub from links and formulas, in the middle of a text."""


def blocks(markdown: str) -> list[tuple[str, ...]]:
    """What Markdown is made of, without its text: as CommonMark and GitHub's tables have it."""
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    found: list[tuple[str, ...]] = []
    for token in parser.parse(markdown):
        if token.type == "html_block":
            found += elements(token.content.replace("<!-- -->", ""))
        elif token.children is not None:
            inner = [child for child in token.children if child.type not in ("text", "softbreak")]
            found += [
                (child.type, child.content if child.type == "html_inline" else "")
                for child in inner
                if child.content not in QUIET and child.type != "text_special"
            ]
        else:
            found.append((token.type, token.tag))
    return found


CALLS = re.compile(r"(?<![\w`])@\w|(?i:https?://|www\.)\w|(?<![&\w])#\d|(?i:gh-\d)")
"""What GitHub makes a link of, or calls somebody for, outside code."""

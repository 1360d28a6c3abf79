"""Where many long byte strings lie in a longer one: one pass for all of them, then every place byte for byte."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

_Key = TypeVar("_Key")

_WORD = 8
_SAMPLES = 512
"""Words of a string that its most telling one is chosen from."""
_TELLING = 3
"""Other bytes that a word must have at least: those of zeros or ones would be found everywhere."""
_AROUND = 64
"""Bytes that are compared before the whole string is made."""
_MOST_PLACES = 64
"""Places of one string that are looked at."""
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_HASH_BITS = 20
_CHUNK = 1 << 20


@dataclass(frozen=True)
class _Probe(Generic[_Key]):
    """A word of a string, where in the string it is, and what follows."""

    key: _Key
    at: int
    after: bytes


def find_all(data: bytes, strings: Mapping[_Key, Callable[[], bytes]]) -> list[tuple[int, _Key]]:
    """Offset and key of every string in `data`, at any offset; of strings that repeat a few bytes, none is looked for.

    Args:
        strings: By key, what makes a string. It is called twice at most, and one string is kept at a time.
    """
    probes: dict[int, list[_Probe[_Key]]] = defaultdict(list)
    for key, make in strings.items():
        string = make()
        word = _telling_word(string)
        if word is not None and len(string) <= len(data):
            value, at = word
            probes[value].append(_Probe(key, at, string[at : at + _AROUND]))
    places: dict[_Key, list[int]] = defaultdict(list)
    for offset, value in _occurrences(data, sorted(probes)):
        for probe in probes[value]:
            start, found = offset - probe.at, places[probe.key]
            if start >= 0 and len(found) < _MOST_PLACES and data.startswith(probe.after, offset):
                found.append(start)
    found_all = []
    for key, starts in places.items():
        if starts:
            string = strings[key]()
            found_all += [(start, key) for start in starts if data.startswith(string, start)]
    return found_all


def _telling_word(string: bytes) -> tuple[int, int] | None:
    """The word of a string with the most different bytes, and its offset; None where all are much alike."""
    words = np.frombuffer(string, "<u8", count=len(string) // _WORD)
    if not words.size:
        return None
    chosen = np.unique(np.linspace(0, words.size - 1, min(words.size, _SAMPLES)).astype(np.int64))
    ordered = np.sort(words[chosen].view(np.uint8).reshape(-1, _WORD), axis=1)
    different = 1 + (np.diff(ordered, axis=1) != 0).sum(axis=1)
    best = int(different.argmax())
    return (int(words[chosen[best]]), _WORD * int(chosen[best])) if different[best] >= _TELLING else None


def _occurrences(data: bytes, words: list[int]) -> list[tuple[int, int]]:
    """Offset and value of every one of `words` in `data`, in no order."""
    if not words:
        return []
    wanted = np.array(words, np.uint64)
    table = np.zeros(1 << _HASH_BITS, bool)
    table[_hashes(wanted)] = True
    found: list[tuple[int, int]] = []
    for start in range(0, len(data), _CHUNK):
        for shift in range(_WORD):
            first = start + shift
            count = min(_CHUNK, len(data) - first) // _WORD
            if count <= 0:
                break
            here = np.frombuffer(data, "<u8", count=count, offset=first)
            maybe = np.flatnonzero(table[_hashes(here)])
            values = here[maybe]
            nearest = np.minimum(np.searchsorted(wanted, values), wanted.size - 1)
            real = wanted[nearest] == values
            found += zip((first + _WORD * maybe[real]).tolist(), values[real].tolist(), strict=True)
    return found


def _hashes(words: np.ndarray) -> np.ndarray:
    return (words * _FACTOR) >> np.uint64(64 - _HASH_BITS)

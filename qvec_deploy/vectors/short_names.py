"""Short names for vectors that are called by their paths."""

from __future__ import annotations

from collections.abc import Sequence

_PAIR = " - "  # between the two checkpoints of a donor that has no vector file
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


def short_names(labels: Sequence[str]) -> tuple[str, ...]:
    """The shortest tail of every path that no other path has: `vector`, or `lower/vector` and `upper/vector`.

    Args:
        labels: Paths or Hub addresses, all different, or donors' `QAT - FP` pairs, which stay as they are.
    """
    plain = [label if _PAIR in label else _without_suffix(label) for label in labels]
    if len(set(plain)) < len(plain):  # files of one name in two formats
        plain = list(labels)
    return tuple(
        name if _PAIR in name else _shortest_tail(name, [*plain[:index], *plain[index + 1 :]])
        for index, name in enumerate(plain)
    )


def _shortest_tail(name: str, others: Sequence[str]) -> str:
    for parts in range(1, name.count("/") + 1):
        tail = _tail(name, parts)
        if tail not in (_tail(other, parts) for other in others):
            return tail
    return name


def _tail(name: str, parts: int) -> str:
    return "/".join(name.split("/")[-parts:])


def _without_suffix(label: str) -> str:
    return next((label.removesuffix(suffix) for suffix in _SUFFIXES if label.endswith(suffix)), label)

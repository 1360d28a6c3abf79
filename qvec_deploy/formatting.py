"""Numbers -> text, the same in every format. A minus sign is a minus sign, not a hyphen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

NONE = "–"
BYTES_PER_MB = 1e6
MOST_DECIMALS = 6


class Interval(Protocol):
    """Two ends."""

    @property
    def low(self) -> float:
        """The lower end."""

    @property
    def high(self) -> float:
        """The upper end."""


def three(value: float) -> str:
    """Three significant digits, never in scientific notation: 0.0123, 1.23, 12.3, 123, 1,230."""
    return significant(value, 3)


def significant(value: float, digits: int) -> str:
    """So many significant digits, never in scientific notation."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits}g}")
    decimals = max(0, digits - 1 - int(f"{rounded:e}".partition("e")[2]))
    return signed_text(f"{rounded:,.{decimals}f}")


def supported_digits(value: float, ends: Interval | None) -> int:
    """Significant digits of a time that its interval supports: 2 or 3, and 2 without an interval."""
    if ends is None or ends.high <= ends.low:
        return 2 if ends is None else 3
    return min(3, max(2, 1 + math.floor(-math.log10((ends.high - ends.low) / (2 * value)))))


def short(value: float) -> str:
    """At most three significant digits, without trailing zeros: 3, 3.02, 0.45."""
    return signed_text(f"{value:.3g}")


def megabytes(size_bytes: float) -> str:
    """Millions of bytes, without the unit."""
    return three(size_bytes / BYTES_PER_MB)


def percent(fraction: float, count: int) -> str:
    """A share of `count` images in percent, with the decimals that so many images support."""
    return f"{100 * fraction:.{_decimals(count)}f}"


def points(fraction: float, count: int) -> str:
    """A difference of two shares in percentage points, with its sign."""
    return signed_text(f"{100 * fraction:+.{_decimals(count)}f}")


def _decimals(count: int) -> int:
    """As many as show the second digit of half the interval, which is at most 98 points over the root of the count."""
    return 0 if count < 100 else 1 if count < 10_000 else 2


def percent_interval(ends: Interval, count: int) -> str:
    """The ends, in percent."""
    return f"[{percent(ends.low, count)}, {percent(ends.high, count)}]"


def points_interval(ends: Interval, count: int) -> str:
    """The ends, in percentage points."""
    return f"[{points(ends.low, count)}, {points(ends.high, count)}]"


def times(ratio: float, ends: Interval | None = None) -> str:
    """A ratio: 1.93×, or 1.9× where the interval is wider than a fifth."""
    return f"{ratio:.{_of_ratio(ends)}f}×"


def times_interval(ends: Interval) -> str:
    """The ends of a ratio."""
    decimals = _of_ratio(ends)
    return f"[{ends.low:.{decimals}f}, {ends.high:.{decimals}f}]"


def _of_ratio(ends: Interval | None) -> int:
    return 1 if ends is not None and ends.high - ends.low > 0.2 else 2


def p_value(chance: float) -> str:
    """Two significant digits, and no more zeros than anybody reads."""
    return "< 0.0001" if chance < 1e-4 else f"{chance:.2g}"


def with_error(value: float, error: float) -> tuple[str, str]:
    """A number and its standard error, both to the error's second significant digit: 0.0603, 0.0101 -> 0.060, 0.010."""
    if error <= 0:
        return three(value), "0"
    decimals = max(0, 1 - math.floor(math.log10(error)))
    if decimals > MOST_DECIMALS:
        return short(value), short(error)
    return signed_text(f"{value:,.{decimals}f}"), f"{error:,.{decimals}f}"


def signed_text(text: str) -> str:
    """Hyphen-minus made a minus sign."""
    return text.replace("-", "−")


def preprocessing(config: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    """How images are prepared, by timm's names, each group with who says so."""
    groups: dict[str, list[str]] = {}
    for name, origin in origins.items():
        value = config[name] if isinstance(config[name], Sequence) else (config[name],)
        between = " x " if name == "input_size" else " "
        text = value if isinstance(value, str) else between.join(f"{number:g}" for number in value)
        groups.setdefault(origin, []).append(f"{name} {text}")
    return "; ".join(f"{', '.join(fields)} ({origin})" for origin, fields in groups.items())


def some(texts: Sequence[str], most: int = 3, between: str = ", ") -> str:
    """The first texts, and how many more there are."""
    more = len(texts) - most
    return between.join(texts[:most]) + (f" and {more:,} more" if more > 0 else "")

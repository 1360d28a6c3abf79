"""Numbers -> text, the same in every format. A minus sign is a minus sign, not a hyphen."""

from __future__ import annotations

import math

from qvec_deploy.measure.statistics import Estimate
from qvec_deploy.report.values import Candidate

NONE = "–"
BYTES_PER_MB = 1e6
MOST_DECIMALS = 6


def three(value: float) -> str:
    """Three significant digits, never in scientific notation: 0.0123, 1.23, 12.3, 123, 1,230."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.3g}")
    digits = max(0, 2 - int(f"{rounded:e}".partition("e")[2]))
    return signed_text(f"{rounded:,.{digits}f}")


def short(value: float) -> str:
    """At most three significant digits, without trailing zeros: 3, 3.02, 0.45."""
    return signed_text(f"{value:.3g}")


def megabytes(size_bytes: float) -> str:
    """Millions of bytes, without the unit."""
    return three(size_bytes / BYTES_PER_MB)


def percent(fraction: float, count: int) -> str:
    """A share of `count` images in percent, with the decimals that so many images support."""
    return f"{100 * fraction:.{1 if count < 10_000 else 2}f}"


def points(fraction: float, count: int) -> str:
    """A difference of two shares in percentage points, with its sign."""
    return signed_text(f"{100 * fraction:+.{1 if count < 10_000 else 2}f}")


def percent_interval(estimate: Estimate, count: int) -> str:
    """The ends, in percent."""
    return f"[{percent(estimate.low, count)}, {percent(estimate.high, count)}]"


def points_interval(estimate: Estimate, count: int) -> str:
    """The ends, in percentage points."""
    return f"[{points(estimate.low, count)}, {points(estimate.high, count)}]"


def times(ratio: float) -> str:
    """A ratio: 1.93×."""
    return f"{ratio:.2f}×"


def times_interval(estimate: Estimate) -> str:
    """The ends of a ratio."""
    return f"[{estimate.low:.2f}, {estimate.high:.2f}]"


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


def grid(candidate: Candidate) -> str:
    """How the weights were quantized, in words; of a calibrated method, the grid that it rounds to as well."""
    scheme = candidate.scheme
    if scheme is None:
        return "not quantized"
    grain = (
        f"group of {scheme.group_size} weights"
        if scheme.granularity == "group"
        else {"channel": "output channel", "tensor": "tensor"}[scheme.granularity]
    )
    clips = {"rtn": f"clip {scheme.clip:g}", "mse": "clip searched for least squared error"}
    method = scheme.method if candidate.method in clips else f"{candidate.method} on the {scheme.method} grid"
    return (
        f"{scheme.bits} bits, {method}, {clips[scheme.method]}, symmetric, {candidate.levels} levels, "
        f"one scale per {grain}"
    )


def mixture(candidate: Candidate) -> str:
    """What was added to the receiver, in words."""
    patch = candidate.patch
    if patch is None:
        return "none"
    donors = " + ".join(f"{short(donor.weight)} × {donor.name}" for donor in patch.donors)
    if len(patch.donors) == 1 and patch.donors[0].weight == 1:
        donors = patch.donors[0].name
    control = f"control: {patch.control}" if patch.control else ""
    return f"λ = {short(patch.lam)}, " + ", ".join(part for part in (control, donors) if part)


def bits(candidate: Candidate) -> str:
    """Bits of a weight, stored and at run time."""
    return f"{short(candidate.stored_bits_per_weight)} / {short(candidate.runtime_bits_per_weight)}"

"""What a candidate is, in a few words: its grid, its patch, its bits."""

from __future__ import annotations

from qvec_deploy.bench.results import Candidate
from qvec_deploy.formatting import short
from qvec_deploy.quantize.methods import calibrated_methods


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
    clip = "clip searched for least squared error" if scheme.searched else f"clip {scheme.clip:g}"
    calibrated = candidate.method in calibrated_methods()
    method = f"{candidate.method} on the {scheme.method} grid" if calibrated else scheme.method
    return f"{scheme.bits} bits, {method}, {clip}, symmetric, {candidate.levels} levels, one scale per {grain}"


def in_short(candidate: Candidate) -> str:
    """What was done to the weights, in the fewest words, and what they are multiplied as."""
    if candidate.scheme is None:
        return "not quantized"
    patch = candidate.patch
    added = f" + {'control' if patch.control else 'patch'}, λ = {short(patch.lam)}" if patch is not None else ""
    return f"{candidate.method}{added}, as {candidate.lowering}"


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

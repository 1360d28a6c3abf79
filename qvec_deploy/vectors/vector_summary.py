"""What a vector says about itself, layer by layer, and whether its size is that of a healthy one."""

from __future__ import annotations

from typing import Any

from qvec_deploy.vectors.extract import l2_norm
from qvec_deploy.vectors.vector_file import QuantizationVector

HEALTHY = (0.003, 0.05)
"""Shares of the weights' norm that vectors of trained donors have: 1.6 per cent is usual (arXiv 2604.03420)."""


def summarize(vector: QuantizationVector) -> dict[str, Any]:
    """A vector as plain values: header, layers, and a warning where its norm is unusual."""
    header = vector.header
    layers = []
    for name, info in vector.tensors.items():
        rho, weight = header.norms.get(name, (None, None))
        norm = l2_norm([vector.read(name)]) if rho is None else rho
        share = norm / weight if weight else None
        layers.append({"name": name, "shape": list(info.shape), "norm": norm, "share": share})
    return {
        "task": header.task,
        "scheme": header.scheme.as_dict(),
        "skip": list(header.skip),
        "seeds": list(header.seeds),
        "base": header.base,
        "dtypes": sorted({info.dtype for info in vector.tensors.values()}),
        "control": header.control,
        "assumed": list(header.assumed),
        "parts": [vars(part) for part in header.parts],
        "sketch": header.sketch_seed is not None,
        "moments": vector.has_moments,
        "norm": header.norm,
        "share": header.share,
        "warning": share_warning(header.share),
        "made_by": header.made_by,
        "layers": layers,
    }


def share_warning(share: float) -> str | None:
    """What a vector's share of the weights' norm gives reason to doubt; None for a usual one."""
    low, high = HEALTHY
    if low <= share <= high:
        return None
    reason = "its donor hardly trained" if share < low else "its donor diverged, or was settled on its grid"
    return f"the vector is {share:.2%} of the weights' norm, outside {low:.1%} to {high:.0%}: {reason}"

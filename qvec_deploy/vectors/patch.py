"""Receiver + lambda * rho, one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from qvec_deploy.io.checkpoint import Checkpoint
from qvec_deploy.planner import Plan
from qvec_deploy.tensors import Float32
from qvec_deploy.vectors.vector_sources import Source, random_like


def add_scaled(weight: Float32, rho: Float32, lam: float) -> Float32:
    """`weight + lambda * rho` in float32: one rounded product, one rounded sum, never fused."""
    return weight + np.float32(lam) * rho


def patch(receiver: Checkpoint, sources: Mapping[str, Source], plan: Plan) -> Iterator[tuple[str, Float32]]:
    """The patched weights in the plan's order, one tensor at a time: memory never holds three models."""
    control = plan.recipe.vector.control if plan.recipe.vector is not None else None
    for tensor in plan.tensors:
        weight = receiver.read(tensor.name)
        if tensor.patched:
            rho = mix([(sources[label].read(tensor.name), share) for label, share in plan.sources])
            if control is not None:
                rho = random_like(rho, tensor.name, control.seed)
            weight = add_scaled(weight, rho, plan.recipe.patch_scale)
        yield tensor.name, weight


def mix(parts: list[tuple[Float32, float]]) -> Float32:
    """Weighted sum of vectors' tensors, in float32 and in the given order; a lone vector of weight 1 is unchanged."""
    (first, share), *rest = parts
    total = first if share == 1.0 else np.float32(share) * first
    for rho, share in rest:
        total = total + np.float32(share) * rho
    return total

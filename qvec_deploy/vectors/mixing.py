"""Several donors' vectors as one: their weighted mean, written as a vector file of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from qvec_deploy.errors import IncompatibleError, RecipeError
from qvec_deploy.tensors import Float32
from qvec_deploy.vectors.coordinates import check_coordinates
from qvec_deploy.vectors.extract import MADE_BY, l2_norm
from qvec_deploy.vectors.patch import mix
from qvec_deploy.vectors.sketch import Sketch
from qvec_deploy.vectors.symmetric_places import Geometry
from qvec_deploy.vectors.vector_file import Part, QuantizationVector, VectorHeader, write_vector

_SLACK = 1e-6  # what a sum of decimal weights may miss 1 by


def mix_vectors(
    vectors: Sequence[QuantizationVector],
    path: Path,
    *,
    weights: Sequence[float] | None = None,
    dtype: str = "float32",
) -> VectorHeader:
    """Write the weighted mean of several vectors; their moments stay behind.

    Args:
        weights: One for each, 1 in all; the plain mean if None.

    Returns:
        The header that was written. Its sketch is the first that a vector has: the donors are fine-tunes of one base.
    """
    shares = _shares(vectors, weights)
    first = vectors[0]
    for other in vectors[1:]:
        _require_alike(first, other)
    bases = {vector.header.base for vector in vectors}
    if len(bases - {None}) > 1:
        raise IncompatibleError("the vectors come from another base each", hint="mix donors of one base only")
    sketch = _common_sketch(vectors)
    rho: dict[str, Float32] = {
        name: mix([(vector.read(name), share) for vector, share in zip(vectors, shares, strict=True)])
        for name in first.tensors
    }
    pairs = list(zip((vector.header for vector in vectors), shares, strict=True))
    norms = {}
    if all(header.norms for header, _ in pairs):
        norms = {
            name: (l2_norm([values]), sum(share * header.norms[name][1] for header, share in pairs))
            for name, values in rho.items()
        }
    header = VectorHeader(
        scheme=first.header.scheme,
        skip=first.header.skip,
        task=" + ".join(header.task for header, _ in pairs),
        seed=first.header.seed,
        norm=l2_norm(rho.values()),
        weight_norm=sum(share * header.weight_norm for header, share in pairs),
        made_by=MADE_BY,
        norms=norms,
        base=bases.pop() if len(bases) == 1 else None,
        assumed=tuple(dict.fromkeys(f"{header.task}: {each}" for header, _ in pairs for each in header.assumed)),
        parts=tuple(
            Part(vector.header.task, vector.header.seed, share, vector.checkpoint.fingerprint())
            for vector, share in zip(vectors, shares, strict=True)
        ),
    )
    return write_vector(path, header, rho.items(), dtype=dtype, sketch=sketch)


def _shares(vectors: Sequence[QuantizationVector], weights: Sequence[float] | None) -> list[float]:
    if len(vectors) < 2:
        raise RecipeError("one vector is no mix", hint="name two or more vectors")
    if weights is None:
        return [1 / len(vectors)] * len(vectors)
    if len(weights) != len(vectors):
        raise RecipeError(
            f"{len(weights)} weights for {len(vectors)} vectors", hint="give one weight for each, in the same order"
        )
    total = math.fsum(weights)
    if not abs(total - 1) <= _SLACK:  # NaN does not either
        raise RecipeError(
            f"the weights add up to {total:g}",
            hint="make them add up to 1: a sum without division collapses the model; lambda scales the whole mix",
        )
    return [float(weight) for weight in weights]


def _require_alike(first: QuantizationVector, other: QuantizationVector) -> None:
    names = f"{first.checkpoint.source} and {other.checkpoint.source}"
    if first.header.scheme != other.header.scheme:
        raise IncompatibleError(
            f"{names} were trained for {first.header.scheme} and for {other.header.scheme}",
            hint="mix vectors of one grid only",
        )
    if set(first.header.skip) != set(other.header.skip):
        raise IncompatibleError(
            f"{names} left {', '.join(first.header.skip)} and {', '.join(other.header.skip)} float",
            hint="mix vectors of one skip list only",
        )
    shapes, others = ({name: info.shape for name, info in vector.tensors.items()} for vector in (first, other))
    odd = sorted(name for name in shapes.keys() | others.keys() if shapes.get(name) != others.get(name))
    if odd:
        raise IncompatibleError(f"{names} differ in {odd[0]}", hint="mix vectors of one model only")
    for vector in (first, other):
        if vector.header.control is not None:
            raise IncompatibleError(
                f"{vector.checkpoint.source} is a control ({vector.header.control})", hint="mix real vectors only"
            )


def _common_sketch(vectors: Sequence[QuantizationVector]) -> Sketch | None:
    """The first sketch that a vector has, once all others have been held against it."""
    first: Sketch | None = None
    for vector in vectors:
        sketch = vector.sketch()
        if sketch is not None and first is not None:
            check_coordinates(sketch, first, Geometry(), vector.header.scheme)
        first = first or sketch
    return first

"""A sketch of a model's weights: small, and enough to tell in which coordinates they are.

For every Linear: the norms of rows and columns, and 16 random projections of each row and each column. A projection
keeps lengths and angles to about 1/sqrt(16) for one row, and to a per cent for a matrix, whatever the matrix (Johnson
and Lindenstrauss). The signs come from raw PCG64 words, whose stream numpy promises to keep, so a sketch made today
compares with one made by a later numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from qvec_deploy.errors import IntegrityError
from qvec_deploy.tensors import Float32

PROJECTIONS = 16
SKETCH_SEED = 2604
PARTS = ("rows", "columns", "row_norms", "column_norms")

Read = Callable[[str], Float32]
"""One tensor of a state dict by its name, float32."""


@dataclass(frozen=True, eq=False)
class LinearSketch:
    """Sketch of one (out, in) weight matrix, float32 here and float16 in files.

    Attributes:
        rows: (out, 16) projections of the rows.
        columns: (in, 16) projections of the columns.
    """

    rows: Float32
    columns: Float32
    row_norms: Float32
    column_norms: Float32


@dataclass(frozen=True, eq=False)
class Sketch:
    """Sketch of a model's backbone.

    Attributes:
        seed: Seed of the projections; only sketches of one seed compare.
    """

    seed: int
    linears: Mapping[str, LinearSketch]
    gains: Mapping[str, Float32]


def make_sketch(names: Iterable[str], read: Read, *, seed: int = SKETCH_SEED) -> Sketch:
    """Sketch a state dict, one tensor in memory at a time."""
    linears, gains = {}, {}
    for name in names:
        module, _, kind = name.rpartition(".")
        if kind != "weight":
            continue
        weight = read(name)
        if weight.ndim == 1:
            gains[module] = weight
        elif weight.ndim == 2:
            linears[module] = _sketch_linear(weight, seed)
    return Sketch(seed, linears, gains)


def projection(width: int, seed: int) -> Float32:
    """The (width, 16) projection of vectors of `width`: random signs over 4, so that lengths are kept on average."""
    words = np.random.PCG64(np.random.SeedSequence([seed, width])).random_raw(width)
    bits = (words[:, None] >> np.arange(PROJECTIONS, dtype=np.uint64)) & np.uint64(1)
    return (bits.astype(np.float32) * 2 - 1) / np.float32(PROJECTIONS**0.5)


def sketch_tensors(sketch: Sketch) -> dict[str, Float32]:
    """A sketch as named tensors for a file: `rows:MODULE`, ..., `gain:MODULE`."""
    tensors = {f"gain:{module}": gain for module, gain in sketch.gains.items()}
    for module, linear in sketch.linears.items():
        tensors.update({f"{part}:{module}": getattr(linear, part) for part in PARTS})
    return tensors


def read_sketch(names: Iterable[str], read: Read, seed: int) -> Sketch:
    """The sketch that `sketch_tensors` named."""
    gains: dict[str, Float32] = {}
    parts: dict[str, dict[str, Float32]] = {}
    for name in names:
        part, _, module = name.partition(":")
        if part == "gain":
            gains[module] = read(name)
        else:
            parts.setdefault(module, {})[part] = read(name)
    for module, found in parts.items():
        if set(found) != set(PARTS) or not _fit_together(LinearSketch(**found)):
            raise IntegrityError(f"the sketch of {module} is damaged", hint="make or download the vector again")
    return Sketch(seed, {module: LinearSketch(**found) for module, found in parts.items()}, gains)


def _sketch_linear(weight: Float32, seed: int) -> LinearSketch:
    out, columns = weight.shape
    return LinearSketch(
        rows=weight @ projection(columns, seed),
        columns=weight.T @ projection(out, seed),
        row_norms=np.linalg.norm(weight, axis=1),
        column_norms=np.linalg.norm(weight, axis=0),
    )


def _fit_together(linear: LinearSketch) -> bool:
    return (
        linear.row_norms.ndim == linear.column_norms.ndim == 1
        and linear.rows.shape == (len(linear.row_norms), PROJECTIONS)
        and linear.columns.shape == (len(linear.column_norms), PROJECTIONS)
    )

"""The vocabulary: the frozen values that stages hand to one another. Numpy only."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from qvec_deploy.errors import IntegrityError, RecipeError

Float32 = NDArray[np.float32]
Int8 = NDArray[np.int8]
Int32 = NDArray[np.int32]

INPUT_SCALE = ".input_scale"
"""After a Linear's name: the tensor (in,) that its input is multiplied by, where AWQ found no norm to fold it into."""

Granularity = Literal["tensor", "channel", "group"]
GridRule = Literal["rtn", "mse"]
"""How a grid finds its scales; ModelOpt calls them `max` and `mse`."""
GRID_RULES: tuple[GridRule, ...] = get_args(GridRule)

MIN_BITS, MAX_BITS = 2, 8


@dataclass(frozen=True)
class Scheme:
    """How a weight matrix is put on an integer grid. Symmetric, no zero point.

    Attributes:
        bits: Width of a code, 2 to 8.
        granularity: What shares one scale: the whole `tensor`, an output `channel` (a row), or a `group` of
            `group_size` consecutive weights of a row.
        group_size: Weights per group; 0 unless granularity is `group`.
        clip: Share of the largest magnitude that the grid covers (method `rtn`); 1.0 is absmax.
        method: `rtn` takes `clip` as given; `mse` searches the clip ratio of least squared error.

    Raises:
        RecipeError: A combination that means nothing.
    """

    bits: int
    granularity: Granularity
    group_size: int = 0
    clip: float = 1.0
    method: GridRule = "rtn"

    def __post_init__(self) -> None:
        if not MIN_BITS <= self.bits <= MAX_BITS:
            raise RecipeError(f"{self.bits} bits cannot be packed", hint=f"choose {MIN_BITS} to {MAX_BITS} bits")
        if self.group_size < 0 or (self.granularity == "group") != (self.group_size > 0):
            raise RecipeError(
                f"granularity `{self.granularity}` with group_size {self.group_size}",
                hint="set group_size with granularity `group`, and only there",
            )
        if not 0.0 < self.clip <= 1.0:
            raise RecipeError(f"clip ratio {self.clip} is outside (0, 1]", hint="1.0 covers the largest weight")
        if self.searched and self.clip != 1.0:
            raise RecipeError("method `mse` searches the clip ratio itself", hint="leave out `clip`, or use `rtn`")

    @property
    def searched(self) -> bool:
        """Whether the clip ratio is searched for; otherwise `clip` is taken as given."""
        return self.method == "mse"

    @property
    def qmin(self) -> int:
        """Smallest code, -2^(bits-1)."""
        return -(1 << (self.bits - 1))

    @property
    def qmax(self) -> int:
        """Largest code, 2^(bits-1) - 1."""
        return (1 << (self.bits - 1)) - 1

    def groups(self, columns: int) -> int:
        """Number of scales in a row of `columns` weights.

        Raises:
            RecipeError: Groups do not divide the row.
        """
        if self.granularity != "group":
            return 1
        if columns % self.group_size:
            raise RecipeError(
                f"rows of {columns} weights are not a multiple of group_size {self.group_size}",
                hint="choose a group size that divides every Linear's input width",
            )
        return columns // self.group_size

    def as_dict(self) -> dict[str, Any]:
        """Plain values in field order, for metadata."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Scheme:
        """Read what `as_dict` wrote.

        Raises:
            IntegrityError: Missing, unknown or impossible values.
        """
        fields = {"bits": int, "granularity": str, "group_size": int, "clip": float, "method": str}
        if set(values) != set(fields):
            raise IntegrityError(f"scheme has fields {sorted(values)}", hint=f"expected {sorted(fields)}")
        for name, kind in fields.items():
            if type(values[name]) is not kind:
                raise IntegrityError(f"scheme field {name} is {values[name]!r}", hint=f"expected {kind.__name__}")
        if values["granularity"] not in ("tensor", "channel", "group") or values["method"] not in GRID_RULES:
            raise IntegrityError(f"unknown scheme {values}", hint="the file was written by another version")
        try:
            return cls(**values)
        except RecipeError as error:
            raise IntegrityError(f"impossible scheme: {error.message}", hint=error.hint) from error

    def __str__(self) -> str:
        grain = f"group of {self.group_size}" if self.granularity == "group" else f"per {self.granularity}"
        clip = f", clip {self.clip:g}" if self.clip != 1.0 else ""
        return f"{self.bits} bits {grain}, {self.method}{clip}"


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """A quantized weight as a matrix: a Linear's (out, in) as it is, a convolution's (out, in * height * width)."""
    return shape[0], math.prod(shape[1:])


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """A weight matrix as integer codes.

    Attributes:
        codes: (out, in) int8, within [scheme.qmin, scheme.qmax].
        scale: (out, groups) float32, positive; with granularity `tensor` one value repeated.
    """

    codes: Int8
    scale: Float32
    scheme: Scheme

    def dequantize(self) -> Float32:
        """The (out, in) float32 weights the codes stand for: code times scale, one multiplication."""
        rows, columns = self.codes.shape
        groups = self.scale.shape[1]
        values = self.codes.astype(np.float32).reshape(rows, groups, columns // groups)
        return (values * self.scale[:, :, None]).reshape(rows, columns)


@dataclass(frozen=True, eq=False)
class PackedTensor:
    """A weight matrix with its codes packed at exactly `bits` bits (see packed/FORMAT.md).

    Attributes:
        payload: (out, words) int32; `words` is bits * ceil(in / 32).
        scale: (out, groups) float32.
        shape: (out, in) of the weight matrix.
    """

    payload: Int32
    scale: Float32
    scheme: Scheme
    shape: tuple[int, int]

"""Rows and columns put back in their places: what undoes a symmetry, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qvec_deploy.io.checkpoint import Checkpoint
from qvec_deploy.io.safetensors_file import write_safetensors
from qvec_deploy.tensors import Float32
from qvec_deploy.vectors.matching import Indices
from qvec_deploy.vectors.sketch import Read


@dataclass(frozen=True, eq=False)
class TensorChange:
    """What to do with one tensor; None leaves it as it is.

    Attributes:
        rows: The row that belongs in each place, along the first axis.
        row_factors: What each row is then multiplied with, signs and scales.
        columns: The column that belongs in each place, along the last axis.
        column_factors: What each column is then multiplied with.
    """

    rows: Indices | None = None
    row_factors: Float32 | None = None
    columns: Indices | None = None
    column_factors: Float32 | None = None

    def apply(self, tensor: Float32) -> Float32:
        """The tensor with its rows and columns in place, float32."""
        if self.rows is not None:
            tensor = tensor[self.rows]
        if self.row_factors is not None:
            tensor = tensor * self.row_factors.reshape(-1, *[1] * (tensor.ndim - 1))
        if self.columns is not None:
            tensor = tensor[..., self.columns]
        if self.column_factors is not None:
            tensor = tensor * self.column_factors
        return np.ascontiguousarray(tensor)


def change_rows(module: str, rows: Indices, factors: Float32 | None = None) -> dict[str, TensorChange]:
    """The changes that give a Linear's outputs another order, and factors: its weight's rows and its bias."""
    change = TensorChange(rows=rows, row_factors=factors)
    return {f"{module}.weight": change, f"{module}.bias": change}


def change_columns(module: str, columns: Indices, factors: Float32 | None = None) -> dict[str, TensorChange]:
    """The changes that give a Linear's inputs another order, and factors: its weight's columns."""
    return {f"{module}.weight": TensorChange(columns=columns, column_factors=factors)}


def corrected(read: Read, changes: Mapping[str, TensorChange]) -> Read:
    """A reader of the receiver with all `changes` made, still one tensor at a time."""
    return lambda name: changes[name].apply(read(name)) if name in changes else read(name)


def write_corrected(receiver: Checkpoint, changes: Mapping[str, TensorChange], path: Path) -> None:
    """Write the receiver with all `changes` made, every tensor float32, as a safetensors file."""
    read = corrected(receiver.read, changes)
    arrays = {name: read(name) for name in receiver.tensors}
    write_safetensors(path, arrays, dict(receiver.metadata) or None)

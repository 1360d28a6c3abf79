"""One vector, one safetensors file: rho per backbone tensor, a sketch of its donor, and one entry of metadata.

Rho's tensors carry the names of the model's state dict. What else is in the file has a prefix with a colon, which no
state dict has: `sketch:` for the donor's sketch (float16), `moments:` for second moments of the inputs of its Linears.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qvec_deploy.errors import IncompatibleError, IntegrityError
from qvec_deploy.io.checkpoint import Checkpoint, TensorInfo
from qvec_deploy.io.safetensors_file import write_safetensors
from qvec_deploy.tensors import Float32
from qvec_deploy.vectors.sketch import Sketch, read_sketch, sketch_tensors
from qvec_deploy.vectors.vector_header import FORMAT, FORMAT_VERSION, Part, VectorHeader, header_text, read_header

__all__ = ["FORMAT", "FORMAT_VERSION", "Part", "QuantizationVector", "VectorHeader", "write_vector"]

SKETCH, MOMENTS = "sketch:", "moments:"


class QuantizationVector:
    """A vector file: its header now, its tensors on demand."""

    def __init__(self, checkpoint: Checkpoint, header: VectorHeader) -> None:
        self.checkpoint = checkpoint
        self.header = header
        self.tensors: Mapping[str, TensorInfo] = {
            name: info for name, info in checkpoint.tensors.items() if not name.startswith((SKETCH, MOMENTS))
        }

    @classmethod
    def open(cls, source: str | Path, *, offline: bool = False, label: str | None = None) -> QuantizationVector:
        """Open a vector file and read its header only.

        Raises:
            IntegrityError: Not a vector file, or a damaged one.
            IncompatibleError: Written by a later major version.
        """
        checkpoint = Checkpoint.open(source, offline=offline, label=label)
        text = checkpoint.metadata.get("qvec")
        if text is None:
            raise IntegrityError(
                f"{checkpoint.path} is not a quantization vector",
                hint="make one from a donor's FP and QAT checkpoints, or name those under vector.donors",
            )
        return cls(checkpoint, read_header(text, checkpoint.path))

    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of the file."""
        return {self.checkpoint.source: self.checkpoint.fingerprint()}

    def read(self, name: str) -> Float32:
        """One tensor of rho as float32."""
        return self.checkpoint.read(name)

    def sketch(self) -> Sketch | None:
        """The sketch of the donor's float weights; None in a file that has none, as those of format 1.0."""
        if self.header.sketch_seed is None:
            return None
        return read_sketch(self._named(SKETCH), lambda name: self.read(SKETCH + name), self.header.sketch_seed)

    def moments(self) -> dict[str, Float32] | None:
        """Second moments of the inputs of the donor's Linears, by module: (in, in) float32; None if it ships none."""
        return {name: self.read(MOMENTS + name) for name in self._named(MOMENTS)} or None

    def moment(self, module: str) -> Float32 | None:
        """Second moments (in, in) of the inputs of one of the donor's Linears; None where it ships none."""
        name = MOMENTS + module
        return self.read(name) if name in self.checkpoint.tensors else None

    def control(self) -> str | None:
        """What was put in rho's place, in words (`shuffle, seed 0`), for a control; None for a real vector."""
        return self.header.control

    @property
    def has_moments(self) -> bool:
        """Whether the file ships second moments."""
        return any(name.startswith(MOMENTS) for name in self.checkpoint.tensors)

    def _named(self, prefix: str) -> list[str]:
        return [name.removeprefix(prefix) for name in self.checkpoint.tensors if name.startswith(prefix)]


def write_vector(
    path: Path,
    header: VectorHeader,
    tensors: Iterable[tuple[str, Float32]],
    *,
    dtype: str = "float32",
    sketch: Sketch | None = None,
    moments: Mapping[str, NDArray[np.floating]] | None = None,
) -> VectorHeader:
    """Write a vector file, whole or not at all.

    Args:
        header: Its metadata; `dtype` and `sketch_seed` are set to what is written.
        sketch: Sketch of the donor's float weights; written as float16.
        moments: Module to (in, in) second moments of its inputs; written in the dtype they have.
    """
    header = replace(header, dtype=dtype, sketch_seed=sketch.seed if sketch is not None else None)
    with np.errstate(over="ignore"):
        arrays = {name: np.ascontiguousarray(value.astype(dtype)) for name, value in tensors}
        if not any(array.any() for array in arrays.values()):
            raise IncompatibleError(
                f"{path}: the vector would be zero everywhere as {dtype}",
                hint="name a float fine-tune and its QAT fine-tune, not one file twice; a tiny rho needs float32",
            )
        for name, value in sketch_tensors(sketch).items() if sketch is not None else ():
            arrays[SKETCH + name] = np.ascontiguousarray(value.astype(np.float16))
    for name, value in (moments or {}).items():
        arrays[MOMENTS + name] = np.ascontiguousarray(value)
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise IntegrityError(
                f"{path}: {name} would not be finite in {array.dtype}", hint="the donor diverged, or needs float32"
            )
    write_safetensors(path, arrays, {"qvec": header_text(header)})
    return header

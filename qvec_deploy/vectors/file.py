"""One vector, one safetensors file: rho per backbone tensor, and one metadata entry that says what it fits."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qvec_deploy.checkpoint import Checkpoint, TensorInfo
from qvec_deploy.errors import IncompatibleError, IntegrityError, QvecError
from qvec_deploy.store import atomic_path, canonical_json
from qvec_deploy.tensors import Float32, Scheme

FORMAT = "qvec-vector"
FORMAT_VERSION = "1.0.0"
_FIELDS = {"format", "version", "scheme", "skip", "task", "seed", "norm", "weight_norm", "made_by"}


@dataclass(frozen=True)
class VectorHeader:
    """What a vector fits, known without reading it.

    Attributes:
        scheme: The grid its donor was trained for.
        skip: Child names its donor left float.
        task: The donor's task.
        seed: The donor's seed.
        norm: L2 norm of rho over all its tensors.
        weight_norm: L2 norm of the donor's float weights over the same tensors.
        made_by: Tool and version.
    """

    scheme: Scheme
    skip: tuple[str, ...]
    task: str
    seed: int
    norm: float
    weight_norm: float
    made_by: str


class QuantizationVector:
    """A vector file: its header now, its tensors on demand."""

    def __init__(self, checkpoint: Checkpoint, header: VectorHeader) -> None:
        self.checkpoint = checkpoint
        self.header = header

    @classmethod
    def open(cls, source: str | Path, *, offline: bool = False, label: str | None = None) -> QuantizationVector:
        """Open a vector file and read its header only.

        Raises:
            IntegrityError: Not a vector file, or a damaged one.
            IncompatibleError: Written by a later major version.
            StorageError, FetchError: As `Checkpoint.open`.
        """
        checkpoint = Checkpoint.open(source, offline=offline, label=label)
        text = checkpoint.metadata.get("qvec")
        if text is None:
            raise IntegrityError(
                f"{checkpoint.path} is not a quantization vector",
                hint="make one from a donor's FP and QAT checkpoints, or name those under vector.donors",
            )
        return cls(checkpoint, _read_header(text, checkpoint.path))

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Names, shapes and dtypes of the tensors rho covers."""
        return self.checkpoint.tensors

    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of the file."""
        return {self.checkpoint.source: self.checkpoint.fingerprint()}

    def read(self, name: str) -> Float32:
        """One tensor of rho as float32.

        Raises:
            IntegrityError: NaN or infinity.
        """
        return self.checkpoint.read(name)


def write_vector(
    path: Path, header: VectorHeader, tensors: Iterable[tuple[str, Float32]], *, dtype: str = "float32"
) -> None:
    """Write a vector file, whole or not at all.

    Args:
        path: Where to.
        header: Its metadata.
        tensors: Name and rho, float32.
        dtype: `float32`, or `float16` at half the size.

    Raises:
        IntegrityError: A value that is not finite, or too large for float16.
        StorageError: The disk refuses.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    with np.errstate(over="ignore"):
        arrays = {name: np.ascontiguousarray(value.astype(dtype)) for name, value in tensors}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise IntegrityError(
                f"{path}: {name} would not be finite in {dtype}", hint="the donor diverged, or needs float32"
            )
    metadata = {"qvec": canonical_json(_header_dict(header)).decode()}
    with atomic_path(path) as temporary:
        try:
            save_file(arrays, temporary, metadata)
        except SafetensorError as error:  # how it reports what the disk refuses
            raise OSError(str(error)) from error


def _header_dict(header: VectorHeader) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "scheme": header.scheme.as_dict(),
        "skip": list(header.skip),
        "task": header.task,
        "seed": header.seed,
        "norm": float(header.norm),
        "weight_norm": float(header.weight_norm),
        "made_by": header.made_by,
    }


def _read_header(text: str, path: Path) -> VectorHeader:
    try:
        values: Mapping[str, Any] = json.loads(text)
        if values["format"] != FORMAT:
            raise IntegrityError(f"{path} is a {values['format']} file", hint="a quantization vector is needed here")
        if str(values["version"]).split(".")[0] != FORMAT_VERSION.split(".")[0]:
            raise IncompatibleError(
                f"{path} has vector format {values['version']}", hint=f"this version reads {FORMAT_VERSION}; upgrade"
            )
        if set(values) != _FIELDS:
            raise IntegrityError(f"{path} has header fields {sorted(values)}", hint=f"expected {sorted(_FIELDS)}")
        header = VectorHeader(
            scheme=Scheme.from_dict(values["scheme"]),
            skip=tuple(map(str, values["skip"])),
            task=str(values["task"]),
            seed=int(values["seed"]),
            norm=float(values["norm"]),
            weight_norm=float(values["weight_norm"]),
            made_by=str(values["made_by"]),
        )
        if canonical_json({**_header_dict(header), "version": values["version"]}) != canonical_json(values):
            raise ValueError("a field has another type than this format gives it")
    except QvecError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IntegrityError(
            f"{path} has a damaged vector header: {error}", hint="make or download it again"
        ) from error
    return header

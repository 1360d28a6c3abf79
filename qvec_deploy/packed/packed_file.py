"""The container `weights.qvec.safetensors`: written one tensor at a time, read through a memory map.

FORMAT.md says what is in it. The file is a safetensors file, byte for byte the one that safetensors' own
serializer would write; we write it ourselves so that a model never has to be in memory at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from qvec_deploy.errors import IncompatibleError, IntegrityError
from qvec_deploy.io.files import atomic_path, storage_errors
from qvec_deploy.packed.codec import check_padding
from qvec_deploy.packed.file_layout import MAX_HEADER, Entry, Layout, Stored, decode, encode, place, scale_name
from qvec_deploy.tensors import Float32, PackedTensor, Scheme, matrix_shape

FloatArray = NDArray[np.float32] | NDArray[np.float16]
Bytes = NDArray[np.uint8]

_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "F32": np.dtype(np.float32),
    "I32": np.dtype(np.int32),
    "F16": np.dtype(np.float16),
}
_LENGTH: Final = 8  # bytes of a safetensors file before its header


@dataclass(frozen=True)
class Span:
    """Bytes of the file, counted from its beginning: what ONNX external data points at."""

    offset: int
    size: int


@dataclass(frozen=True)
class PackedInfo:
    """One weight of a packed file.

    Attributes:
        shape: Of the weight itself; (out, in) where it is quantized, or a convolution's (out, in, height, width).
        scheme: How it is quantized; None for a float tensor.
        dtype: Of the bytes in `data`: `I32` where it is quantized, else `F32` or `F16`.
        data: The payload, or the float values.
        scale: The scale; None for a float tensor.
    """

    name: str
    shape: tuple[int, ...]
    scheme: Scheme | None
    dtype: str
    data: Span
    scale: Span | None

    @property
    def matrix(self) -> tuple[int, int]:
        """(out, in) of the matrix that a quantized weight is stored as."""
        return matrix_shape(self.shape)


def entry_of(tensor: PackedTensor | FloatArray) -> Entry:
    """The layout's entry for a tensor that is already there.

    Raises:
        ValueError: An array of another dtype than float32 or float16.
    """
    if isinstance(tensor, PackedTensor):
        return Entry(tensor.shape, tensor.scheme)
    if tensor.dtype == np.float32:
        return Entry(tensor.shape)
    if tensor.dtype == np.float16:
        return Entry(tensor.shape, dtype="F16")
    raise ValueError(f"a packed file holds float32 and float16, not {tensor.dtype}")


def write_packed(path: Path, layout: Layout, tensors: Iterable[tuple[str, PackedTensor | FloatArray]]) -> None:
    """Write a packed file; it appears whole or not at all.

    Args:
        layout: Every weight, before any of them is known.
        tensors: The weights by name, in any order; each is written when it comes and then let go.

    Raises:
        IntegrityError: A value that is not finite, a scale that is not positive, other padding, or a name or shape
            that the format does not hold.
        RecipeError: Groups do not divide a row.
        StorageError: The file cannot be written.
        ValueError: The tensors are not those of the layout.
    """
    header, places = encode(layout), place(layout)
    missing = set(layout)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(header)
        for name, tensor in tensors:
            if name not in missing:
                raise ValueError(f"{name!r} came twice or is not in the layout")
            missing.remove(name)
            if entry_of(tensor) != _entry_of_values(layout[name]):
                raise ValueError(f"{name!r} is {entry_of(tensor)}, the layout says {layout[name]}")
            for part, array in _parts(name, tensor, places).items():
                file.seek(len(header) + places[part].offset)
                file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        if missing:
            raise ValueError(f"{len(missing)} tensors of the layout never came, {min(missing)!r} among them")


@dataclass(frozen=True, eq=False)
class PackedFile:
    """A packed file, memory-mapped: opening reads its header, the values are read where they are used.

    Attributes:
        version: Version of the format it was written in.
        tensors: Every weight by name, sorted.
    """

    path: Path
    version: str
    tensors: Mapping[str, PackedInfo]
    _places: Mapping[str, Stored]
    _data: Bytes

    @classmethod
    def open(cls, path: Path) -> PackedFile:
        """Open a packed file and check everything but the values.

        Raises:
            IncompatibleError: It was written in a later major version of the format.
            IntegrityError: It is not a packed file, or not a whole one, or not one as `write_packed` writes it.
            StorageError: It cannot be read.
        """
        try:
            with storage_errors(path), path.open("rb") as file:
                size = path.stat().st_size
                header = _read_header(file, size)
                layout, version = decode(header)
                places = place(layout)
                start = _LENGTH + len(header)
                _require_size(size, start + sum(stored.size for stored in places.values()))
                mapped: Bytes = np.memmap(file, np.uint8, "r")
        except (IntegrityError, IncompatibleError) as error:
            raise type(error)(f"{path}: {error.message}", hint=error.hint) from error
        tensors = {name: _info(name, entry, places, start) for name, entry in layout.items()}
        return cls(path, version, tensors, places, mapped.view(np.ndarray)[start:])

    def packed(self, name: str) -> PackedTensor:
        """A quantized tensor; its arrays are read-only views of the memory map.

        Raises:
            IntegrityError: There is none of that name, its scale is not positive and finite, or its padding is not
                code 0.
        """
        info = self.tensors.get(name)
        if info is None or info.scheme is None:
            raise self._absent("quantized", name)
        tensor = PackedTensor(self._view(name), self._view(scale_name(name)), info.scheme, info.matrix)
        _check_packed(f"{self.path}: {name!r}", tensor)
        return tensor

    def array(self, name: str) -> FloatArray:
        """A float tensor, float32 or float16 as stored: a read-only view of the memory map.

        Raises:
            IntegrityError: There is none of that name, or a value is not finite.
        """
        if name not in self.tensors or self.tensors[name].scheme:
            raise self._absent("float", name)
        array = self._view(name)
        _check_finite(f"{self.path}: {name!r}", array)
        return array

    def check(self) -> None:
        """Read everything once.

        Raises:
            IntegrityError: A value that `write_packed` would not have written.
        """
        for name, info in self.tensors.items():
            if info.scheme:
                self.packed(name)
            else:
                self.array(name)

    def _absent(self, kind: str, name: str) -> IntegrityError:
        return IntegrityError(
            f"{self.path} has no {kind} tensor {name!r}", hint="`tensors` lists what it has; build the file again"
        )

    def _view(self, stored_name: str) -> NDArray[Any]:
        stored = self._places[stored_name]
        data = self._data[stored.offset : stored.offset + stored.size]
        return data.view(_DTYPES[stored.dtype]).reshape(stored.shape)


def _entry_of_values(entry: Entry) -> Entry:
    """What `entry_of` says of the values: those of a convolution are a matrix."""
    return entry if entry.scheme is None else replace(entry, shape=matrix_shape(entry.shape))


def _read_header(file: BinaryIO, size: int) -> bytes:
    """The header, padding included; nothing is allocated before its length has been believed."""
    length = int.from_bytes(file.read(_LENGTH), "little") if size >= _LENGTH else 0
    if not 0 < length <= MAX_HEADER or length % 8:
        raise IntegrityError(
            f"no header of at most {MAX_HEADER} bytes", hint="this is not a packed file; build it again"
        )
    _require_size(size, _LENGTH + length, at_least=True)
    return file.read(length)


def _require_size(size: int, expected: int, *, at_least: bool = False) -> None:
    if size < expected:
        raise IntegrityError(
            f"the file is cut off: {size} bytes of {expected}", hint="copy or build it again; the disk may be full"
        )
    if size > expected and not at_least:
        raise IntegrityError(
            f"{size - expected} bytes follow the last tensor", hint="the file was altered; build it again"
        )


def _info(name: str, entry: Entry, places: Mapping[str, Stored], start: int) -> PackedInfo:
    def span(stored: Stored) -> Span:
        return Span(start + stored.offset, stored.size)

    scale = span(places[scale_name(name)]) if entry.scheme else None
    return PackedInfo(name, entry.shape, entry.scheme, places[name].dtype, span(places[name]), scale)


def _parts(name: str, tensor: PackedTensor | FloatArray, places: Mapping[str, Stored]) -> dict[str, NDArray[Any]]:
    """What is stored for one weight, by the name it is stored under; checked."""
    if isinstance(tensor, PackedTensor):
        parts: dict[str, NDArray[Any]] = {name: tensor.payload, scale_name(name): tensor.scale}
    else:
        parts = {name: tensor}
    for part, array in parts.items():
        stored = places[part]
        if array.dtype != _DTYPES[stored.dtype] or array.shape != stored.shape:
            raise ValueError(f"{part!r} is {array.dtype} {array.shape}, the layout says {stored.dtype} {stored.shape}")
    if isinstance(tensor, PackedTensor):
        _check_packed(repr(name), tensor)
    else:
        _check_finite(repr(name), tensor)
    return parts


def _check_packed(what: str, tensor: PackedTensor) -> None:
    _check_scale(what, tensor.scale, tensor.scheme)
    try:
        check_padding(tensor.payload, tensor.scheme.bits, tensor.shape[1])
    except IntegrityError as error:
        raise IntegrityError(f"{what}: {error.message}", hint=error.hint) from error


def _check_scale(what: str, scale: Float32, scheme: Scheme) -> None:
    if not (np.isfinite(scale) & (scale > 0)).all():
        raise IntegrityError(
            f"{what} has a scale that is not positive and finite",
            hint="the weights it came from are damaged or diverged; look at them",
        )
    if scheme.granularity == "tensor" and (scale != scale[0, 0]).any():
        raise IntegrityError(
            f"{what} has several scales under granularity `tensor`", hint="use granularity `channel`, or repeat one"
        )


def _check_finite(what: str, array: FloatArray) -> None:
    if not np.isfinite(array).all():
        raise IntegrityError(
            f"{what} holds NaN or infinity", hint="the weights it came from are damaged or diverged; look at them"
        )

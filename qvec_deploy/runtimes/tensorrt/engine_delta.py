"""An engine as the difference to its graph: where the graph's constants lie in it, and the rest of it, compressed.

A builder copies a graph's large constants into its engine, some with their axes in another order. So whoever can make
the graph again, from weights of 3 bits, needs only the rest: about a thousandth of the engine.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import lzma
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto
from pydantic import BaseModel, ConfigDict, ValidationError

from qvec_deploy.errors import IncompatibleError, IntegrityError, first_line
from qvec_deploy.io.files import canonical_json, sha256_bytes
from qvec_deploy.runtimes.tensorrt.byte_search import find_all

MAGIC = b"QVECDLT1"
_HINT = "build or copy the bundle again; `qvec-deploy compile BUNDLE` builds its engines anew"
_NIBBLE = 4
_WIDTHS = (_NIBBLE, 8, 16, 32, 64)
_LEAST_BYTES = 256
"""Smaller constants are a part of the rest."""
_MOST_AXES = 4
_FILLED_TO = (4, 8)
"""What kernels want the channels of an image in: the last axis is filled up to a multiple, with zeros."""
_PRESET = 6
_HEADER_BYTES = 1 << 22
_REST_BYTES = 1 << 28
_MOST_COPIES = 4
"""No larger header or rest is read, nor an engine with more copies of all constants."""
_MEMORY_BYTES = 1 << 27
"""Memory that decompressing may take."""

_Layout = tuple[str, tuple[int, ...], int]
"""A constant's name, its axes in the order in which they lie, and the length of the last."""


class DeltaPart(BaseModel):
    """A part of what a delta says: frozen, with its own fields and no others."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ConstantSpan(DeltaPart):
    """A constant in an engine.

    Attributes:
        axes: Its axes in the order in which they lie there.
        last: Length of the last of them, with what it is filled up to.
    """

    offset: int
    name: str
    axes: tuple[int, ...]
    last: int


class DeltaHeader(DeltaPart):
    """What a delta says about itself, as JSON behind MAGIC and its length in 4 bytes; the rest follows as an xz stream.

    Attributes:
        constants_sha256: Of the constants that the spans name: names, types, shapes and bytes.
        spans: The constants by offset; none overlaps the next.
    """

    engine_bytes: int
    engine_sha256: str
    constants_sha256: str
    spans: tuple[ConstantSpan, ...]


def encode(model: ModelProto, engine: bytes) -> bytes | None:
    """The delta of an engine to the graph that it was built from; None where it is no smaller, or gives no engine."""
    constants = _constants(model)
    spans = _find_spans(constants, engine)
    rest, pieces, at = lzma.LZMACompressor(preset=_PRESET), [], 0
    for span in spans:
        pieces.append(rest.compress(engine[at : span.offset]))
        at = span.offset + _size(constants[span.name], span.axes, span.last)
    pieces += [rest.compress(engine[at:]), rest.flush()]
    said = DeltaHeader(
        engine_bytes=len(engine),
        engine_sha256=sha256_bytes(engine),
        constants_sha256=_hash_constants(constants, spans),
        spans=tuple(spans),
    )
    header = canonical_json(said.model_dump(mode="json"))
    delta = b"".join([MAGIC, len(header).to_bytes(4, "little"), header, *pieces])
    if not spans or len(delta) >= len(engine):
        return None
    with contextlib.suppress(IntegrityError):
        for _ in _parts(model, delta):
            pass
        return delta
    return None


def decode(model: ModelProto, delta: bytes) -> bytes:
    """The engine of a delta.

    Raises:
        IncompatibleError: The graph is another one than the engine was built from.
        IntegrityError: The delta is damaged or was altered.
    """
    engine = io.BytesIO()
    for part in _parts(model, delta):
        engine.write(part)
    return engine.getvalue()


def _parts(model: ModelProto, delta: bytes) -> Iterator[bytes]:
    """The engine piece by piece; it is the right one if they come to an end."""
    header, start = read_header(delta)
    constants = _constants(model)
    missing = {span.name for span in header.spans} - set(constants)
    if missing or _hash_constants(constants, header.spans) != header.constants_sha256:
        raise IncompatibleError(
            "the engine is stored as a difference to a graph that is made otherwise here",
            hint="use the version of qvec-deploy that manifest.json names, or build the engine anew with "
            "`qvec-deploy compile BUNDLE`",
        )
    gaps, rest, digest = _gaps(header, constants), _Rest(delta[start:]), hashlib.sha256()
    for gap, span in zip(gaps, (*header.spans, None), strict=True):
        for part in rest.read(gap):
            digest.update(part)
            yield part
        if span is not None:
            part = _lay_out(constants[span.name], span.axes, span.last)
            digest.update(part)
            yield part
    rest.require_end()
    if digest.hexdigest() != header.engine_sha256:
        raise _damaged("it gives another engine")


def read_header(delta: bytes) -> tuple[DeltaHeader, int]:
    """What a delta says about itself, and where its rest starts.

    Raises:
        IntegrityError: It is damaged.
    """
    start = len(MAGIC) + 4
    if delta[: len(MAGIC)] != MAGIC:
        raise _damaged("it does not begin as one")
    end = start + int.from_bytes(delta[len(MAGIC) : start], "little")
    if end > min(len(delta), start + _HEADER_BYTES):
        raise _damaged("its header is cut off")
    try:
        return DeltaHeader.model_validate_json(delta[start:end]), end
    except ValidationError as error:
        raise _damaged(first_line(error)) from error


class _Rest:
    """The bytes between the constants, decompressed as they are read."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY_BYTES)

    def read(self, count: int) -> Iterator[bytes]:
        """The next so many bytes."""
        while count:
            piece = self._next(count)
            if not piece:
                raise _damaged("it is cut off")
            yield piece
            count -= len(piece)

    def require_end(self) -> None:
        if self._next(1) or not self._stream.eof or self._stream.unused_data:
            raise _damaged("it is longer than it says")

    def _next(self, most: int) -> bytes:
        if self._stream.eof:
            return b""
        data, self._data = self._data, b""
        try:
            return self._stream.decompress(data, max_length=most)
        except (lzma.LZMAError, EOFError) as error:
            raise _damaged(first_line(error)) from error


def _constants(model: ModelProto) -> dict[str, TensorProto]:
    """The graph's constants that are worth looking for, by name."""
    return {tensor.name: tensor for tensor in model.graph.initializer if _bits(tensor)}


def _bits(tensor: TensorProto) -> int:
    """Bits of one of a constant's values; 0 where it is too small, or its values have no such width."""
    count, size = math.prod(tensor.dims), len(tensor.raw_data)
    if not tensor.dims or not count or size < _LEAST_BYTES or 8 * size % count:
        return 0
    bits = 8 * size // count
    return bits if bits in _WIDTHS else 0


def _find_spans(constants: Mapping[str, TensorProto], engine: bytes) -> list[ConstantSpan]:
    """Constants in the engine that do not overlap, by offset."""
    layouts = {
        (name, axes, last): partial(_lay_out, tensor, axes, last)
        for name, tensor in constants.items()
        for axes, last in _layouts(tensor)
    }
    chosen: list[ConstantSpan] = []
    end = 0
    for offset, (name, axes, last) in _longest_first(find_all(engine, layouts), constants):
        if offset >= end:
            chosen.append(ConstantSpan(offset=offset, name=name, axes=axes, last=last))
            end = offset + _size(constants[name], axes, last)
    return chosen


def _longest_first(
    places: Iterable[tuple[int, _Layout]], constants: Mapping[str, TensorProto]
) -> list[tuple[int, _Layout]]:
    """By offset; of those at one offset, the longest, and then the first by name and order of axes."""
    return sorted(places, key=lambda place: (place[0], -_size(constants[place[1][0]], *place[1][1:]), place[1]))


def _hash_constants(constants: Mapping[str, TensorProto], spans: Sequence[ConstantSpan]) -> str:
    digest = hashlib.sha256()
    for name in sorted({span.name for span in spans}):
        tensor = constants[name]
        digest.update(canonical_json([name, tensor.data_type, list(tensor.dims), len(tensor.raw_data)]))
        digest.update(tensor.raw_data)
    return digest.hexdigest()


def _gaps(header: DeltaHeader, constants: Mapping[str, TensorProto]) -> list[int]:
    """Bytes of the rest before every span and behind the last."""
    at, gaps = 0, []
    for span in header.spans:
        tensor = constants[span.name]
        if sorted(span.axes) != list(range(len(tensor.dims))):
            raise _damaged(f"it orders axes of `{span.name}` that are not there")
        if span.last not in _lengths(tensor, span.axes):
            raise _damaged(f"it fills up `{span.name}`")
        gaps.append(span.offset - at)
        at = span.offset + _size(tensor, span.axes, span.last)
    gaps.append(header.engine_bytes - at)
    copies = _MOST_COPIES * sum(len(tensor.raw_data) for tensor in constants.values())
    if min(gaps) < 0 or sum(gaps) > _REST_BYTES or at > copies + sum(gaps):
        raise _damaged("its constants do not lie in the engine")
    return gaps


def _layouts(tensor: TensorProto) -> Iterator[tuple[tuple[int, ...], int]]:
    """Every order of a constant's axes, with the lengths that the last may have."""
    if len(tensor.dims) <= _MOST_AXES:
        for axes in itertools.permutations(range(len(tensor.dims))):
            for last in _lengths(tensor, axes):
                yield axes, last


def _lengths(tensor: TensorProto, axes: Sequence[int]) -> list[int]:
    length = tensor.dims[axes[-1]]
    filters = len(axes) == _MOST_AXES and _bits(tensor) > _NIBBLE
    filled = [length + -length % multiple for multiple in _FILLED_TO] if filters else []
    return list(dict.fromkeys([length, *filled]))


def _size(tensor: TensorProto, axes: Sequence[int], last: int) -> int:
    return int(len(tensor.raw_data) * last // tensor.dims[axes[-1]])


def _lay_out(tensor: TensorProto, axes: Sequence[int], last: int) -> bytes:
    """A constant's bytes with its axes in another order."""
    length = tensor.dims[axes[-1]]
    if list(axes) == sorted(axes) and last == length:
        return bytes(tensor.raw_data)
    values = _values(tensor).transpose(axes)
    if last != length:
        values = np.pad(values, [(0, 0)] * (len(axes) - 1) + [(0, last - length)])
    flat = np.ascontiguousarray(values).reshape(-1)
    if _bits(tensor) == _NIBBLE:
        flat = flat[0::2] | flat[1::2] << 4
    return flat.tobytes()


def _values(tensor: TensorProto) -> NDArray[Any]:
    """A constant's values as the integers that they are stored as; those of 4 bits lie two to a byte."""
    data = np.frombuffer(tensor.raw_data, np.uint8)
    bits = _bits(tensor)
    if bits == _NIBBLE:
        return np.stack([data & 0x0F, data >> 4], axis=-1).reshape(tensor.dims)
    return data.view(f"u{bits // 8}").reshape(tensor.dims)


def _damaged(why: str) -> IntegrityError:
    return IntegrityError(f"the engine's delta is damaged: {why}", hint=_HINT)

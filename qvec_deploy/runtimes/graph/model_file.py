"""The bytes of an ONNX model to its message, with limits that hold before protobuf asks for memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx

from qvec_deploy.io.untrusted import read_limited

MAX_FILE = 1 << 29
"""Bytes of a stored model; its weights are elsewhere."""
MAX_STRUCTURE = 4 << 20
"""Bytes of it that are no values of constants: a message of two bytes takes a hundred in memory."""
MAX_NODES = 10_000
MAX_FIELDS = 100_000
"""Fields that are looked at to find that out."""

# Numbers of fields in onnx.proto: of a model, of its graph, and of an initializer.
_GRAPH, _NODE, _INITIALIZER, _RAW_DATA = 7, 1, 5, 9
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5


def read_model(path: Path) -> onnx.ModelProto:
    """A model file; external data is left where it is.

    Raises:
        ValueError: It is beyond the limits; protobuf raises its own errors.
    """
    return parse_model(read_limited(path, MAX_FILE))


def parse_model(data: bytes) -> onnx.ModelProto:
    """As `read_model`, of bytes."""
    _require_small(data)
    return onnx.load_model_from_string(data)


def _require_small(data: bytes) -> None:
    fields = _Fields(data)
    nodes = constants = 0
    for model_field, start, end in fields.within(0, len(data)):
        if model_field != _GRAPH:
            continue
        for graph_field, first, last in fields.within(start, end):
            nodes += graph_field == _NODE
            if nodes > MAX_NODES:
                raise ValueError(f"its graph has more than {MAX_NODES:,} nodes")
            if graph_field == _INITIALIZER:
                inside = fields.within(first, last)
                constants += sum(stop - at for field, at, stop in inside if field == _RAW_DATA)
    if len(data) - constants > MAX_STRUCTURE:
        raise ValueError(f"it has more than {MAX_STRUCTURE:,} bytes beside its constants")


class _Fields:
    """The fields of protobuf's messages in some bytes, as far as their limit reaches."""

    def __init__(self, data: bytes) -> None:
        self._data, self._left = data, MAX_FIELDS

    def within(self, at: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Fields of one message that have a length: number, where the value begins, and where it ends."""
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise ValueError(f"it has more than {MAX_FIELDS:,} fields")
            key, at = self._varint(at, end)
            number, kind = key >> 3, key & 7
            if kind == _VARINT:
                _, at = self._varint(at, end)
            elif kind in (_FOUR_BYTES, _EIGHT_BYTES):
                at += 4 if kind == _FOUR_BYTES else 8
            elif kind == _LENGTH:
                length, at = self._varint(at, end)
                if length > end - at:
                    raise ValueError("it is cut off")
                yield number, at, at + length
                at += length
            else:
                raise ValueError("it is no ONNX model")

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        """A number of up to 64 bits, seven to a byte, and where it ends."""
        value = 0
        for shift in range(0, 70, 7):
            if at >= end:
                raise ValueError("it is cut off")
            byte, at = self._data[at], at + 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
        raise ValueError("it is no ONNX model")

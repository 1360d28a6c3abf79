"""What is where in a packed file: the layout of a model's weights and the header that says it, both ways.

There is one header for a layout, byte for byte, so reading one is: take the layout out of it, write the header of
that layout, compare. What the writer would not write is thereby refused, whatever it is; the checks before only
find better words for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Final, Literal

from qvec_deploy.errors import IncompatibleError, IntegrityError, RecipeError
from qvec_deploy.io.files import canonical_json
from qvec_deploy.io.untrusted import MAX_DIMENSIONS, parse_json, understood
from qvec_deploy.packed.codec import words_per_row
from qvec_deploy.tensors import Scheme, matrix_shape

FORMAT: Final = "qvec-packed"
_FIRST: Final = "1.0.0"
VERSION: Final = "1.1.0"
MAX_HEADER: Final = 4 << 20  # bytes; ViT-L needs 0.1 MB, and a hostile length must not make us allocate

FloatType = Literal["F32", "F16"]

_METADATA: Final = "__metadata__"  # safetensors' name for it
_KEY: Final = "qvec"  # our one entry: safetensors writes several in random order
_SCALE: Final = ".scale"
_ITEM_SIZE: Final = {"F32": 4, "I32": 4, "F16": 2}  # bytes; in the order in which safetensors stores them
_FLOAT_TYPES: Final[dict[str, FloatType]] = {"F32": "F32", "F16": "F16"}
_RANK: Final = {dtype: rank for rank, dtype in enumerate(_ITEM_SIZE)}
_MATRIX: Final = 2  # dimensions of a quantized Linear
_CONVOLUTION: Final = 4  # of a quantized convolution
_MAX_SIZE: Final = 1 << 40  # of one dimension
_MAX_NAME: Final = 256
_REBUILD: Final = "the file is damaged or was not written by qvec-deploy; build it again"
_UPGRADE: Final = "upgrade qvec-deploy, or build the file again with this version"


@dataclass(frozen=True)
class Entry:
    """One weight of the model.

    Attributes:
        shape: Of the weight itself; (out, in) where it is quantized, or a convolution's (out, in, height, width).
        scheme: How it is quantized; None for a float tensor.
        dtype: How a float tensor is stored; F32 where it is quantized.
    """

    shape: tuple[int, ...]
    scheme: Scheme | None = None
    dtype: FloatType = "F32"


Layout = Mapping[str, Entry]
"""Every weight of a model by name: what a packed file holds, without the values."""


@dataclass(frozen=True)
class Stored:
    """One tensor of the container: a payload, a scale or a float tensor.

    Attributes:
        dtype: F32, I32 or F16.
        offset: Bytes from the end of the header.
        size: Bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


def scale_name(name: str) -> str:
    """The name under which the scale of quantized tensor `name` is stored."""
    return name + _SCALE


def place(layout: Layout) -> dict[str, Stored]:
    """Where everything goes: F32, then I32, then F16, by name within each, without gaps.

    That is safetensors' own order, and wide before narrow keeps every tensor aligned to its item size.

    Raises:
        IntegrityError: A name, a shape or a dtype that the format does not hold.
        RecipeError: Groups do not divide a row.
    """
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, entry in layout.items():
        for stored_name, dtype, shape in _parts(name, entry):
            if stored_name in shapes:
                raise IntegrityError(f"two tensors are called {stored_name!r}", hint="rename one of them")
            shapes[stored_name] = dtype, shape
    placed, offset = {}, 0
    for name, (dtype, shape) in sorted(shapes.items(), key=lambda item: (_RANK[item[1][0]], item[0])):
        placed[name] = Stored(dtype, shape, offset, _ITEM_SIZE[dtype] * prod(shape))
        offset += placed[name].size
    return placed


def version_of(layout: Layout) -> str:
    """The lowest version of the format that knows all that is in a layout."""
    convolutions = any(entry.scheme is not None and len(entry.shape) == _CONVOLUTION for entry in layout.values())
    return VERSION if convolutions else _FIRST


def encode(layout: Layout, version: str | None = None) -> bytes:
    """The file up to its data: length, JSON, and spaces to a multiple of 8 bytes.

    Args:
        version: Written into it; the lowest that will do if absent. Only a reader that compares gives one.

    Raises:
        IntegrityError: The layout is none, or has too many tensors for MAX_HEADER.
        RecipeError: Groups do not divide a row.
    """
    schemes = {
        name: {"shape": list(entry.shape), "scheme": entry.scheme.as_dict()}
        for name, entry in layout.items()
        if entry.scheme
    }
    written = {"format": FORMAT, "version": version or version_of(layout), "tensors": schemes}
    document = canonical_json(written).decode("ascii")
    header: dict[str, Any] = {_METADATA: {_KEY: document}}
    for name, stored in place(layout).items():
        span = [stored.offset, stored.offset + stored.size]
        header[name] = {"dtype": stored.dtype, "shape": list(stored.shape), "data_offsets": span}
    text = json.dumps(header, separators=(",", ":")).encode("ascii")  # not sorted: the order is the order of the data
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise IntegrityError(
            f"the header takes {len(text)} bytes", hint=f"the format allows {MAX_HEADER}: fewer tensors or names"
        )
    return len(text).to_bytes(8, "little") + text


def decode(text: bytes) -> tuple[dict[str, Entry], str]:
    """Read the JSON of a header.

    Args:
        text: What follows the eight bytes of the length, padding included.

    Returns:
        The layout, by name, and the version of the format the file was written in.

    Raises:
        IntegrityError: `encode` would not have written it.
        IncompatibleError: It was written for a later major version.
    """
    header = _object(_parse(text, "the header"), "the header")
    version, schemes = _metadata(header.pop(_METADATA, None))
    found = {_name(name): _stored(name, values) for name, values in header.items()}
    layout: dict[str, Entry] = {}
    try:
        for name, (shape, scheme) in schemes.items():
            layout[name] = Entry(shape, scheme)
            for part, dtype, stored_shape in _parts(name, layout[name]):
                _require(found.pop(part, None), part, dtype, stored_shape)
        for name, (dtype, shape) in found.items():
            layout[name] = Entry(shape, dtype=_float_type(name, dtype))
        if version == _FIRST != version_of(layout):
            raise IntegrityError(f"a quantized convolution is not in version {_FIRST}", hint=_REBUILD)
        expected = encode(layout, version)
    except RecipeError as error:
        raise IntegrityError(error.message, hint=_REBUILD) from error
    if expected[8:] != text:
        raise IntegrityError(
            "the header is not the one of its tensors (holes, overlaps, another order or another notation)",
            hint=_REBUILD,
        )
    return dict(sorted(layout.items())), version


def _parts(name: str, entry: Entry) -> list[tuple[str, str, tuple[int, ...]]]:
    """Name, dtype and shape of what is stored for one weight."""
    _name(name)
    shape = _shape(name, list(entry.shape))
    if entry.scheme is None:
        if name.endswith(".weight" + _SCALE):
            raise IntegrityError(f"{name!r} is a scale without a quantized tensor", hint=_REBUILD)
        return [(name, _float_type(name, entry.dtype), shape)]
    if len(shape) not in (_MATRIX, _CONVOLUTION) or entry.dtype != "F32":
        raise IntegrityError(f"{name!r} of shape {shape} is no quantized matrix", hint=_REBUILD)
    rows, columns = matrix_shape(shape)
    return [
        (name, "I32", (rows, words_per_row(columns, entry.scheme.bits))),
        (scale_name(name), "F32", (rows, entry.scheme.groups(columns))),
    ]


def _metadata(values: Any) -> tuple[str, dict[str, tuple[tuple[int, ...], Scheme]]]:
    """Version, and shape and scheme of every quantized tensor, out of the one metadata entry."""
    if not isinstance(values, dict) or list(values) != [_KEY] or not isinstance(values[_KEY], str):
        raise IntegrityError(
            f"the metadata is not one text called {_KEY!r}",
            hint="this is not a packed file; weights.qvec.safetensors in a bundle is",
        )
    document = _object(_parse(values[_KEY].encode(), "the metadata"), "the metadata")
    if document.get("format") != FORMAT:
        raise IntegrityError(f"the metadata does not say format {FORMAT!r}", hint="this is not a packed file")
    version = _version(document.get("version"))
    known = version in (_FIRST, VERSION)
    hint = _REBUILD if known else f"written as version {version}, this reader knows {VERSION}: {_UPGRADE}"
    _exactly(document, {"format", "version", "tensors"}, "the metadata", hint)
    schemes = {}
    for name, entry in _object(document["tensors"], "the list of quantized tensors").items():
        fields = _exactly(entry, {"shape", "scheme"}, f"quantized tensor {_name(name)!r}", hint)
        scheme = Scheme.from_dict(_object(fields["scheme"], f"the scheme of {name!r}"))
        schemes[name] = _shape(name, fields["shape"]), scheme
    return version, schemes


def _version(value: Any) -> str:
    match = re.fullmatch(
        r"(0|[1-9]\d{0,5})\.(0|[1-9]\d{0,5})\.(0|[1-9]\d{0,5})", value if isinstance(value, str) else ""
    )
    if not match or not value.isascii():
        raise IntegrityError("the metadata has no version like 1.0.0", hint=_REBUILD)
    if match[1] != VERSION.split(".")[0]:
        raise IncompatibleError(f"format version {value}; this reader knows {VERSION}", hint=_UPGRADE)
    return match[0]


def _require(found: tuple[str, tuple[int, ...]] | None, name: str, dtype: str, shape: tuple[int, ...]) -> None:
    if found is None:
        raise IntegrityError(f"{name!r} is missing", hint=_REBUILD)
    if found != (dtype, shape):
        raise IntegrityError(f"{name!r} is {found[0]} {found[1]}, expected {dtype} {shape}", hint=_REBUILD)


def _float_type(name: str, dtype: str) -> FloatType:
    if dtype not in _FLOAT_TYPES:
        raise IntegrityError(f"{name!r} is {dtype} and not quantized", hint="float tensors are F32 or F16")
    return _FLOAT_TYPES[dtype]


def _stored(name: str, values: Any) -> tuple[str, tuple[int, ...]]:
    fields = _exactly(values, {"dtype", "shape", "data_offsets"}, f"tensor {name!r}", _REBUILD)
    if not isinstance(fields["dtype"], str) or fields["dtype"] not in _ITEM_SIZE:
        raise IntegrityError(f"{name!r} has another dtype than {', '.join(_ITEM_SIZE)}", hint=_REBUILD)
    return fields["dtype"], _shape(name, fields["shape"])


def _name(name: str) -> str:
    if not (0 < len(name) <= _MAX_NAME and name.isascii() and name.isprintable() and name != _METADATA):
        raise IntegrityError(
            f"{name[:_MAX_NAME]!r} cannot name a tensor", hint=f"1 to {_MAX_NAME} printable ASCII characters can"
        )
    return name


def _shape(name: str, values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or len(values) > MAX_DIMENSIONS:
        raise IntegrityError(f"{name!r} has no shape of at most {MAX_DIMENSIONS} dimensions", hint=_REBUILD)
    if not all(type(value) is int and 0 < value < _MAX_SIZE for value in values):
        raise IntegrityError(f"the shape of {name!r} holds what is not a size", hint=_REBUILD)
    return tuple(values)


def _exactly(values: Any, keys: set[str], what: str, hint: str) -> dict[str, Any]:
    found = set(_object(values, what))
    if found != keys:
        wrong = ", ".join(repr(key[:_MAX_NAME]) for key in sorted(found ^ keys)[:5])
        raise IntegrityError(f"{what} has unknown keys or lacks some: {wrong}", hint=hint)
    return dict(values)


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise IntegrityError(f"{what} is not a JSON object", hint=_REBUILD)
    return value


def _parse(text: bytes, what: str) -> Any:
    with understood(what, _REBUILD):
        return parse_json(text.decode("ascii"))

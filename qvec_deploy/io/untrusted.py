"""The one door for bytes that may come from anybody: limits before memory is asked for, and one kind of error.

Whoever reads a file of a known form reads it within `understood`, JSON by `parse_json` or `read_json`, and safetensors
by `read_arrays`. Whatever parsers, constructors and the code around them then raise is told as the file's damage.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qvec_deploy.errors import IncompatibleError, IntegrityError, QvecError, RecipeError, StorageError, first_line
from qvec_deploy.io.files import require_file, storage_errors

AGAIN = "build or copy the bundle again"
ENOUGH_MEMORY = "free some memory, run fewer jobs at a time, or raise the limit that it runs under (`ulimit -a`)"
_OS_ERROR = re.compile(r"\(os error (\d{1,3})\)")
"""How safetensors tells what the system has refused."""
MAX_BYTES = 16 << 20
"""Of a JSON file, where its reader gives no other limit."""
MAX_DIMENSIONS = 8
MAX_DEPTH = 64
_MAX_TEXT = 1 << 20
_MAX_DIGITS = 20  # a number of 64 bits has as many
_MAX_SHOWN = 200
_ARRAYS = frozenset(f"{kind}{bits}" for kind in "UIF" for bits in (8, 16, 32, 64)) - {"F8"} | {"BOOL"}
"""Types of arrays, as safetensors names them; others need more than NumPy."""
_MAX_HEADER = 16 << 20  # bytes of a safetensors header; that of ViT-L has 0.1 MB


@contextlib.contextmanager
def understood(what: Path | str, hint: str = AGAIN, error: type[QvecError] = IntegrityError) -> Iterator[None]:
    """Turn any failure to understand a file into one error that names it.

    Args:
        what: The file, and where in it.

    Raises:
        StorageError: The system refuses to read.
        IncompatibleError: There is not enough memory.
    """
    try:
        yield
    except QvecError as caught:
        if error is RecipeError or not isinstance(caught, RecipeError):
            raise
        raise error(f"{what} is damaged: {caught.message}", hint=hint) from caught  # no recipe may say so either
    except MemoryError as caught:
        raise IncompatibleError(f"{what}: there is not enough memory to read it", hint=ENOUGH_MEMORY) from caught
    except Exception as caught:
        if isinstance(caught, OSError) and caught.errno is not None:
            raise StorageError(f"{what}: {caught.strerror}", hint="check the path and the disk") from caught
        number = _OS_ERROR.search(str(caught)) if _is_of_safetensors(caught) else None
        if number is not None:
            raise StorageError(f"{what}: {os.strerror(int(number[1]))}", hint="check the path and the disk") from caught
        raise error(f"{what} is damaged: {_reason(caught)[:_MAX_SHOWN]}", hint=hint) from caught


def _is_of_safetensors(error: Exception) -> bool:
    return isinstance(error, OSError) or type(error).__name__ == "SafetensorError"


@functools.cache
def adapter(kind: Any) -> Any:
    """Pydantic's TypeAdapter of a type, which takes tens of milliseconds to make."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def read_limited(path: Path, most: int) -> bytes:
    """The bytes of a file that may have no more than `most`.

    Raises:
        ValueError: It has more.
    """
    with storage_errors(path), path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return data


def read_json(
    path: Path, hint: str = AGAIN, *, most: int = MAX_BYTES, error: type[QvecError] = IntegrityError
) -> dict[str, Any]:
    """The object in a JSON file, by the rules of `parse_json`."""
    with understood(path, hint, error):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ValueError("it is a pipe or a device")
        return json_object(read_limited(path, most))


def json_object(data: bytes | str) -> dict[str, Any]:
    """As `parse_json`, of text that must be an object.

    Raises:
        ValueError: As `parse_json`, or it is something else.
    """
    values = parse_json(data)
    if not isinstance(values, dict):
        raise ValueError("it is no JSON object")
    return values


def parse_json(data: bytes | str) -> Any:
    """JSON text to values, without what JSON does not have and this program never writes.

    Raises:
        ValueError: Not JSON in UTF-8, a key twice, a number that is not finite or needs more than 64 bits, nested more
            than 64 deep, or a text that is too long or no Unicode.
    """
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        values = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_number, parse_float=_number, parse_int=_whole
        )
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"not JSON: {error}") from error
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from None
    level = [values]
    for _ in range(MAX_DEPTH + 1):
        if not level:
            return values
        level = [inner for value in level for inner in _inside(value)]
    raise ValueError(f"it is nested more than {MAX_DEPTH} deep")


def check_dimensions(shapes: Mapping[str, Any]) -> None:
    """Refuse shapes that are none.

    Raises:
        ValueError: More than eight dimensions, or more values than can be counted.
    """
    for name, shape in shapes.items():
        if len(shape) > MAX_DIMENSIONS:
            raise ValueError(f"{name} has more than {MAX_DIMENSIONS} dimensions")
        if math.prod(max(size, 1) for size in shape) >= 1 << 59:  # of eight bytes each, they can be counted
            raise ValueError(f"{name} has an impossible shape")


def safetensors_header(path: Path) -> tuple[dict[str, Any], int]:
    """Entries of a safetensors file's header, checked by the library too, and where the values begin.

    Raises:
        ValueError: It is beyond the limits; the library raises its own errors.
    """
    from safetensors import safe_open

    with storage_errors(path), path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MAX_HEADER:
            raise ValueError(f"its header has {length:,} bytes")
        text = file.read(length)
    with safe_open(path, framework="numpy"):  # it validates sizes, offsets and holes
        header = json_object(text)
    if header.get("__metadata__") is None:  # the library takes null for none
        header.pop("__metadata__", None)
    check_dimensions({name: entry["shape"] for name, entry in header.items() if name != "__metadata__"})
    return header, 8 + length


def read_arrays(path: Path, what: str, hint: str = AGAIN) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """All arrays of a safetensors file, none of which may hold NaN or infinity, and its metadata."""
    from safetensors import safe_open

    require_file(path, what=what)
    with understood(path, hint):
        header, _ = safetensors_header(path)
        for name, entry in header.items():
            if name != "__metadata__" and entry["dtype"] not in _ARRAYS:
                raise ValueError(f"{name} has values of type {entry['dtype']}, which is never written")
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        for name, array in arrays.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ValueError(f"{name} holds NaN or infinity")
    return arrays, header.get("__metadata__", {})


def _reason(error: Exception) -> str:
    """What an error says, in one line; of several that pydantic found, the first and its place."""
    if isinstance(error, KeyError):
        return f"{error} is missing"
    found = getattr(error, "errors", None)
    if not callable(found):
        return first_line(error)
    first = found()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _inside(value: Any) -> list[Any]:
    """What a value holds; texts are looked at here."""
    if isinstance(value, dict):
        return [*value, *value.values()]
    if isinstance(value, list):
        return value
    if isinstance(value, str):
        if len(value) > _MAX_TEXT:
            raise ValueError(f"it holds a text of {len(value):,} characters")
        if not value.isascii():
            value.encode()  # which half of a surrogate pair cannot be
    return []


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key occurs twice")
    return values


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:_MAX_DIGITS]} is no finite number")
    return value


def _whole(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"{text[:_MAX_DIGITS]}... is no number of 64 bits")
    return int(text)

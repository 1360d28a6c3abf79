"""Writing safetensors files: whole or not there, with errors that name the path."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qvec_deploy.io.files import atomic_path

_ALIGNMENT = 8
_KINDS = {"b": "BOOL", "u": "U", "i": "I", "f": "F", "c": "C"}


def write_safetensors(
    path: Path, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None
) -> None:
    """Write arrays by name, one after the other, the same bytes whenever they are the same.

    The library's own writer publishes a file before its bytes are on the disk, and leaves another one when it is
    killed.

    Raises:
        StorageError: The folder cannot be written or is full.
    """
    # Those with the widest elements come first, so that every array is aligned.
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in order:
        start, end = end, end + arrays[name].nbytes
        header[name] = {
            "dtype": _dtype_name(arrays[name].dtype),
            "shape": list(arrays[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(np.ascontiguousarray(arrays[name]).astype(_little(arrays[name].dtype), copy=False).data)


def _dtype_name(dtype: np.dtype[Any]) -> str:
    return _KINDS[dtype.kind] if dtype.kind == "b" else f"{_KINDS[dtype.kind]}{dtype.itemsize * 8}"


def _little(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype.newbyteorder("<")

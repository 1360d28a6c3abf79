"""Partial results of one piece of work in a file, so that who was killed goes on where it was."""

from __future__ import annotations

import hashlib
from pathlib import Path

from qvec_deploy.io.files import storage_errors, write_bytes

_DIGEST = 32
_MOST = 1 << 29
"""Bytes; answers of ten engines to five million images take as many. A longer file is none of ours."""


def read_partial(path: Path, key: bytes) -> bytes | None:
    """What was last written; None where there is nothing, or what is there is torn, damaged or of another key.

    Raises:
        StorageError: The file cannot be read.
    """
    with storage_errors(path):
        if not path.is_file() or path.stat().st_size > _MOST:
            return None
        data = path.read_bytes()
    return data[_DIGEST:] if data[:_DIGEST] == _digest(key, data[_DIGEST:]) else None


def write_partial(path: Path, key: bytes, payload: bytes) -> None:
    """Keep results in place of those before."""
    write_bytes(path, _digest(key, payload) + payload)


def _digest(key: bytes, payload: bytes) -> bytes:
    return hashlib.sha256(key + payload).digest()

"""What is the same for all models of an architecture, kept in the user's cache folder from one command to the next.

Nothing depends on it: where there is no home, where the disk is full or read-only, and where what is kept is damaged,
things are made as if nothing had been kept.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

from qvec_deploy.errors import StorageError
from qvec_deploy.io.files import cache_folder, canonical_json, file_lock, sha256_bytes
from qvec_deploy.io.made_by import own_text, versions
from qvec_deploy.io.partial_results import read_partial, write_partial
from qvec_deploy.io.untrusted import adapter

_KEPT = 256
"""Files in the folder."""
T = TypeVar("T")


def remembered(kind: str, inputs: Any, make: Callable[[], bytes], *, packages: Iterable[str]) -> bytes:
    """What was made of the same inputs before, or is made now.

    Args:
        kind: Begins the file's name.
        inputs: What decides the bytes, as JSON values, beside versions and this package's own text.
        make: Makes them; another process that needs the same waits for it.
        packages: Packages whose versions decide, too.
    """
    key = _key(kind, inputs, packages)
    path = _path(kind, key)
    if path is None:
        return make()
    found = _read(path, key)
    if found is not None:
        return found
    with contextlib.suppress(OSError):
        make_room(path.parent, _KEPT)
    with _alone(path):
        found = _read(path, key)  # it may have been made while this process waited
        if found is None:
            found = make()
            with contextlib.suppress(OSError, StorageError):
                write_partial(path, key, found)
    return found


def is_remembered(kind: str, inputs: Any, *, packages: Iterable[str]) -> bool:
    """Whether `remembered` would find it."""
    key = _key(kind, inputs, packages)
    path = _path(kind, key)
    return path is not None and _read(path, key) is not None


def remembered_value(kind: type[T], inputs: Any, make: Callable[[], T], *, packages: Iterable[str]) -> T:
    """`remembered` for a value that pydantic can write as JSON; a new one has been through JSON, too."""
    as_json = adapter(cast("Any", kind))
    kept = remembered(kind.__name__, inputs, lambda: as_json.dump_json(make()), packages=packages)
    value: T = as_json.validate_json(kept)
    return value


def make_room(folder: Path, most: int) -> None:
    """Remove the files of a folder that were not used for the longest time, so that there is room for one more."""
    files = sorted((path for path in folder.glob("*") if path.is_file()), key=lambda path: path.stat().st_mtime)
    for path in files[: max(0, len(files) + 1 - most)]:
        path.unlink(missing_ok=True)


def _key(kind: str, inputs: Any, packages: Iterable[str]) -> bytes:
    made_by = {"python": platform.python_version(), **versions(packages), "qvec-deploy": own_text()}
    return canonical_json([kind, inputs, made_by])


def _path(kind: str, key: bytes) -> Path | None:
    """Where it is kept; None where there is no home folder."""
    with contextlib.suppress(RuntimeError):
        return cache_folder() / "models" / f"{kind}-{sha256_bytes(key)[:32]}"
    return None


def _read(path: Path, key: bytes) -> bytes | None:
    with contextlib.suppress(OSError, StorageError):
        found = read_partial(path, key)
        if found is not None:
            with contextlib.suppress(OSError):  # of a disk that is read-only
                os.utime(path)
        return found
    return None


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock of a file that is being made, where there can be one; who comes later makes a new lock."""
    lock = path.with_name(f"{path.name}.lock")
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError, StorageError):
            held.enter_context(file_lock(lock))
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                lock.unlink(missing_ok=True)

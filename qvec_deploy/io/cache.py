"""Results that are made once and found by what they were made from, also by other processes."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qvec_deploy.errors import QvecError, StorageError
from qvec_deploy.io.files import (
    canonical_json,
    file_lock,
    sha256_bytes,
    sha256_file,
    staging_directory,
    storage_errors,
    write_bytes,
)
from qvec_deploy.io.untrusted import read_json

ENTRY_FILE = "entry.json"
WORTH_KEEPING_S = 60.0
"""What took less is made again rather than left lying about after Ctrl-C."""


@dataclass
class CacheEntry:
    """A folder of files and a JSON value that is kept with them.

    Attributes:
        folder: Where the files are, or where they are to be written while the entry is new. Others read them too: a
            file is replaced, never written to.
        new: Whether the files are still to be made.
        record: The JSON value; set by whoever makes a new entry.
    """

    folder: Path
    new: bool
    record: Any = None

    @property
    def files(self) -> list[Path]:
        """The files, without what the cache itself keeps."""
        return entry_files(self.folder)


class Cache:
    """Folders of files by key.

    A killed process leaves nothing that is taken for whole, a second process that needs the same entry waits for the
    first, and an entry that was damaged since is made anew.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, kind: str, inputs: Any) -> Path:
        """Where the files of a key are, or would be.

        Args:
            inputs: Everything that decides what they are, as JSON values.
        """
        return self.folder / f"{kind}-{sha256_bytes(canonical_json(inputs))[:32]}"

    @contextlib.contextmanager
    def entry(self, kind: str, inputs: Any) -> Iterator[CacheEntry]:
        """The entry of a key; where it is `new`, the block makes it, and it is kept if the block ends well.

        Args:
            inputs: Everything that decides what they are, as JSON values.

        Yields:
            The entry. After the block its `folder` is where the files stay.
        """
        final = self.path(kind, inputs)
        with file_lock(self.folder / "locks" / f"{final.name}.lock"):
            kept = _whole(final)
            if kept is not None:
                yield CacheEntry(final, False, kept["record"])
                return
            with storage_errors(final):
                if final.exists():
                    shutil.rmtree(final)
            with staging_directory(final) as staging:
                entry = CacheEntry(staging, True)
                yield entry
                _seal(entry)
            entry.folder = final


@contextlib.contextmanager
def kept_cache(folder: Path) -> Iterator[Cache]:
    """A cache for one piece of work, which is there until the work is done.

    Who was killed finds what was made when the same work is done again, and so does who was interrupted after
    `WORTH_KEEPING_S`. Several processes may have it at once: the last of them removes it, also after an error that says
    what to do.
    """
    started = time.monotonic()
    with contextlib.ExitStack() as held:
        _join(folder, held)
        try:
            yield Cache(folder)
        except BaseException as error:
            if isinstance(error, QvecError) or time.monotonic() - started < WORTH_KEEPING_S:
                _leave(folder, held)
            raise
        _leave(folder, held)


def _join(folder: Path, held: contextlib.ExitStack) -> None:
    """Make the folder, or take part in it; whoever removes it waits until all have left."""
    while True:
        with storage_errors(folder):
            folder.mkdir(exist_ok=True)
        with contextlib.ExitStack() as stack, contextlib.suppress(FileNotFoundError):
            before = folder.stat().st_ino
            stack.enter_context(file_lock(folder, shared=True))
            if folder.stat().st_ino == before:  # else somebody has removed it while this one waited
                held.enter_context(stack.pop_all())
                return


def _leave(folder: Path, held: contextlib.ExitStack) -> None:
    """Take part no more, and remove the folder if nobody else does."""
    held.close()
    with contextlib.suppress(StorageError), file_lock(folder, wait=False) as alone:
        if alone:
            shutil.rmtree(folder, ignore_errors=True)


def entry_files(folder: Path) -> list[Path]:
    """The files of an entry's folder, without what the cache itself keeps."""
    return sorted(path for path in folder.iterdir() if path.name != ENTRY_FILE)


def _seal(entry: CacheEntry) -> None:
    files = {path.name: sha256_file(path) for path in sorted(entry.folder.iterdir())}
    content = json.loads(json.dumps({"files": files, "record": entry.record}, allow_nan=False))
    write_bytes(entry.folder / ENTRY_FILE, json.dumps({**content, "sha256": _digest(content)}).encode())
    entry.record = content["record"]


def _whole(folder: Path) -> dict[str, Any] | None:
    """What is kept with the files of an entry; None where one of them, or this, is not as it was made."""
    try:
        content = read_json(folder / ENTRY_FILE)
        sealed = content.pop("sha256", None)  # entries of 0.1.0 have none
        if sealed not in (None, _digest(content)):
            return None
        present = {path.name: sha256_file(path) for path in folder.iterdir() if path.name != ENTRY_FILE}
        return content if present == content["files"] and "record" in content else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, QvecError):
        return None


def _digest(content: Any) -> str:
    return sha256_bytes(canonical_json(content))

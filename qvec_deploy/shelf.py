"""What builds of one sweep share: everything made once is found by what it was made from, and one machine.

All of it lies in one folder, and works between processes that know nothing of each other.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from qvec_deploy.errors import StorageError
from qvec_deploy.store import (
    canonical_json,
    file_lock,
    link_files,
    sha256_bytes,
    sha256_file,
    staging_directory,
    storage_errors,
    write_bytes,
)

ENTRY_FILE = "entry.json"

Make = Callable[[Path], Any]
"""Writes files into a folder and returns a JSON value that is kept with them."""


class Shelf:
    """Folders of files by key, made once.

    A killed maker leaves nothing that is taken for whole, a second maker of the same waits for the first, and what was
    damaged since is made anew.

    Args:
        folder: Where they are kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def obtain(self, kind: str, inputs: Any, target: Path, make: Make) -> Any:
        """Put into a folder the files that `make` writes, made now or found.

        Args:
            kind: What they are, in a word.
            inputs: Everything that decides what they are, as JSON values.
            target: The folder; the files may be links, and must be replaced and not written to.
            make: Makes them.

        Returns:
            What `make` returned.

        Raises:
            StorageError: The disk refuses.
            QvecError: As `make`.
        """
        key = f"{kind}-{sha256_bytes(canonical_json(inputs))[:32]}"
        entry = self.folder / key
        with file_lock(self.folder / "locks" / f"{key}.lock"):
            if not _is_whole(entry):
                with storage_errors(entry):
                    if entry.exists():
                        shutil.rmtree(entry)
                with staging_directory(entry) as staging:
                    _finish(staging, make(staging))
            link_files(entry, target)
            with storage_errors(target):
                (target / ENTRY_FILE).unlink()
            return json.loads((entry / ENTRY_FILE).read_bytes())["record"]


def _finish(folder: Path, record: Any) -> None:
    files = {path.name: sha256_file(path) for path in sorted(folder.iterdir())}
    write_bytes(folder / ENTRY_FILE, json.dumps({"files": files, "record": record}, allow_nan=False).encode())


def _is_whole(entry: Path) -> bool:
    """Whether an entry is there with every file as it was made."""
    try:
        files = json.loads((entry / ENTRY_FILE).read_bytes())["files"]
        present = {path.name for path in entry.iterdir()}
        return present == {*files, ENTRY_FILE} and all(sha256_file(entry / name) == sha for name, sha in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StorageError):
        return False


class Machine:
    """Many may build at a time; who measures has the machine alone.

    Who wants it alone closes the door behind those that build, so that others coming after cannot keep it waiting.

    Args:
        folder: Where its locks are.
    """

    def __init__(self, folder: Path) -> None:
        self._door, self._floor = folder / "door.lock", folder / "floor.lock"
        self._sharing = contextlib.ExitStack()

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Build beside others, but for what is done `alone` inside."""
        self._enter()
        try:
            yield
        finally:
            self._sharing.close()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Measure while nobody builds or measures. Only inside `shared`, and holding nothing that others wait for."""
        self._sharing.close()
        try:
            with file_lock(self._door), file_lock(self._floor):
                yield
        finally:
            self._enter()

    def _enter(self) -> None:
        with file_lock(self._door):
            self._sharing.enter_context(file_lock(self._floor, shared=True))

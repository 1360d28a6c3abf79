"""What builds share: everything made once is found by what it was made from, and one machine.

All of it lies in folders, and works between processes that know nothing of each other.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from qvec_deploy.errors import StorageError
from qvec_deploy.io.files import (
    cache_folder,
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

    def entry(self, kind: str, inputs: Any) -> Path:
        """Where the files of a key are, or would be.

        Args:
            kind: What they are, in a word.
            inputs: Everything that decides what they are, as JSON values.
        """
        return self.folder / f"{kind}-{sha256_bytes(canonical_json(inputs))[:32]}"

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
        entry = self.entry(kind, inputs)
        with file_lock(self.folder / "locks" / f"{entry.name}.lock"):
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


class Record:
    """What a directory was made from, and which file in it tells it from others.

    It is written before the directory is made, with what is to be replaced, and after it, with what was made: a kill
    at any moment leaves a directory that is known to be current, or one that is known not to be.

    Args:
        path: The record.
        mark: The file, of other bytes in every directory that was ever made.
        wanted: What the directory is to be made from, as JSON values.
    """

    def __init__(self, path: Path, mark: Path, wanted: Any) -> None:
        self._path, self._mark, self._wanted = path, mark, sha256_bytes(canonical_json(wanted))

    @contextlib.contextmanager
    def making(self) -> Iterator[None]:
        """Keep it, for a directory that is made inside; where that fails, it stays as it was.

        Raises:
            StorageError: The disk refuses.
        """
        with storage_errors(self._path):
            before, replaced = self._path.read_bytes() if self._path.is_file() else None, self._marked()
        self._write(replaces=replaced)
        try:
            yield
        except BaseException:
            if self._marked() == replaced:
                self._put_back(before)
            raise
        self._write(made=self._marked())

    def is_ours(self) -> bool:
        """Whether nobody has put another directory in the place of ours."""
        known, marked = self._known(), self._marked()
        return known is not None and known.get("made", marked) == marked

    def is_current(self) -> bool:
        """Whether the directory is ours, and made from what is wanted."""
        known, marked = self._known(), self._marked()
        if known is None or marked is None or known.get("wanted") != self._wanted:
            return False
        # Only who was killed has left no word of what was made.
        return bool(known["made"] == marked if "made" in known else known.get("replaces") != marked)

    def _marked(self) -> str | None:
        return sha256_file(self._mark) if self._mark.is_file() else None

    def _known(self) -> dict[str, Any] | None:
        try:
            known = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return None
        return known if isinstance(known, dict) else None

    def _write(self, **state: str | None) -> None:
        write_bytes(self._path, json.dumps({"wanted": self._wanted, **state}).encode())

    def _put_back(self, before: bytes | None) -> None:
        if before is None:
            with storage_errors(self._path):
                self._path.unlink(missing_ok=True)
        else:
            write_bytes(self._path, before)


class Machine:
    """Many may build at a time; who measures has the machine alone.

    Who wants it alone closes the door behind those that build, so that others coming after cannot keep it waiting.

    Args:
        folder: Where its locks are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._door, self._floor = folder / "door.lock", folder / "floor.lock"
        self._sharing = contextlib.ExitStack()

    @classmethod
    def here(cls) -> Self:
        """This machine, for all that its user builds and measures: its locks are in the user's cache folder.

        Where that cannot be written, they are in the folder for temporary files.
        """
        with contextlib.suppress(OSError, RuntimeError):  # the last: there is no home folder
            folder = cache_folder() / "machine" / (platform.node() or "unnamed")  # homes may be of many machines
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                return cls(folder)
        return cls(Path(tempfile.gettempdir()) / f"qvec-deploy-{os.getuid()}")

    @contextlib.contextmanager
    def shared(self, waiting: contextlib.AbstractContextManager[object] | None = None) -> Iterator[None]:
        """Build beside others, but for what is done `alone` inside.

        Args:
            waiting: Entered for as long as it has to wait.
        """
        with waiting or contextlib.nullcontext():
            self._enter()
        try:
            yield
        finally:
            self._sharing.close()

    @contextlib.contextmanager
    def alone(self, waiting: contextlib.AbstractContextManager[object] | None = None) -> Iterator[None]:
        """Measure while nobody builds or measures. Only inside `shared`, and holding nothing that others wait for.

        Args:
            waiting: Entered for as long as it has to wait.
        """
        self._sharing.close()
        try:
            with contextlib.ExitStack() as stack:
                with waiting or contextlib.nullcontext():
                    stack.enter_context(file_lock(self._door))
                    stack.enter_context(file_lock(self._floor))
                yield
        finally:
            self._enter()

    def _enter(self) -> None:
        with file_lock(self._door):
            self._sharing.enter_context(file_lock(self._floor, shared=True))

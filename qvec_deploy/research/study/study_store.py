"""A study's folder: what its nodes made, found by what it was made from, and its documents.

    OUT/study.yaml   the resolved recipe          OUT/run.json   the last run: versions, counts, times, failures
    OUT/cells/       a cell a file                OUT/costs.json the seconds of every fine-tune
    OUT/files/       every node's files under a name that people can read
    OUT/store/       the same files, content-addressed, and locks
    OUT/work         trainings that are not over

Several processes, and several machines that share the folder, may work in it at once.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qvec_deploy.errors import IncompatibleError, IntegrityError, QvecError, StorageError
from qvec_deploy.io.cache import ENTRY_FILE, Cache
from qvec_deploy.io.files import (
    canonical_json,
    file_lock,
    link_files,
    sha256_file,
    staging_directory,
    storage_errors,
    write_bytes,
)
from qvec_deploy.research.study.nodes import Node

STORE_VERSION = 1
"""Of the folder's layout; what a node computes has versions of its own (`nodes`, `values`)."""
RUN_VERSION = 1
"""Of run.json."""

STUDY_FILE, RUN_FILE, COSTS_FILE, CELLS = "study.yaml", "run.json", "costs.json", "cells"
_VERSION_FILE, _NODE_FILE = "version.json", "node.json"

Make = Callable[[Path], dict[str, Any]]
"""Writes a node's files into a folder and returns its record, JSON values."""


class Store:
    """The folder of a study.

    Attributes:
        out: The folder, absolute.
    """

    def __init__(self, out: Path) -> None:
        self.out = out.absolute()
        self._shelf = Cache(self.out / "store")

    @classmethod
    def open(cls, out: Path) -> Store:
        """A study's folder, made if need be.

        Raises:
            StorageError: It holds something else, or cannot be written.
            IncompatibleError: Another version's.
        """
        if not cls.begun(out):
            write_bytes(out / "store" / _VERSION_FILE, canonical_json({"qvec-study-store": STORE_VERSION}))
        return cls.existing(out)

    @classmethod
    def at(cls, out: Path) -> Store:
        """A study's folder, or one that may become one; nothing is written.

        Raises:
            StorageError: It holds something else.
            IncompatibleError: Another version's.
        """
        return cls.existing(out) if cls.begun(out) else cls(out)

    @classmethod
    def begun(cls, out: Path) -> bool:
        """Whether a folder is a study's; if not, it may become one.

        Raises:
            StorageError: It holds something else.
        """
        with storage_errors(out):
            free = _is_free(out)  # before the version is looked for: another run may be writing it
        begun = (out / "store" / _VERSION_FILE).is_file()
        if not free and not begun:
            raise StorageError(f"{out} is not a study's folder", hint="choose another directory")
        return begun

    @classmethod
    def existing(cls, out: Path) -> Store:
        """A study's folder that is there.

        Raises:
            StorageError: It is not.
            IncompatibleError: Another version's.
        """
        version = out / "store" / _VERSION_FILE
        if not version.is_file():
            raise StorageError(f"{out} is not a study's folder", hint="name the -o of `qvec-deploy study run`")
        _require_version(version)
        return cls(out)

    def folder(self, node: str) -> Path:
        """Where the files of a node are, by its id."""
        return self.out / "files" / node

    def work(self, node: str) -> Path:
        """Where a node keeps how far it is."""
        return self.out / "work" / node

    def weights(self, node: str) -> Path:
        """The weights of a finished node: its own file, or the one it found elsewhere, with the bytes it had then.

        Raises:
            IntegrityError: They are not whole, or of other bytes.
        """
        found = self.record(node)
        if found is None:
            raise IntegrityError(f"{self.folder(node)} is not whole", hint="run the study again")
        elsewhere = found["record"].get("path")
        damaged = self._damaged(node, found)
        if damaged is not None and elsewhere is not None:
            raise _other_bytes(damaged)
        if damaged is not None:
            raise IntegrityError(f"{damaged} is damaged", hint="run the study again: it is made anew")
        return self.folder(node) / found["files"][0] if elsewhere is None else Path(elsewhere)

    @property
    def documents_lock(self) -> Path:
        """Held while study.yaml, cells, costs.json and run.json are written."""
        return self._shelf.folder / "locks" / "documents"

    def seconds(self, node: Node) -> float:
        """What making a node took, be its files still there or not; 0 where that is not known."""
        for path in (self.folder(node.id) / _NODE_FILE, self._shelf.path(node.kind, node.keyed) / ENTRY_FILE):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                return float(json.loads(path.read_bytes())["record"]["seconds"])
        return 0.0

    def record(self, node: str) -> dict[str, Any] | None:
        """What is known of a finished node: `record`, `files`, their `sha256`; None where it is not whole by sizes."""
        folder = self.folder(node)
        try:
            found: dict[str, Any] = json.loads((folder / _NODE_FILE).read_bytes())
            whole = all((folder / name).stat().st_size == size for name, size in found["sizes"].items())
            path = found["record"].get("path")
            whole = whole and (path is None or Path(path).stat().st_size == found["record"]["bytes"])
            hashes = dict(found.get("sha256", {}))  # an older release kept none
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return {"record": found["record"], "files": list(found["sizes"]), "sha256": hashes} if whole else None

    def knows(self, node: Node) -> bool:
        """Whether a node is there, under this name or another one of its model, by sizes; nothing is written."""
        return self.record(node.id) is not None or self._is_shelved(node)

    def find(self, node: Node) -> bool:
        """Whether a node is there byte for byte; what the shelf has gets its place among the files.

        What is damaged is removed.
        """
        if self._is_whole(node.id):
            return True
        if not self.knows(node):
            return False
        try:
            self.obtain(node, _make_nothing)
        except QvecError:  # whoever makes the node will tell what is wrong
            return False
        return True

    def _is_whole(self, node: str) -> bool:
        found = self.record(node)
        try:
            return found is not None and self._damaged(node, found) is None
        except StorageError:  # it cannot be read
            return False

    def _damaged(self, node: str, found: dict[str, Any]) -> Path | None:
        """A file of a finished node that has other bytes than it was recorded with, if any."""
        known = {self.folder(node) / name: found["sha256"].get(name) for name in found["files"]}
        record = found["record"]
        if "path" in record:
            known[Path(record["path"])] = record.get("sha256")
        return next((path for path, sha in known.items() if sha is not None and sha256_file(path) != sha), None)

    def _is_shelved(self, node: Node) -> bool:
        """Whether the shelf has a node's files, of the sizes they had under its name if they had one."""
        entry = self._shelf.path(node.kind, node.keyed)
        sizes: dict[str, int] = {}
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            sizes = dict(json.loads((self.folder(node.id) / _NODE_FILE).read_bytes())["sizes"])
        try:
            found = json.loads((entry / ENTRY_FILE).read_bytes())
            now = {name: (entry / name).stat().st_size for name in found["files"]}
            path = found["record"].get("path")
            there = path is None or Path(path).stat().st_size == found["record"]["bytes"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False
        return bool(there) and all(sizes.get(name, size) == size for name, size in now.items())

    def obtain(self, node: Node, make: Make) -> dict[str, Any]:
        """Make a node's files, or find them; a second maker of the same waits for the first.

        Returns:
            What `make` returned, and whether it was `made` now.

        Raises:
            StorageError: The disk refuses.
            IntegrityError: A file that it found elsewhere is another one now.
            QvecError: As `make`.
        """
        folder, made = self.folder(node.id), False

        def making(staging: Path) -> dict[str, Any]:
            nonlocal made
            made = True
            return make(staging)

        with file_lock(self._shelf.folder / "locks" / f"{node.id}.node"):
            if not self._is_whole(node.id):
                with storage_errors(folder):
                    if folder.exists():
                        shutil.rmtree(folder)
                with staging_directory(folder) as staging:
                    self._take(node, staging, making)
            found = self.record(node.id)
        if found is None:
            raise IntegrityError(f"{folder} changed while it was read", hint="run the study again")
        return {**found["record"], "made": made}

    def _take(self, node: Node, staging: Path, make: Make) -> None:
        """Links to the shelf's files, with the record beside them."""
        with self._shelf.entry(node.kind, node.keyed) as entry:
            if entry.new:
                entry.record = make(entry.folder)
            link_files(entry.files, staging)
        record = entry.record
        if "path" in record:
            record = _found_again(record, staging, make)
        files = sorted(staging.iterdir())
        sizes = {file.name: file.stat().st_size for file in files}
        hashes = {file.name: sha256_file(file) for file in files}
        values = {"record": record, "sizes": sizes, "sha256": hashes, "of": node.keyed}
        write_bytes(staging / _NODE_FILE, canonical_json(values))

    def forget_work(self, node: str) -> None:
        """Remove what a finished node kept of how far it was."""
        shutil.rmtree(self.work(node), ignore_errors=True)


def _is_free(out: Path) -> bool:
    """Whether nothing is there but what another start, living or killed, leaves before its version."""
    try:
        names = {path.name for path in out.iterdir()}
    except FileNotFoundError:
        return True
    except NotADirectoryError:
        return False
    store = out / "store"
    if names == {store.name} and store.is_dir():
        return all(path.name.startswith(f".{_VERSION_FILE}.") for path in store.iterdir())
    return not names


def _found_again(record: dict[str, Any], staging: Path, make: Make) -> dict[str, Any]:
    """The record of a file that lies elsewhere, where it may have gone or changed since it was first found."""
    now = record if Path(record["path"]).is_file() else make(staging)
    if sha256_file(Path(now["path"])) != record["sha256"]:
        raise _other_bytes(Path(now["path"]))
    return now


def _other_bytes(path: Path) -> IntegrityError:
    return IntegrityError(
        f"the released file {path} changed since it was first used in this study",
        hint="put back the file that it was, or begin again in another directory",
    )


def _make_nothing(staging: Path) -> dict[str, Any]:
    raise IntegrityError("it is not there", hint="run the study again")


def _require_version(path: Path) -> None:
    try:
        found = json.loads(path.read_bytes())["qvec-study-store"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{path} is damaged", hint="choose another directory for the study") from error
    if found != STORE_VERSION:
        raise IncompatibleError(
            f"{path.parent.parent} is the folder of a study of version {found}, and this is version {STORE_VERSION}",
            hint="choose another directory, or use the release that made it",
        )

"""A study's folder: what its nodes made, found by what it was made from, and its documents.

    OUT/study.yaml   the resolved recipe          OUT/run.json   the last run: versions, counts, times, failures
    OUT/cells/       a cell a file                OUT/costs.json the seconds of every fine-tune
    OUT/files/       every node's files under a name that people can read
    OUT/store/       the same files, content-addressed, and locks
    OUT/work         trainings that are not over

Several processes, and several machines that share the folder, may work in it at once.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qvec_deploy.errors import IncompatibleError, IntegrityError, StorageError
from qvec_deploy.shelf import Shelf
from qvec_deploy.store import canonical_json, file_lock, sha256_file, staging_directory, storage_errors, write_bytes
from qvec_deploy.study.nodes import Node

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
        self._shelf = Shelf(self.out / "store")

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
        """The weights of a finished node: its own file, or the one it found elsewhere."""
        found = self.record(node)
        if found is None:
            raise IntegrityError(f"{self.folder(node)} is not whole", hint="run the study again")
        elsewhere = found["record"].get("path")
        return self.folder(node) / found["files"][0] if elsewhere is None else Path(elsewhere)

    @property
    def documents_lock(self) -> Path:
        """Held while study.yaml, cells, costs.json and run.json are written."""
        return self._shelf.folder / "locks" / "documents"

    def seconds(self, node: str) -> float:
        """What making a node took, be its files still there or not; 0 where that is not known."""
        try:
            return float(json.loads((self.folder(node) / _NODE_FILE).read_bytes())["record"]["seconds"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0.0

    def record(self, node: str) -> dict[str, Any] | None:
        """What is known of a finished node: `record` and `files`; None where it is not whole."""
        folder = self.folder(node)
        try:
            found: dict[str, Any] = json.loads((folder / _NODE_FILE).read_bytes())
            whole = all((folder / name).stat().st_size == size for name, size in found["sizes"].items())
            path = found["record"].get("path")
            whole = whole and (path is None or Path(path).stat().st_size == found["record"]["bytes"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return {"record": found["record"], "files": list(found["sizes"])} if whole else None

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
            if self.record(node.id) is None:
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
        record = self._shelf.obtain(node.kind, node.keyed, staging, make)
        if "path" in record:
            record = _found_again(record, staging, make)
        sizes = {file.name: file.stat().st_size for file in sorted(staging.iterdir())}
        write_bytes(staging / _NODE_FILE, canonical_json({"record": record, "sizes": sizes, "of": node.keyed}))

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
        raise IntegrityError(
            f"the released file {now['path']} changed since it was first used in this study",
            hint="put back the file that it was, or begin again in another directory",
        )
    return now


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

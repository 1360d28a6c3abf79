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
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

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
from qvec_deploy.io.untrusted import read_json, understood
from qvec_deploy.jobs.job import SendEvent

STORE_VERSION = 1
"""Of the folder's layout; what a node computes has versions of its own (`study_node`, `cell_values`)."""
_VERSION_FILE, _NODE_FILE = "version.json", "node.json"

Make = Callable[[Path], dict[str, Any]]
"""Writes a node's files into a folder and returns its record, JSON values."""

_NOT_THERE = (OSError, ValueError, KeyError, TypeError, AttributeError, IntegrityError, StorageError)
"""What reading a record raises that is missing, torn or another's."""


class StoredNode(Protocol):
    """What the store knows of a node (`study_node.StudyNode`): its name as a file's, and what decides its files."""

    @property
    def id(self) -> str: ...  # noqa: D102

    @property
    def key(self) -> str: ...  # noqa: D102

    @property
    def keyed(self) -> Mapping[str, Any]: ...  # noqa: D102


class StudyStore:
    """The folder of a study.

    A node's files lie in the cache under `store`, with their hashes; what its record says of them, and links to them,
    in `files` under the node's id. A released file lies elsewhere: its record has `path`, `bytes` and `sha256`.
    """

    def __init__(self, out: Path) -> None:
        self.out = out.absolute()
        self._cache = Cache(self.out / "store")

    @classmethod
    def open(cls, out: Path) -> StudyStore:
        """A study's folder, made if need be."""
        if not cls.begun(out):
            write_bytes(out / "store" / _VERSION_FILE, canonical_json({"qvec-study-store": STORE_VERSION}))
        return cls.existing(out)

    @classmethod
    def at(cls, out: Path) -> StudyStore:
        """A study's folder, or one that may become one; nothing is written."""
        return cls.existing(out) if cls.begun(out) else cls(out)

    @classmethod
    def begun(cls, out: Path) -> bool:
        """Whether a folder is a study's; if not, it may become one."""
        with storage_errors(out):
            free = _is_free(out)  # before the version is looked for: another run may be writing it
        begun = (out / "store" / _VERSION_FILE).is_file()
        if not free and not begun:
            raise StorageError(f"{out} is not a study's folder", hint="choose another directory")
        return begun

    @classmethod
    def existing(cls, out: Path) -> StudyStore:
        """A study's folder that is there."""
        path = out / "store" / _VERSION_FILE
        if not path.is_file():
            raise StorageError(f"{out} is not a study's folder", hint="name the -o of `qvec-deploy study run`")
        with understood(path, "choose another directory for the study"):
            found = read_json(path)["qvec-study-store"]
        if found != STORE_VERSION:
            raise IncompatibleError(
                f"{out} is the folder of a study of version {found}, and this is version {STORE_VERSION}",
                hint="choose another directory, or use the release that made it",
            )
        return cls(out)

    @property
    def documents_lock(self) -> Path:
        """Held while study.yaml, cells, costs.json and run.json are written."""
        return self._cache.folder / "locks" / "documents"

    def folder(self, node: str) -> Path:
        """Where the files of a node are, by its id."""
        return self.out / "files" / node

    def work(self, node: str) -> Path:
        """Where a node keeps how far it is."""
        return self.out / "work" / node

    def forget_work(self, node: str) -> None:
        """Remove what a finished node kept of how far it was."""
        shutil.rmtree(self.work(node), ignore_errors=True)

    def record(self, node: StoredNode) -> dict[str, Any] | None:
        """What is known of a node that was made, be its files still there or not."""
        return self._record(node.id, node.key)

    def knows(self, node: StoredNode) -> bool:
        """Whether a node is there, under this name or another one of its model, by sizes; nothing is written."""
        try:
            record, entry = self.record(node) or {}, self._entry(node.id, node.key)
            sizes = record.get("sizes", {})
            there = {name: (entry / name).stat().st_size for name in _hashes(entry)}
            path = record.get("path")
            return all(sizes.get(name, size) == size for name, size in there.items()) and (
                path is None or bool(Path(path).stat().st_size == record["bytes"])
            )
        except _NOT_THERE:
            return False

    def find(self, node: StoredNode) -> bool:
        """Whether a node is there byte for byte; what only the cache has gets its place among the files."""

        def make_nothing(staging: Path) -> dict[str, Any]:
            raise IntegrityError("it is not there", hint="run the study again")

        if not self.knows(node):
            return False
        try:
            self.obtain(node, make_nothing)
        except QvecError:  # whoever makes the node will tell what is wrong
            return False
        return True

    def weights(self, node: str, key: str) -> Path:
        """The weights of a finished node: its own file, or the one it found elsewhere, with the bytes it had then."""
        files = self._files(node, key)
        if files is None:
            raise IntegrityError(f"{self.folder(node)} is not whole", hint="run the study again")
        elsewhere = (self._record(node, key) or {}).get("path")
        damaged = _damaged(files)
        if damaged is not None and elsewhere is not None:
            raise _other_bytes(damaged)
        if damaged is not None:
            raise IntegrityError(f"{damaged} is damaged", hint="run the study again: it is made anew")
        return next(iter(files))

    def obtain(self, node: StoredNode, make: Make) -> dict[str, Any]:
        """Make a node's files, or find them; a second maker of the same waits for the first.

        Returns:
            What `make` returned, and whether it was `made` now.
        """
        folder, made = self.folder(node.id), False
        with file_lock(self._cache.folder / "locks" / f"{node.id}.node"):
            if not self._is_whole(node):
                with storage_errors(folder):
                    if folder.exists():
                        shutil.rmtree(folder)
                with staging_directory(folder) as staging, self._cache.entry(_kind(node.id), node.keyed) as entry:
                    made = entry.new
                    if entry.new:
                        record = make(entry.folder)
                        entry.record = {**record, "sizes": {path.name: path.stat().st_size for path in entry.files}}
                    link_files(entry.files, staging)
                    record = _found_again(entry.record, make, staging) if "path" in entry.record else entry.record
                    write_bytes(staging / _NODE_FILE, canonical_json({"record": record, "of": node.keyed}))
            return {**(self.record(node) or {}), "made": made}

    def _entry(self, node: str, key: str) -> Path:
        return self._cache.folder / f"{_kind(node)}-{key[:32]}"

    def _record(self, node: str, key: str) -> dict[str, Any] | None:
        """By the node's id and its key; under another name of its model the cache knows it."""
        for path in (self.folder(node) / _NODE_FILE, self._entry(node, key) / ENTRY_FILE):
            with contextlib.suppress(*_NOT_THERE):
                return dict(read_json(path)["record"])
        return None

    def _files(self, node: str, key: str) -> dict[Path, str] | None:
        """A node's files, the one that lies elsewhere among them, with the hashes they were made with."""
        try:
            hashes = _hashes(self._entry(node, key))
            record = read_json(self.folder(node) / _NODE_FILE)["record"]
            if "path" in record:
                return {Path(record["path"]): record["sha256"]}
        except _NOT_THERE:
            return None
        return {self.folder(node) / name: sha256 for name, sha256 in hashes.items()}

    def _is_whole(self, node: StoredNode) -> bool:
        files = self._files(node.id, node.key)
        return files is not None and _damaged(files) is None


@dataclass(frozen=True)
class TaskContext:
    """What a node's task is made with.

    Attributes:
        work: Folder in which it may keep how far it is.
        keyed: All that decides its result, and its hash.
        send: Takes `done` of `total` steps, now and then.
    """

    store: StudyStore
    folder: Path
    work: Path
    keyed: Mapping[str, Any]
    key: str
    send: SendEvent
    offline: bool


def _kind(node: str) -> str:
    return node.partition("-")[0]


def _hashes(entry: Path) -> dict[str, str]:
    return dict(read_json(entry / ENTRY_FILE)["files"])


def _damaged(files: dict[Path, str]) -> Path | None:
    """A file that is gone, or has other bytes than it was made with, if any."""
    for path, sha256 in files.items():
        try:
            if sha256_file(path) != sha256:
                return path
        except StorageError:  # it cannot be read
            return path
    return None


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


def _found_again(record: dict[str, Any], make: Make, staging: Path) -> dict[str, Any]:
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

"""Files that are either whole or not there: canonical JSON, hashes, locks, atomic writes, staged directories."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from qvec_deploy.errors import StorageError


def canonical_json(value: Any) -> bytes:
    """`value` as JSON bytes that depend on nothing but `value`: sorted keys, no spaces, ASCII.

    Raises:
        ValueError: NaN or infinity, which JSON does not have.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def sha256_bytes(data: bytes) -> str:
    """Hex SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes.

    Raises:
        StorageError: The file cannot be read.
    """
    with storage_errors(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an OSError inside the block into a StorageError that names `path`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        hints = {
            errno.ENOSPC: "free some space or choose another place; nothing was left half written",
            errno.EACCES: "check the permissions or choose another place",
            errno.EROFS: "the file system is read-only; choose another place",
            errno.ENOENT: "check the path",
        }
        hint = hints.get(error.errno or 0, "check the path and the disk")
        raise StorageError(f"{error.filename or path}: {reason}", hint=hint) from error


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary sibling to write to; it becomes `path` when the block ends well and vanishes otherwise."""
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file at once or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def file_lock(path: Path, *, shared: bool = False, wait: bool = True) -> Iterator[bool]:
    """Hold a lock on a file or folder among processes; a process that dies leaves none behind.

    Args:
        path: What is locked; made, as a file, where it is missing and waited for. It is never removed: others may be
            waiting for it.

    Yields:
        Whether it is held; always, unless it was not to be waited for.

    Raises:
        StorageError: The file cannot be made, or the file system has no locks.
    """
    import fcntl

    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # NFS wants a descriptor for writing, which folders have none of.
        mode = os.O_RDONLY if path.is_dir() else os.O_RDWR | (os.O_CREAT if wait else 0)
        handle = os.open(path, mode, 0o644)
    try:
        held = True
        with storage_errors(path):
            try:
                fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
            except OSError:  # somebody has it, or the file system has no locks
                if wait:
                    raise
                held = False
        yield held
    finally:
        os.close(handle)


def cache_folder() -> Path:
    """What may be thrown away, for this user: qvec-deploy in $XDG_CACHE_HOME, or in ~/.cache.

    Raises:
        RuntimeError: There is no home folder.
    """
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (named if named.is_absolute() else Path.home() / ".cache") / "qvec-deploy"


def link_files(files: Iterable[Path], target: Path) -> None:
    """Give a folder files that lie elsewhere: as hard links where the file system has them, else as copies."""
    with storage_errors(target):
        for path in files:
            try:
                os.link(path, target / path.name)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
                    raise
                shutil.copyfile(path, target / path.name)


def restore(final: Path) -> None:
    """Put back the directory that a process, killed while it replaced `final`, had moved aside."""
    with storage_errors(final):
        if final.is_symlink() or final.exists() or not final.parent.is_dir():
            return
        whole = [path for path in _aside(final) if path.suffix == ".old" and (path / "manifest.json").is_file()]
        for path in sorted(whole, key=lambda path: (path / "manifest.json").stat().st_mtime_ns)[-1:]:
            with file_lock(path, wait=False) as held:  # else it is being replaced right now
                if held:
                    path.replace(final)


@contextlib.contextmanager
def staging_directory(final: Path, *, force: bool = False) -> Iterator[Path]:
    """A temporary sibling directory that becomes `final` when the block ends well and vanishes otherwise.

    What killed processes left of theirs is removed, or put back where it is all there is.

    Args:
        force: Replace an existing directory; it stays until the new one is whole.

    Raises:
        StorageError: `final` exists and `force` is off, or the disk refuses.
    """
    with storage_errors(final):
        restore(final)
        if final.exists() and not force:
            raise StorageError(f"{final} exists", hint="pass --force to replace it, or choose another directory")
        if final.is_symlink():
            raise StorageError(f"{final} is a link", hint="name the directory itself")
        if final.exists() and not _is_replaceable(final):
            raise StorageError(
                f"{final} is not a bundle", hint="--force replaces bundles only; choose another directory"
            )
        final.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            _remove_stale(final)
            staging = _make_staging(final, stack)
            staging.chmod(0o755)
            yield staging
            if final.exists():
                _exchange(staging, final)
            else:
                staging.replace(final)


def require_outside(path: Path, bundle: Path) -> None:
    """Refuse to write into a bundle, whose manifest lists every file.

    Raises:
        StorageError: `path` is the bundle or lies in it.
    """
    inner, outer = path.resolve(), bundle.resolve()
    if inner == outer or outer in inner.parents:
        raise StorageError(f"{path} is in the bundle {bundle}", hint="choose another folder")


def require_report_folder(path: Path) -> None:
    """Refuse a folder that a report must not be written into, before the measuring and not after it.

    Raises:
        StorageError: It is a bundle, whose files have hashes, or in one, or it cannot be made.
    """
    for folder in (path.resolve(), *path.resolve().parents):
        if (folder / "manifest.json").is_file():
            where = "is a bundle" if folder == path.resolve() else f"is in the bundle {folder}"
            raise StorageError(f"{path} {where}", hint="write the report into another directory")
    with storage_errors(path):
        path.mkdir(parents=True, exist_ok=True)


def _is_replaceable(path: Path) -> bool:
    """Whether a directory is empty or a bundle; other things too have a file named manifest.json."""
    manifest = path / "manifest.json"
    if manifest.is_file():
        return b'"qvec-bundle"' in manifest.read_bytes()
    return path.is_dir() and not any(path.iterdir())


def _exchange(new: Path, final: Path) -> None:
    """Put `new` in the place of the directory `final`, which comes back if that fails."""
    old = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".old", dir=final.parent))
    with file_lock(final, wait=False):  # wherever it is moved: nobody puts it back meanwhile
        try:
            final.replace(old)
            new.replace(final)
        finally:
            if final.exists():
                _discard(old)
            else:
                old.replace(final)


def _discard(path: Path) -> None:
    """Remove a directory, its manifest first: what a kill leaves of it is taken for no bundle."""
    with contextlib.suppress(OSError):
        (path / "manifest.json").unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def _make_staging(final: Path, stack: contextlib.ExitStack) -> Path:
    """A new directory beside `final` and its lock; gone when the stack ends."""
    while True:
        staging = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".tmp", dir=final.parent))
        stack.callback(shutil.rmtree, staging, ignore_errors=True)
        with contextlib.suppress(StorageError):  # folders without locks: nobody finds them stale either
            stack.enter_context(file_lock(staging))
        if staging.is_dir():
            return staging
        staging.unlink(missing_ok=True)  # who cleans up was there before the lock, which has made a file


def _aside(final: Path) -> list[Path]:
    """What builds of `final`, living or killed, have beside it."""
    name = re.compile(rf"\.{re.escape(final.name)}\.[a-z0-9_]{{8}}\.(tmp|old)")
    return [path for path in final.parent.iterdir() if name.fullmatch(path.name) and path.is_dir()]


def _remove_stale(final: Path) -> None:
    """Remove what killed builds of `final` left beside it; those that live hold a lock."""
    for path in _aside(final):
        if path.suffix == ".old" and not final.exists():  # the only one there is
            continue
        with contextlib.suppress(StorageError), file_lock(path, wait=False) as held:
            if held:
                _discard(path)


def require_file(path: Path, *, what: str) -> Path:
    """`path`, if it is a readable file.

    Raises:
        StorageError: It is missing, a directory, or unreadable.
    """
    with storage_errors(path):
        exists, is_file = path.exists(), path.is_file()
    if not exists:
        raise StorageError(
            f"{what}: {path} does not exist", hint="check the path; those of a recipe start from its folder"
        )
    if not is_file:
        raise StorageError(f"{what}: {path} is not a file", hint="name the file itself")
    if not os.access(path, os.R_OK):
        raise StorageError(f"{what}: {path} cannot be read", hint="check its permissions")
    return path

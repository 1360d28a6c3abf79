"""Files that are either whole or not there: canonical JSON, hashes, locks, atomic writes, staged directories."""

from __future__ import annotations

import contextlib
import ctypes
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

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux
_UNIQUE = r"[a-z0-9_]{8}\.(?:tmp|old)"
_ANY_TEMPORARY = re.compile(rf"(?:(?<=/)|^)\.([^/]+?)\.{_UNIQUE}(?:/.*)?$", re.DOTALL)
"""What stands for a path until it is whole, in messages."""


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


_HINTS = {
    errno.ENOSPC: "free some space or choose another place; nothing was left half written",
    errno.EDQUOT: "free some of your quota or choose another place; nothing was left half written",
    errno.EACCES: "check the permissions or choose another place",
    errno.EROFS: "the file system is read-only; choose another place",
    errno.ENOENT: "check the path",
    errno.EIO: "the disk or its connection fails: look into the system's log",
    errno.EMFILE: "allow more open files: `ulimit -n 1024`",
}
_OF_THE_TARGET = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Of a rename or a link from one path to another, these tell of the other."""


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an OSError inside the block into a StorageError, as `storage_error`."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, path) from error


def storage_error(error: OSError, path: Path) -> StorageError:
    """What an OSError means, with the path that it names, or else `path`."""
    named = error.filename2 if error.errno in _OF_THE_TARGET and error.filename2 else error.filename
    # What is being written has another name until it is whole; None or a number where no path is known.
    culprit = _ANY_TEMPORARY.sub(r"\1", str(named if isinstance(named, str | os.PathLike) else path))
    hint = _HINTS.get(error.errno or 0, "check the path and the disk")
    return StorageError(f"{culprit}: {error.strerror or error}", hint=hint)


def sync(path: Path) -> None:
    """Have a file, or a folder's list of names, on the disk before this returns."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # some file systems keep folders at once
            raise
    finally:
        os.close(handle)


def publish(made: Path, final: Path) -> None:
    """Give a file or folder that is made its name, in place of a file that has it.

    A power cut, at any moment, leaves the whole of it or what was there before: a disk may keep a name and lose the
    bytes, so the bytes are there first; and it keeps the name when this returns.
    """
    _sync_all(made)
    made.replace(final)
    sync(final.parent)


def move_files(folder: Path, target: Path) -> None:
    """Move what is in a folder into another one, which is not yet published itself."""
    with storage_errors(target):
        for path in sorted(folder.iterdir()):
            path.rename(target / path.name)


def remove_first(path: Path) -> None:
    """Remove a file if it is there; a power cut finds it gone before it finds anything gone that is removed later."""
    with storage_errors(path):
        if path.is_file():
            path.unlink()
            sync(path.parent)


def make_folder(path: Path) -> None:
    """Make a folder and those that hold it, as far as they are missing, so that they stay."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's bytes; an error names the one of the two that is to blame."""
    with storage_errors(source), source.open("rb") as reader, storage_errors(target), target.open("wb") as writer:
        while True:
            with storage_errors(source):
                data = reader.read(1 << 20)
            if not data:
                break
            writer.write(data)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary sibling to write to; it becomes `path` when the block ends well and vanishes otherwise.

    What killed processes left of theirs is removed.
    """
    with storage_errors(path), contextlib.ExitStack() as stack:
        make_folder(path.parent)
        _remove_stale(path)
        temporary = _make_temporary_file(path, stack)
        yield temporary
        temporary.chmod(0o644)
        publish(temporary, path)


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
        make_folder(path.parent)
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
                copy_file(path, target / path.name)


def restore(final: Path) -> None:
    """Put back the directory that a process, killed while it replaced `final`, had moved aside."""
    with storage_errors(final):
        if final.is_symlink() or final.exists() or not final.parent.is_dir():
            return
        whole = [path for path in _aside(final) if path.suffix == ".old" and (path / "manifest.json").is_file()]
        for path in sorted(whole, key=lambda path: (path / "manifest.json").stat().st_mtime_ns)[-1:]:
            with file_lock(path, wait=False) as held:  # else it is being replaced right now
                if held:
                    publish(path, final)


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
        make_folder(final.parent)
        with contextlib.ExitStack() as stack:
            _remove_stale(final)
            staging = locked_folder(f".{final.name}.", final.parent, stack)
            staging.chmod(0o755)
            yield staging
            _open_to_all(staging)
            if final.exists():
                _exchange(staging, final)
            else:
                publish(staging, final)


def _is_replaceable(path: Path) -> bool:
    """Whether a directory is empty or a bundle; other things too have a file named manifest.json."""
    manifest = path / "manifest.json"
    if manifest.is_file():
        return b'"qvec-bundle"' in manifest.read_bytes()
    return path.is_dir() and not any(path.iterdir())


def _open_to_all(folder: Path) -> None:
    """Let everybody read what is in a folder, whatever the umask was."""
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)


def _sync_all(path: Path) -> None:
    """Have a file, or a folder and all that it holds, on the disk."""
    if path.is_dir():
        for inner in path.iterdir():
            if not inner.is_symlink():
                _sync_all(inner)
    sync(path)


def _exchange(new: Path, final: Path) -> None:
    """Put `new` in the place of the directory `final`, and remove that; at once where the file system can do that."""
    _sync_all(new)  # all that can fail for want of space, while the old one is still there
    with file_lock(final, wait=False):
        swapped = _swap(new, final)
    if swapped:
        sync(final.parent)
        _discard(new)
    else:
        _exchange_in_two_steps(new, final)


def _swap(one: Path, other: Path) -> bool:
    """Exchange two names in one step; whether the system can."""
    try:
        swap = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):  # not Linux, or a C library without it
        return False
    if swap(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(other))


def _exchange_in_two_steps(new: Path, final: Path) -> None:
    """As `_exchange`; between the steps the old one has the name that `restore` knows, and a failure undoes them."""
    old = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".old", dir=final.parent))
    with file_lock(final, wait=False):  # wherever it is moved: nobody puts it back meanwhile
        try:
            final.replace(old)
            publish(new, final)
        finally:
            if final.exists():
                _discard(old)
            else:
                old.replace(final)
                sync(final.parent)


def _discard(path: Path) -> None:
    """Remove a file; or a directory, its manifest first: what a kill leaves of it is taken for no bundle."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    with contextlib.suppress(OSError, StorageError):
        remove_first(path / "manifest.json")
    shutil.rmtree(path, ignore_errors=True)


def _make_temporary_file(path: Path, stack: contextlib.ExitStack) -> Path:
    """A new file beside `path` and its lock; gone when the stack ends."""
    import fcntl

    while True:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        stack.callback(os.close, handle)
        temporary = Path(name)
        stack.callback(temporary.unlink, missing_ok=True)
        with contextlib.suppress(OSError):  # folders without locks: nobody finds them stale either
            fcntl.flock(handle, fcntl.LOCK_EX)
        if temporary.exists():  # else who cleans up was there before the lock
            return temporary


def locked_folder(prefix: str, parent: Path, stack: contextlib.ExitStack) -> Path:
    """A new temporary folder and its lock; gone when the stack ends."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=".tmp", dir=parent))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        with contextlib.suppress(StorageError):  # folders without locks: nobody finds them stale either
            stack.enter_context(file_lock(folder))
        if folder.is_dir():
            return folder
        folder.unlink(missing_ok=True)  # who cleans up was there before the lock, which has made a file


def _aside(final: Path) -> list[Path]:
    """What processes that write `final`, living or killed, have beside it."""
    name = re.compile(rf"\.{re.escape(final.name)}\.{_UNIQUE}")
    with os.scandir(final.parent) as entries:
        return [Path(entry.path) for entry in entries if name.fullmatch(entry.name)]


def _remove_stale(final: Path) -> None:
    """Remove what killed processes left beside `final`; those that live hold a lock."""
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

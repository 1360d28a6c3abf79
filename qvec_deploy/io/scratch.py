"""Folders of files that are thrown away: gone when the work is done, and with the next run where it was killed."""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from qvec_deploy.errors import StorageError
from qvec_deploy.io.files import copy_file, file_lock, locked_folder, storage_errors

KEPT_LOG_S = 24 * 3600
"""How long the log of what failed is kept."""

_FOLDER = re.compile(r"\.?qvec-[a-z]+\.[a-z0-9_]{8}\.tmp")
_LOG = re.compile(r"qvec-[a-z]+\.[a-z0-9_]{8}\.log")
_of_this_process: dict[str, tuple[int, Path, contextlib.ExitStack]] = {}


@contextlib.contextmanager
def scratch_folder(what: str, within: Path | None = None) -> Iterator[Path]:
    """A new folder, removed when the block ends; what killed processes left of theirs is removed first.

    Args:
        what: A word of its name, `qvec-WHAT.XXXXXXXX.tmp`.
        within: The folder that it is in, with a dot before its name; that for temporary files by default.

    Raises:
        StorageError: It cannot be made.
    """
    with contextlib.ExitStack() as stack:
        yield _open(what, within, stack)


def process_folder(what: str) -> Path:
    """A folder as `scratch_folder` makes them, the same one at each call, removed when this process ends."""
    if what not in _of_this_process or _of_this_process[what][0] != os.getpid():
        stack = contextlib.ExitStack()
        folder = _open(what, None, stack)  # in a generator it would end in a fork, too
        _of_this_process[what] = os.getpid(), folder, stack
        atexit.register(remove_process_folders)
    return _of_this_process[what][1]


def remove_process_folders() -> None:
    """Remove what `process_folder` made in this process, and not in the one that this is a fork of."""
    for owner, _, stack in _of_this_process.values():
        if owner == os.getpid():
            stack.close()
    _of_this_process.clear()


def keep_log(log: Path, what: str) -> Path:
    """Copy a log to where it stays for a day; returns its place there."""
    parent = _temporary_files()
    with storage_errors(parent):
        handle, name = tempfile.mkstemp(prefix=f"qvec-{what}.", suffix=".log", dir=parent)
        os.close(handle)
    copy_file(log, Path(name))
    return Path(name)


def remove_stale(parent: Path) -> None:
    """Remove what killed processes left in a folder, and old logs; those that live hold a lock."""
    with os.scandir(parent) as entries:
        names = [entry.name for entry in entries]
    for path in (parent / name for name in names):
        with contextlib.suppress(OSError, StorageError):
            if _LOG.fullmatch(path.name) and path.stat().st_mtime < time.time() - KEPT_LOG_S:
                path.unlink()
            if _FOLDER.fullmatch(path.name) and path.is_dir():
                with file_lock(path, wait=False) as held:
                    if held:
                        shutil.rmtree(path, ignore_errors=True)


def _temporary_files() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise StorageError(
            f"no folder for temporary files can be written: {error.strerror}",
            hint="set TMPDIR to one that has some space",
        ) from error


def _open(what: str, within: Path | None, stack: contextlib.ExitStack) -> Path:
    parent = within or _temporary_files()
    with storage_errors(parent):
        remove_stale(parent)
        return locked_folder(f"{'.' if within else ''}qvec-{what}.", parent, stack)

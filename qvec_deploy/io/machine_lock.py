"""A lock on this machine among all that build and measure here."""

from __future__ import annotations

import contextlib
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from qvec_deploy.io.files import cache_folder, file_lock


class MachineLock:
    """Many may build at a time; who measures has the machine alone.

    Who wants it alone closes the door behind those that build, so that others coming after cannot keep it waiting.
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

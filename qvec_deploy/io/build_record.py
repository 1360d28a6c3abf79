"""What a directory was made from: whether it is current, and whether it is ours."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qvec_deploy.errors import QvecError
from qvec_deploy.io.files import canonical_json, sha256_bytes, sha256_file, storage_errors, write_bytes
from qvec_deploy.io.untrusted import read_json


class BuildRecord:
    """What a directory was made from, and which file in it tells it from others.

    It is written before the directory is made, with what is to be replaced, and after it, with what was made: a kill
    at any moment leaves a directory that is known to be current, or one that is known not to be.

    Args:
        mark: The file, of other bytes in every directory that was ever made.
        wanted: What the directory is to be made from, as JSON values.
    """

    def __init__(self, path: Path, mark: Path, wanted: Any) -> None:
        self._path, self._mark, self._wanted = path, mark, sha256_bytes(canonical_json(wanted))

    @contextlib.contextmanager
    def making(self) -> Iterator[None]:
        """Keep it, for a directory that is made inside; where that fails, it stays as it was."""
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
            return read_json(self._path)
        except QvecError:
            return None

    def _write(self, **state: str | None) -> None:
        write_bytes(self._path, json.dumps({"wanted": self._wanted, **state}).encode())

    def _put_back(self, before: bytes | None) -> None:
        if before is None:
            with storage_errors(self._path):
                self._path.unlink(missing_ok=True)
        else:
            write_bytes(self._path, before)

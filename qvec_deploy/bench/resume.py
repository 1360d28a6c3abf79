"""Partial answers under the user's cache folder, so that a killed evaluation goes on where it was.

Nothing depends on a journal: one that cannot be written, or is not what it should be, is as good as none. Two runs of
the same evaluation share one; each write replaces it by a whole one, and both are right.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qvec_deploy.bench.accuracy import Accuracy, Answered
from qvec_deploy.errors import IntegrityError, StorageError
from qvec_deploy.io.files import cache_folder, canonical_json, sha256_bytes, sha256_file
from qvec_deploy.io.partial_results import read_partial, write_partial
from qvec_deploy.io.untrusted import understood
from qvec_deploy.io.user_cache import make_room
from qvec_deploy.runtimes.engine_files import is_of_engine

_KEPT = 32
"""Files in the folder: journals of evaluations that nobody resumes go when newer ones come."""
_PARTS = ("predictions", "top5", "confidences")


@dataclass(frozen=True)
class EvaluationJournal:
    """The partial answers of one evaluation.

    Attributes:
        describe: Everything that the answers depend on, as plain values; its hash is the journal's name. Called only
            when there is something to read or to write, for it hashes whole engines.
    """

    describe: Callable[[], Any]

    @functools.cached_property
    def key(self) -> str:
        """Hex SHA-256 of what the answers depend on."""
        return sha256_bytes(canonical_json(self.describe()))

    @property
    def path(self) -> Path:
        """The file."""
        return journal_folder() / f"{self.key}.answers"

    def read(self, names: Sequence[str]) -> dict[str, Accuracy] | None:
        """Answers to the first images; None where there are none that can be trusted."""
        from safetensors.numpy import load

        with contextlib.suppress(OSError, StorageError, IntegrityError, RuntimeError):  # the last: no home folder
            if not _has_files(journal_folder()):
                return None
            kept = read_partial(self.path, self._decides(names))
            with understood(self.path):
                return None if kept is None else _answered(load(kept), names)
        return None

    def write(self, answered: Answered) -> None:
        """Keep answers, in place of those before."""
        from safetensors.numpy import save

        with contextlib.suppress(OSError, StorageError, RuntimeError):
            if not self.path.is_file():
                make_room(self.path.parent, _KEPT)
            write_partial(self.path, self._decides(list(answered)), save(_arrays(answered)))

    def remove(self) -> None:
        """Forget them: the evaluation is done."""
        with contextlib.suppress(OSError, StorageError, RuntimeError):
            if _has_files(journal_folder()):
                self.path.unlink(missing_ok=True)

    def _decides(self, names: Sequence[str]) -> bytes:
        """A file that was renamed, or is of other engines, is of another key."""
        return canonical_json([self.key, list(names)])


def journal_folder() -> Path:
    """Where journals are: qvec-deploy/accuracy in $XDG_CACHE_HOME, or in ~/.cache.

    Raises:
        RuntimeError: There is no home folder.
    """
    return cache_folder() / "accuracy"


def describe_engine(directory: Path, runtime: str, lowering: str, threads: int) -> dict[str, Any]:
    """What an engine's answers depend on: its files, and how they are run.

    Args:
        directory: Holds the engine's files, and perhaps a bundle's others, which do not matter.
    """
    files = sorted(path for path in directory.iterdir() if path.is_file() and is_of_engine(path.name))
    return {
        "files": {path.name: sha256_file(path) for path in files},
        "runtime": runtime,
        "lowering": lowering,
        "threads": threads,
    }


def _arrays(answered: Answered) -> dict[str, Any]:
    arrays: dict[str, Any] = {"labels": next(iter(answered.values())).labels}
    for index, accuracy in enumerate(answered.values()):
        parts = {part: getattr(accuracy, part) for part in _PARTS}
        arrays |= {f"{part}:{index}": array for part, array in parts.items() if array is not None}
        arrays[f"seconds:{index}"] = np.array([accuracy.run_s, accuracy.waited_s])
    return arrays


def _answered(arrays: Mapping[str, Any], names: Sequence[str]) -> dict[str, Accuracy]:
    answered: dict[str, Accuracy] = {}
    for index, name in enumerate(names):
        parts: dict[str, Any] = {part: arrays.get(f"{part}:{index}") for part in _PARTS}
        run_s, waited_s = map(float, arrays[f"seconds:{index}"])
        answered[name] = Accuracy(labels=arrays["labels"], run_s=run_s, waited_s=waited_s, **parts)
    return answered


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())

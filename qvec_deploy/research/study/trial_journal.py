"""The trials of a cell that is not over: a line each, so that a cell that was killed goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from qvec_deploy.io.files import canonical_json, storage_errors, write_bytes
from qvec_deploy.research.study.cell_values import Trial


@dataclass(frozen=True)
class Tried:
    """A trial that is over.

    Attributes:
        trial: It.
        mix: Weights of the label-free mix, by donor's task, as far as they are known.
        seconds: What took how long, from the cell's beginning.
    """

    trial: Trial
    mix: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)


class Journal:
    """A file of trials in the order of the cell. A line that was not written to its end is as good as none.

    Args:
        path: The file.
        key: Of what decides the cell: lines of another are of no use.

    Raises:
        StorageError: It cannot be read or written.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self._first = canonical_json({"cell": key})
        lines = []
        with storage_errors(path):
            if path.is_file():
                lines = path.read_bytes().split(b"\n")
        self.tried = _entries(lines[1:]) if lines and lines[0] == self._first else []
        whole = [self._first, *(_line(one) for one in self.tried)]
        write_bytes(path, b"".join(line + b"\n" for line in whole))

    def add(self, tried: Tried) -> None:
        """Keep a trial.

        Raises:
            StorageError: The disk refuses.
        """
        with storage_errors(self.path), self.path.open("ab") as file:
            file.write(_line(tried) + b"\n")
        self.tried.append(tried)


def _line(tried: Tried) -> bytes:
    return canonical_json({"trial": asdict(tried.trial), "mix": tried.mix, "seconds": tried.seconds})


def _entries(lines: list[bytes]) -> list[Tried]:
    """Up to the first line that is none."""
    found: list[Tried] = []
    for line in lines[:-1]:  # what follows the last end of line was not written to its end
        try:
            values = json.loads(line)
            found.append(Tried(Trial(**values["trial"]), values["mix"], values["seconds"]))
        except (ValueError, KeyError, TypeError):
            break
    return found

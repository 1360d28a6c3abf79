"""The folder of a donor while it is made: who it belongs to, how far it is, and its log."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvec_deploy.errors import RecipeError, StorageError
from qvec_deploy.io.files import canonical_json, remove_first, storage_errors, write_bytes
from qvec_deploy.io.safetensors_file import write_safetensors
from qvec_deploy.io.untrusted import MAX_BYTES, json_object, read_json, read_limited, understood

if TYPE_CHECKING:
    from qvec_deploy.donors.train import TrainState

RECORD, LOG, VECTOR = "record.json", "log.jsonl", "vector.safetensors"
RUNS = ("fp", "qat")
_AGAIN = "--force starts over"
_WEIGHTS = tuple(f"{run}.safetensors" for run in RUNS)
_FILES = (RECORD, VECTOR, LOG, *_WEIGHTS)
_STATE = ".state"
_SETTINGS = "settings.json"

Entry = dict[str, Any]


class DonorFolder:
    """A donor's directory: every file in it is whole, and `record.json` comes last."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._state = path / _STATE

    @classmethod
    def open(cls, path: Path, *, force: bool = False) -> DonorFolder:
        """A directory to make a donor in, or to go on in."""
        folder = cls(path)
        with storage_errors(path):
            finished = folder._is_finished()
            ours = finished or folder._state.is_dir()
            if path.exists() and not ours and (not path.is_dir() or any(path.iterdir())):
                raise StorageError(f"{path} is not a donor's folder", hint="choose another directory")
            if finished and not force:
                raise StorageError(f"{path} holds a finished donor", hint="pass --force to replace it")
        return folder

    def claim(self, settings: Mapping[str, Any], *, force: bool = False) -> None:
        """Tie what is saved here to settings: all that decides the weights."""
        path = self._state / _SETTINGS
        with storage_errors(self.path):
            if force or not path.is_file():  # without settings it was killed before anything was trained
                self._clear()
        if not path.is_file():
            write_bytes(path, canonical_json(settings))
            return
        flat, before = _flat(json.loads(canonical_json(settings))), _flat(read_json(path, _AGAIN))
        for name in sorted(flat.keys() | before.keys()):
            if flat.get(name) != before.get(name):
                raise RecipeError(
                    f"{self.path} was begun with {name} {before.get(name)!r}, and this is {flat.get(name)!r}",
                    hint="--force starts over; or choose another directory",
                )

    def size(self) -> int:
        """Bytes of the files that are here."""
        with storage_errors(self.path):
            return sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file())

    def weights(self, run: str) -> Path:
        """Where the weights of a finished run are."""
        return self.path / f"{run}.safetensors"

    def save(self, run: str, state: TrainState) -> None:
        """Keep where a run stands, in place of what was kept before."""
        about = canonical_json({"step": state.step, "seconds": state.seconds}).decode()
        tensors = {name: value.detach().cpu().numpy() for name, value in state.tensors.items()}
        write_safetensors(self._kept(run), tensors, {"qvec": about})

    def load(self, run: str) -> TrainState | None:
        """Where a run stood when it was last saved; None if it never was."""
        from safetensors import safe_open

        from qvec_deploy.donors.train import TrainState

        path = self._kept(run)
        if not path.is_file():
            return None
        with understood(path, _AGAIN):
            with safe_open(path, framework="pt") as file:
                about = json_object((file.metadata() or {})["qvec"])
                names: list[str] = file.keys()
                tensors = {name: file.get_tensor(name) for name in names}
            return TrainState(int(about["step"]), float(about["seconds"]), tensors)

    def finish(self, run: str) -> None:
        """Forget where a run stood: its weights are written."""
        with storage_errors(self.path):
            self._kept(run).unlink(missing_ok=True)

    def read_log(self) -> list[Entry]:
        """The log's lines, oldest first."""
        path = self.path / LOG
        if not path.is_file():
            return []
        with understood(path, _AGAIN):
            return [json_object(line) for line in read_limited(path, MAX_BYTES).splitlines()]

    def write_log(self, entries: list[Entry]) -> None:
        """Write the whole log."""
        write_bytes(self.path / LOG, "".join(json.dumps(entry, allow_nan=False) + "\n" for entry in entries).encode())

    def complete(self, record: Mapping[str, Any]) -> None:
        """Write the record, and drop what a resumed run would have needed."""
        write_bytes(self.path / RECORD, json.dumps(record, indent=1, allow_nan=False).encode() + b"\n")
        shutil.rmtree(self._state, ignore_errors=True)

    def _kept(self, run: str) -> Path:
        return self._state / f"{run}.safetensors"

    def _is_finished(self) -> bool:
        record = self.path / RECORD
        return record.is_file() and b'"qvec-donor"' in record.read_bytes()

    def _clear(self) -> None:
        """Remove a donor's own files: the record first, so that no half of one looks finished."""
        remove_first(self.path / RECORD)
        for name in _FILES:
            (self.path / name).unlink(missing_ok=True)
        if self._state.exists():
            shutil.rmtree(self._state)


def require_space(path: Path, need: int) -> None:
    """Refuse a disk that is too full, before the training and not after it."""
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    with storage_errors(existing):
        free = shutil.disk_usage(existing).free
    if free < need:
        raise StorageError(
            f"{path} needs {need / 1e6:,.0f} MB and the disk has {free / 1e6:,.0f} MB free",
            hint="free some space or choose another place; nothing was trained yet",
        )


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested blocks as dotted names."""
    if not isinstance(values, dict):
        return {prefix.removesuffix("."): values}
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.")
    return flat

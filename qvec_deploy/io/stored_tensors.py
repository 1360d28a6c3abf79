"""Files of named tensors as they are stored. What a file is, its bytes say; no pickled code is ever run."""

from __future__ import annotations

import argparse
import collections
import pathlib
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qvec_deploy.errors import IncompatibleError, IntegrityError, StorageError, first_line
from qvec_deploy.io.files import storage_errors
from qvec_deploy.io.model_config import notes_of, notes_of_metadata
from qvec_deploy.io.other_files import SAVE, refuse_other
from qvec_deploy.io.state_dict import Weights, unwrap
from qvec_deploy.io.torch_archive import (
    OLD_PICKLES,
    StorageTracker,
    check_archive,
    check_names,
    check_old_storages,
    check_size,
    check_storages,
    check_sums,
    check_tensor,
)
from qvec_deploy.io.untrusted import read_json, safetensors_header, understood
from qvec_deploy.tensors import Float32

FLOATS = {name: np.dtype(kind) for name, kind in {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}.items()}
"""Dtypes that weights may have, as safetensors names them, and how their bytes are read."""
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # how torch.save began before it wrote zip archives
_INERT = (
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
)
"""Classes of dicts in Lightning's checkpoints that are read as plain dicts."""


@dataclass(frozen=True)
class TensorInfo:
    """Shape and safetensors dtype name of a stored tensor."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class StoredTensors:
    """What one file, or one index with its shards, holds.

    Attributes:
        read: One tensor as float32, by its stored name.
        files: Every file that holds a part.
        weights: Whether these are raw or averaged weights, where the file had both or says so.
        notes: What the file says about the model, as `io.model_config.notes_of`.
        check_sums: Compare checksums that the files bring with their bytes.
    """

    tensors: Mapping[str, TensorInfo]
    read: Callable[[str], Float32]
    files: tuple[Path, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)
    weights: Weights | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    check_sums: Callable[[], None] = lambda: None


def open_stored(path: Path, weights: Weights | None) -> StoredTensors:
    """Open a file of tensors, whatever it is called; headers only.

    Raises:
        IncompatibleError: A kind of file that is known and not read.
        IntegrityError: Not a file of tensors, or a damaged one.
        RecipeError: It holds raw and averaged weights, and `weights` does not say which.
        StorageError: It, or a shard, cannot be read.
    """
    with storage_errors(path), path.open("rb") as file:
        start = file.read(1024)
    if start.startswith((b"PK", _LEGACY)):
        return _open_torch(path, weights, zipped=start.startswith(b"PK"))
    if start[8:9] == b"{":
        return _open_safetensors(path)
    if start.lstrip().startswith(b"{") and b"\0" not in start:
        return _open_index(path, weights)
    refuse_other(path, start)
    if path.suffix == ".safetensors":
        return _open_safetensors(path)  # damaged: the library says how
    raise IntegrityError(f"{path} is not a checkpoint", hint=f"use a safetensors file, or {SAVE}")


def _open_safetensors(path: Path) -> StoredTensors:
    with understood(path, "copy or download it again"):
        header, start = safetensors_header(path)
    metadata = header.pop("__metadata__", {})
    ordered = sorted(header.items(), key=lambda item: item[1]["data_offsets"][0])
    tensors = {name: TensorInfo(tuple(entry["shape"]), entry["dtype"]) for name, entry in ordered}

    def read(name: str) -> Float32:
        info = tensors[name]
        count = int(np.prod(info.shape, dtype=np.int64))
        if count == 0:
            return np.zeros(info.shape, np.float32)
        offset = start + header[name]["data_offsets"][0]
        # Read, not mapped: pages of a mapped file count as resident memory for as long as it is open.
        values = np.fromfile(path, FLOATS[info.dtype], count, offset=offset)
        if info.dtype == "BF16":  # a bfloat16 is the upper half of a float32
            values = (values.astype(np.uint32) << 16).view(np.float32)
        result: Float32 = values.astype(np.float32, copy=False).reshape(info.shape)
        return result

    return StoredTensors(tensors, read, (path,), metadata, notes=notes_of_metadata(metadata))


def _open_index(path: Path, weights: Weights | None) -> StoredTensors:
    """Shards that a `*.index.json` lists, as Hugging Face's libraries write it."""
    hint = "name the checkpoint, or the *.index.json beside its shards"
    values = read_json(path, hint)
    with understood(f"{path}, an index of shards,", hint):
        names = {name: str(shard) for name, shard in values["weight_map"].items()}
    opened = {}
    for shard in sorted(set(names.values())):
        if Path(shard).name != shard:
            raise IntegrityError(f"{path} names {shard}, outside its folder", hint="download the checkpoint again")
        with storage_errors(path):
            there = (path.parent / shard).is_file()
        if not there:
            raise StorageError(f"{path.parent / shard}, a shard of {path.name}, is missing", hint="download it too")
        opened[shard] = open_stored(path.parent / shard, weights)
    missing = [name for name, shard in names.items() if name not in opened[shard].tensors]
    if missing:
        raise IntegrityError(f"{names[missing[0]]} lacks {missing[0]}", hint="download the checkpoint again")
    tensors = {name: opened[shard].tensors[name] for name, shard in names.items()}
    files = (path, *(file for stored in opened.values() for file in stored.files))

    def sums() -> None:
        for stored in opened.values():
            stored.check_sums()

    return StoredTensors(tensors, lambda name: opened[names[name]].read(name), files, check_sums=sums)


def _open_torch(path: Path, weights: Weights | None, *, zipped: bool) -> StoredTensors:
    import torch

    tracker = StorageTracker()
    try:
        members = check_archive(path) if zipped else None
        if not zipped:
            with path.open("rb") as file:
                check_names(path, file, OLD_PICKLES)
        with torch.serialization.safe_globals(_harmless()):
            saved = torch.load(path, map_location=tracker, weights_only=True, mmap=zipped or None)
        if members is not None:
            check_storages(path, members, tracker)
        else:
            check_old_storages(path, tracker)
        check_size(path, saved)
    except (IncompatibleError, IntegrityError):
        raise
    except pickle.UnpicklingError as error:
        raise IntegrityError(
            f"{path} holds pickled code{_unsafe_names(path)}, which is never run",
            hint=SAVE,
        ) from error
    except Exception as error:  # a damaged pickle can make the unpickler raise anything
        raise IntegrityError(
            f"{path} is not a whole torch checkpoint: {first_line(error)}",
            hint="copy it again, or save it with torch.save(model.state_dict(), path)",
        ) from error
    state, kind = unwrap(saved, weights, lambda value: isinstance(value, torch.Tensor), str(path))
    for name, value in state.items():
        check_tensor(path, name, value, tracker)
    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
    tensors = {
        name: TensorInfo(tuple(value.shape), names.get(value.dtype, str(value.dtype).removeprefix("torch.")))
        for name, value in state.items()
    }

    def read(name: str) -> Float32:
        values: Float32 = state[name].detach().resolve_neg().to(torch.float32).contiguous().numpy()
        return values

    sums: Callable[[], None] = (lambda: check_sums(path)) if zipped else lambda: None
    return StoredTensors(tensors, read, (path,), weights=kind, notes=notes_of(saved), check_sums=sums)


def _unsafe_names(path: Path) -> str:
    """What a pickle would call, in brackets; empty where that cannot be told."""
    import torch

    try:
        with torch.serialization.safe_globals(_harmless()):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # noqa: BLE001 - of a damaged or old file; the refusal stands without
        return ""
    return f" ({', '.join(sorted(names)[:3])}{', ...' * (len(names) > 3)})" if names else ""


def _harmless() -> list[Any]:
    """What training scripts save beside weights, and torch's loader may make of a pickle: values without behaviour."""
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]  # how NumPy pickles a number
    types = [type(np.dtype(kind)) for kind in ("f4", "f8", "f2", "i4", "i8", "u1", "b1", "U1")]
    return [
        argparse.Namespace,
        collections.defaultdict,
        pathlib.PurePosixPath,
        pathlib.PosixPath,
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        *types,
        *((dict, name) for name in _INERT),
    ]

"""A file of named tensors and its header: opening reads no weights, and no pickled code is ever run."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qvec_deploy.errors import IncompatibleError, IntegrityError, first_line
from qvec_deploy.io.files import require_file, sha256_file
from qvec_deploy.io.hub import fetch, is_remote
from qvec_deploy.tensors import Float32

_FLOATS = {name: np.dtype(kind) for name, kind in {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}.items()}
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_MAX_HEADER = 100 * 2**20  # the limit of the safetensors format itself


@dataclass(frozen=True)
class TensorInfo:
    """Shape and safetensors dtype name of a stored tensor."""

    shape: tuple[int, ...]
    dtype: str


class Checkpoint:
    """Named float tensors in a `.safetensors` file or a `.pt` state dict.

    Attributes:
        tensors: Name to shape and dtype, in file order, with a wrapper's prefix (`model.`) already stripped.
        metadata: The safetensors metadata, empty for `.pt`.
    """

    def __init__(
        self, path: Path, source: str, tensors: Mapping[str, TensorInfo], reader: Any, metadata: Mapping[str, str]
    ) -> None:
        self.path = path
        self.source = source
        self.tensors = tensors
        self.metadata = metadata
        self._reader = reader
        self._sha256: str | None = None

    @classmethod
    def open(cls, source: str | Path, *, offline: bool = False, label: str | None = None) -> Checkpoint:
        """Open a checkpoint and read its header only.

        Args:
            source: A path, or `hf://org/repo@revision/path`.
            label: What the recipe calls it; `source` if absent.

        Raises:
            StorageError: The file is missing or unreadable.
            FetchError: The Hub does not have it, or cannot be reached.
            IntegrityError: Not a checkpoint, truncated, or a pickled module.
        """
        path = fetch(str(source), offline=offline) if is_remote(str(source)) else Path(source)
        require_file(path, what="checkpoint")
        if path.suffix == ".safetensors":
            tensors, reader, metadata = _open_safetensors(path)
        elif path.suffix in (".pt", ".pth", ".bin"):
            tensors, reader, metadata = _open_torch(path)
        else:
            raise IntegrityError(f"{path} is not a checkpoint", hint="use a .safetensors file or a .pt state dict")
        if not tensors:
            raise IntegrityError(f"{path} holds no tensors", hint="use the file that the training run saved")
        tensors, reader = _strip_prefix(tensors, reader)
        return cls(path, label or str(source), tensors, reader, metadata)

    def read(self, name: str) -> Float32:
        """One tensor as float32, read from the file now; float32 comes out bit for bit.

        Raises:
            IntegrityError: The tensor holds NaN or infinity, or is not a float tensor.
        """
        info = self.tensors[name]
        if info.dtype not in _FLOATS:
            raise IncompatibleError(
                f"{self.path}: {name} has dtype {info.dtype}", hint="weights must be float32, float16 or bfloat16"
            )
        values = self._reader(name)
        if not np.isfinite(values).all():
            raise IntegrityError(
                f"{self.path}: {name} holds NaN or infinity",
                hint="the training run diverged; use an earlier checkpoint",
            )
        return values  # type: ignore[no-any-return]

    def fingerprint(self) -> str:
        """SHA-256 of the file, read once."""
        if self._sha256 is None:
            self._sha256 = sha256_file(self.path)
        return self._sha256


def _open_safetensors(path: Path) -> tuple[dict[str, TensorInfo], Any, Mapping[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:  # the library validates sizes, offsets and holes
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise IntegrityError(
            f"{path} is not a whole safetensors file: {error}", hint="copy or download it again"
        ) from error
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header: dict[str, Any] = json.loads(stream.read(min(length, _MAX_HEADER)))
    header.pop("__metadata__", None)
    start = 8 + length
    ordered = sorted(header.items(), key=lambda item: item[1]["data_offsets"][0])
    tensors = {name: TensorInfo(tuple(entry["shape"]), entry["dtype"]) for name, entry in ordered}

    def read(name: str) -> Float32:
        info = tensors[name]
        count = int(np.prod(info.shape, dtype=np.int64))
        if count == 0:
            return np.zeros(info.shape, np.float32)
        offset = start + header[name]["data_offsets"][0]
        # Read, not mapped: pages of a mapped file count as resident memory for as long as it is open.
        values = np.fromfile(path, _FLOATS[info.dtype], count, offset=offset)
        if info.dtype == "BF16":  # a bfloat16 is the upper half of a float32
            values = (values.astype(np.uint32) << 16).view(np.float32)
        result: Float32 = values.astype(np.float32, copy=False).reshape(info.shape)
        return result

    return tensors, read, metadata


def _open_torch(path: Path) -> tuple[dict[str, TensorInfo], Any, Mapping[str, str]]:
    import torch

    try:
        if not zipfile.is_zipfile(path):
            raise zipfile.BadZipFile("it is no zip archive, or its end is missing")
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise IntegrityError(
            f"{path} holds pickled code, which is never run",
            hint="save the state dict: torch.save(model.state_dict(), path), or convert it to safetensors",
        ) from error
    except Exception as error:  # a damaged pickle can make the unpickler raise anything
        raise IntegrityError(
            f"{path} is not a whole torch checkpoint: {first_line(error)}",
            hint="copy it again, or save it with torch.save(model.state_dict(), path)",
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise IntegrityError(f"{path} is not a state dict", hint="save it with torch.save(model.state_dict(), path)")
    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
    tensors = {
        str(name): TensorInfo(tuple(value.shape), names.get(value.dtype, str(value.dtype).removeprefix("torch.")))
        for name, value in state.items()
    }

    def read(name: str) -> Float32:
        values: Float32 = state[name].detach().to(torch.float32).contiguous().numpy()
        return values

    return tensors, read, {}


def _strip_prefix(tensors: dict[str, TensorInfo], reader: Any) -> tuple[dict[str, TensorInfo], Any]:
    """Remove one wrapper's prefix (`model.`, `module.`) if every name carries it."""
    for prefix in ("model.", "module.", "_orig_mod."):
        if all(name.startswith(prefix) for name in tensors):
            stripped = {name.removeprefix(prefix): info for name, info in tensors.items()}
            return stripped, lambda name, prefix=prefix: reader(prefix + name)
    return tensors, reader

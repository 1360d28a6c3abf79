"""A file of named tensors and its header: opening reads no weights, and no pickled code is ever run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from qvec_deploy.errors import FetchError, IncompatibleError, IntegrityError, StorageError
from qvec_deploy.io.files import require_file, sha256_bytes, sha256_file, storage_errors
from qvec_deploy.io.hub import fetch, is_remote
from qvec_deploy.io.model_config import CONFIG_FILE, ModelConfig, read_configs
from qvec_deploy.io.other_files import SAVE
from qvec_deploy.io.state_dict import NetworkTensors, Weights, find_network
from qvec_deploy.io.stored_tensors import FLOATS, StoredTensors, TensorInfo, open_stored
from qvec_deploy.io.untrusted import MAX_DIMENSIONS
from qvec_deploy.tensors import Float32

__all__ = ["Checkpoint", "TensorInfo"]

_ENDINGS = (".safetensors", ".tar", ".pth", ".pt", ".ckpt", ".bin")


class Checkpoint:
    """The named float tensors of a network, in any file that timm's own loader reads without running code.

    A safetensors file, a shard index (`*.index.json`) of several, or whatever `torch.save` wrote; which it is, its
    bytes say and not its name.

    Attributes:
        tensors: The network's own names to shape and dtype, in file order.
        metadata: The safetensors metadata, empty for others.
        weights: `ema` or `raw` where the file says or was asked which; else None.
        aside: What the file holds beside the network, by its own names: losses, metrics, counters.
    """

    def __init__(self, path: Path, source: str, stored: StoredTensors, network: NetworkTensors) -> None:
        self.path = path
        self.source = source
        self.tensors: Mapping[str, TensorInfo] = {name: stored.tensors[key] for name, key in network.names.items()}
        self.metadata = stored.metadata
        self.weights, self.aside = network.weights, network.aside
        self._names, self._stored = network.names, stored
        self._config_path: Callable[[], Path] = lambda: path.parent / CONFIG_FILE
        self._sha256: str | None = None

    @classmethod
    def open(
        cls, source: str | Path, *, offline: bool = False, label: str | None = None, weights: Weights | None = None
    ) -> Checkpoint:
        """Open a checkpoint and read its header only.

        Args:
            source: A path, or `hf://org/repo@revision/path`.
            label: What the recipe calls it; `source` if absent.
            weights: Which to take where a file holds raw and averaged ones.

        Raises:
            StorageError: The file is missing or unreadable.
            FetchError: The Hub does not have it, or cannot be reached.
            IntegrityError: Not a checkpoint, truncated, or a pickled module.
            IncompatibleError: Weights of another library, or of several networks.
            RecipeError: It holds raw and averaged weights and `weights` does not say which, or names those it lacks.
        """
        remote = is_remote(str(source))
        path = fetch(str(source), offline=offline) if remote else Path(source)
        if path.is_dir():
            raise StorageError(f"checkpoint: {path} is a folder", hint=f"name the file itself{_files_in(path)}")
        require_file(path, what="checkpoint")
        stored = open_stored(path, weights)
        if not stored.tensors:
            raise IntegrityError(f"{path} holds no tensors", hint="use the file that the training run saved")
        odd = next((name for name, info in stored.tensors.items() if len(info.shape) > MAX_DIMENSIONS), None)
        if odd is not None:
            raise IntegrityError(f"{path}: {odd} has more than {MAX_DIMENSIONS} dimensions", hint=SAVE)
        shapes = {name: info.shape for name, info in stored.tensors.items()}
        opened = cls(path, label or str(source), stored, find_network(shapes, weights, stored.weights, str(path)))
        if remote:
            beside = f"{str(source).rpartition('/')[0]}/{CONFIG_FILE}"
            opened._config_path = lambda: fetch(beside, offline=offline)
        return opened

    def configs(self) -> tuple[ModelConfig, ...]:
        """What the file itself, and then a config.json beside it, says about the model.

        Raises:
            IntegrityError: The config.json is no JSON.
        """
        try:
            beside = self._config_path()
        except FetchError:  # the repository has none
            beside = None
        return read_configs(self.path, self._stored.notes, beside)

    def read(self, name: str) -> Float32:
        """One tensor as float32, read from the file now; float32 comes out bit for bit.

        Raises:
            IntegrityError: The tensor holds NaN or infinity, or is not a float tensor.
        """
        info = self.tensors[name]
        if info.dtype not in FLOATS:
            raise IncompatibleError(
                f"{self.path}: {name} has dtype {info.dtype}",
                hint="weights must be float64, float32, float16 or bfloat16",
            )
        values = self._stored.read(self._names[name])
        if not np.isfinite(values).all():
            raise IntegrityError(
                f"{self.path}: {name} holds NaN or infinity",
                hint="the training run diverged; use an earlier checkpoint",
            )
        return values

    def fingerprint(self) -> str:
        """SHA-256 of the file, or of the hashes of an index and its shards; read once.

        Raises:
            IntegrityError: The file has checksums of its own, and one of them does not fit.
        """
        if self._sha256 is None:
            self._stored.check_sums()
            hashes = [sha256_file(path) for path in self._stored.files]
            self._sha256 = hashes[0] if len(hashes) == 1 else sha256_bytes("".join(hashes).encode())
        return self._sha256

    def require(self, sha256: str | None) -> None:
        """Refuse other bytes than those of a SHA-256, where one is given.

        Raises:
            IntegrityError: It has another fingerprint.
        """
        if sha256 is not None and sha256 != self.fingerprint():
            raise IntegrityError(
                f"{self.path} has SHA-256 {self.fingerprint()}, and the recipe wants {sha256}",
                hint="get the file that the recipe was written for; if this is the one, change `sha256`",
            )


def _files_in(folder: Path) -> str:
    """The files of a folder that may be meant, an index before its shards."""
    with storage_errors(folder):
        names = sorted(each.name for each in folder.iterdir() if each.is_file())
    found = [name for end in (".index.json", *_ENDINGS) for name in names if name.endswith(end)]
    return f": {', '.join(found[:3])}{', ...' * (len(found) > 3)}" if found else ""

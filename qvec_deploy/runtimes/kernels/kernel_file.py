"""Kernels that travel in a bundle: compiled where it is built, so that the device needs no compiler of ours."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.io.files import canonical_json, write_bytes
from qvec_deploy.io.untrusted import adapter, json_object, read_limited, understood
from qvec_deploy.packed import PackedFile
from qvec_deploy.runtimes.engine_files import KERNELS_FILE, WEIGHTS_FILE
from qvec_deploy.runtimes.kernels.ahead import TILES, Compiled, Float, Tile, aligned_sizes, compile_ahead
from qvec_deploy.runtimes.kernels.layouts import choose_layout
from qvec_deploy.runtimes.kernels.plugin_config import PluginConfig

FORMAT, FORMAT_VERSION = "qvec-kernels", 1
_MAX_UNPACKED = 4 << 20  # bytes; the kernels of a ViT-B have 1 MB, and more takes a second to read


@dataclass(frozen=True)
class StoredKernel:
    """A compiled kernel, and the weights that it is for.

    Attributes:
        aligned: Sizes that are multiples of 16: `n`, `k` or both.
        tile: The tile, as its `str`.
        name: The kernel's name in the PTX.
        shared_bytes: Dynamic shared memory of a launch.
    """

    layout: str
    layout_version: int
    bits: int
    group_size: int
    sm: int
    aligned: tuple[str, ...]
    tile: str
    name: str
    shared_bytes: int
    ptx: str

    @property
    def key(self) -> tuple[object, ...]:
        """What it is found by."""
        return tuple(value for name, value in asdict(self).items() if name not in ("name", "shared_bytes", "ptx"))


class CompiledKernels:
    """Kernels for float16 activations, found by what they are for."""

    def __init__(self, kernels: Iterable[StoredKernel]) -> None:
        self.kernels: Mapping[tuple[object, ...], StoredKernel] = {kernel.key: kernel for kernel in kernels}

    def find(self, config: PluginConfig, tile: Tile, dtype: Float = "float16") -> Compiled:
        """The kernel for a weight.

        Raises:
            IncompatibleError: There is none.
        """
        kernel = self.kernels.get((*_weight(config), str(tile)))
        if kernel is None or dtype != "float16":
            raise IncompatibleError(
                f"the bundle has no compiled kernel of tile {tile} in {dtype} for `{config}`",
                hint="build the bundle again with this version",
            )
        ptx = kernel.ptx.encode("ascii")
        return Compiled(ptx, kernel.name, kernel.shared_bytes, kernel.sm, tile, -(-config.rows // tile.columns))


def compile_kernels(configs: Iterable[PluginConfig]) -> CompiledKernels:
    """Compile every tile for every kind of weight.

    Raises:
        IncompatibleError: Triton is missing or refuses.
    """
    kinds = {_weight(config): config for config in configs}
    made = []
    for kind, config in sorted(kinds.items(), key=repr):
        for tile in TILES:
            built = compile_ahead(
                layout=config.device_layout,
                bits=config.bits,
                rows=config.rows,
                columns=config.columns,
                group_size=config.group_size,
                tile=tile,
                sm=config.sm,
            )
            made.append(StoredKernel(*kind, str(tile), built.name, built.shared_bytes, built.ptx.decode("ascii")))
    return CompiledKernels(made)


def write_kernels(directory: Path) -> None:
    """Compile what a bundle's quantized Linears need, and keep it beside its weights.

    Raises:
        IncompatibleError: Triton is missing or refuses.
    """
    configs = []
    for info in PackedFile.open(directory / WEIGHTS_FILE).tensors.values():
        if info.scheme is not None and len(info.shape) == 2:
            rows, columns = info.matrix
            configs.append(plugin_config(rows, columns, info.scheme.bits, info.scheme.group_size))
    kernels = [asdict(kernel) for kernel in compile_kernels(configs).kernels.values()]
    document = {"format": FORMAT, "version": FORMAT_VERSION, "kernels": kernels}
    write_bytes(directory / KERNELS_FILE, gzip.compress(canonical_json(document), mtime=0))


def read_kernels(directory: Path) -> CompiledKernels | None:
    """What `write_kernels` kept; None where there is no such file, as in bundles of before.

    Raises:
        IntegrityError: The file is damaged.
        IncompatibleError: A later version wrote it.
    """
    path = directory / KERNELS_FILE
    if not path.is_file():
        return None
    with understood(path):
        document = json_object(_unpacked(read_limited(path, _MAX_UNPACKED)))
        kind, version, kernels = (document[name] for name in ("format", "version", "kernels"))
    if (kind, version) != (FORMAT, FORMAT_VERSION):
        raise IncompatibleError(
            f"{path} has format {kind} {version}, not {FORMAT} {FORMAT_VERSION}", hint="use the version that wrote it"
        )
    with understood(path):
        found = adapter(list[StoredKernel]).validate_json(json.dumps(kernels), strict=True)
    return CompiledKernels(found)


def _unpacked(data: bytes) -> bytes:
    """What was compressed, as far as it may be long."""
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        text = file.read(_MAX_UNPACKED + 1)
    if len(text) > _MAX_UNPACKED:
        raise ValueError(f"it has more than {_MAX_UNPACKED:,} bytes when unpacked")
    return text


def plugin_config(rows: int, columns: int, bits: int, group_size: int) -> PluginConfig:
    """How a weight is stored for the plugin."""
    layout = choose_layout(rows, columns, bits, group_size)
    return PluginConfig(layout.id, layout.version, bits, rows, columns, group_size)


def _weight(config: PluginConfig) -> tuple[str, int, int, int, int, tuple[str, ...]]:
    aligned = aligned_sizes(config.rows, config.columns)
    return config.layout, config.layout_version, config.bits, config.group_size, config.sm, aligned

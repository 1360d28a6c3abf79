"""The file beside every engine: what it was built from, for and with, checked before TensorRT sees the engine."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from qvec_deploy.errors import IncompatibleError, IntegrityError
from qvec_deploy.io.files import require_file, sha256_file, storage_errors, write_bytes
from qvec_deploy.io.untrusted import adapter, read_json, understood
from qvec_deploy.runtimes.engine_options import Batches, Hardware
from qvec_deploy.runtimes.session import LinearProduct
from qvec_deploy.runtimes.tensorrt.tensorrt_library import Machine, release

FORMAT, FORMAT_VERSION = "qvec-plan", 1
SUFFIX, DELTA_SUFFIX = ".plan", ".delta"
REBUILD = "`qvec-deploy compile BUNDLE` builds it for this machine"


@dataclass(frozen=True)
class Sidecar:
    """What an engine is.

    Attributes:
        input_shape: (C, H, W) of an image.
        hardware: GPUs it runs on.
        version_compatible: Whether other releases of the same major version run it.
        packed_bytes: Codes and scales of its quantized Linears, as handed to TensorRT.
        allowed_bytes: Most that it stores if its quantized Linears stayed packed; None where they are float16.
        weights_bytes: What TensorRT says it stores; None where it does not say.
        device_bytes: Memory that running it takes beyond its weights; 0 where it was built without a GPU.
        compute_capabilities: GPUs it runs on, where it was built for a list of them.
        products: What the quantized Linears are multiplied in, where it was built for such a list.
        plan_bytes: Its own size; 0 where nobody wrote it down, and the engine is stored as it is.
        stored_whole: Why it is stored as it is, where it was to be a delta to its graph.
        plugin_sha256: SHA-256 of the plugin library that it was built with; empty where there was none.
        plugin_carried: Whether it carries that library.
        kernels_sha256: SHA-256 of the compiled kernels that it has launched; empty where it carries its own.
    """

    machine: Machine
    lowering: str
    batches: Batches
    input_shape: tuple[int, int, int]
    hardware: Hardware
    version_compatible: bool
    cuda_graph: bool
    plugin_layers: int
    packed_bytes: int
    given_bytes: int
    allowed_bytes: int | None
    weights_bytes: int | None
    device_bytes: int
    sha256: str
    model_sha256: str
    weights_sha256: str
    build_s: float
    compute_capabilities: tuple[float, ...] = ()
    products: tuple[LinearProduct, ...] = ()
    plan_bytes: int = 0
    stored_whole: str | None = None
    plugin_sha256: str = ""
    plugin_carried: bool = False
    kernels_sha256: str = ""


_ADDED = {
    "compute_capabilities": [],
    "products": [],
    "plan_bytes": 0,
    "stored_whole": None,
    "plugin_sha256": "",
    "plugin_carried": False,
    "kernels_sha256": "",
}
"""Fields that the first sidecars lack."""


def engine_path(directory: Path, lowering: str, batches: Batches) -> Path:
    """The name of an engine; where it lies, unless a delta does in its stead."""
    return directory / f"engine.{lowering}.b{batches}{SUFFIX}"


def delta_path(engine: Path) -> Path:
    """Where an engine lies as a delta to its graph."""
    return engine.with_name(f"{engine.name}{DELTA_SUFFIX}")


def stored_path(engine: Path) -> Path:
    """The file that holds an engine, as it is or as a delta."""
    return engine if engine.is_file() else delta_path(engine)


def sidecar_path(engine: Path) -> Path:
    """Where its sidecar lies."""
    return engine.with_name(f"{engine.name}.json")


def find_engines(directory: Path, lowering: str) -> list[Path]:
    """The engines of a lowering in a directory, by name; `stored_path` says what holds each."""
    ends = rf"{re.escape(SUFFIX)}({re.escape(DELTA_SUFFIX)})?"
    named = re.compile(rf"engine\.{re.escape(lowering)}\.b\d+(-\d+)?{ends}")
    with storage_errors(directory):
        names = [path.name for path in directory.iterdir() if named.fullmatch(path.name)]
    return sorted({directory / name.removesuffix(DELTA_SUFFIX) for name in names})


def write_sidecar(engine: Path, sidecar: Sidecar) -> None:
    """Write it beside its engine."""
    document = {"format": FORMAT, "version": FORMAT_VERSION, **asdict(sidecar)}
    text = json.dumps(document, indent=2, sort_keys=True, allow_nan=False)
    write_bytes(sidecar_path(engine), f"{text}\n".encode())


def read_sidecar(engine: Path) -> Sidecar:
    """The sidecar of an engine."""
    path = sidecar_path(engine)
    if not path.is_file():
        raise IntegrityError(f"{path} is missing, and nothing else says what {engine.name} is", hint=REBUILD)
    values = read_json(path, REBUILD)
    with understood(path, REBUILD):
        kind, version = values.pop("format"), values.pop("version")
    if (kind, version) != (FORMAT, FORMAT_VERSION):
        raise IncompatibleError(f"{path} has format {kind} {version}, not {FORMAT} {FORMAT_VERSION}", hint=REBUILD)
    with understood(path, REBUILD):
        sidecar: Sidecar = adapter(Sidecar).validate_json(json.dumps(values), strict=True)
        if json.loads(json.dumps(asdict(sidecar))) != {**_ADDED, **values}:
            raise ValueError("it has fields that are never written")
    return sidecar


def check_machine(engine: Path, sidecar: Sidecar, here: Machine) -> None:
    """Refuse an engine that is not for this machine."""
    reason = mismatch(sidecar, here)
    if reason is not None:
        raise IncompatibleError(f"{engine}: {reason}", hint=REBUILD)


def check_sources(engine: Path, sidecar: Sidecar, sources: Mapping[str, Path]) -> None:
    """Refuse an engine under another name, or that was not built from these weights.

    Args:
        sources: The model (`model`) and the packed file (`weights`) beside it.
    """
    if engine != engine_path(engine.parent, sidecar.lowering, sidecar.batches):
        raise IntegrityError(f"{engine} is not what its sidecar says", hint=REBUILD)
    for what, expected in (("model", sidecar.model_sha256), ("weights", sidecar.weights_sha256)):
        if sha256_file(require_file(sources[what], what=what)) != expected:
            raise IncompatibleError(f"{engine} was built from another {sources[what].name}", hint=REBUILD)


def mismatch(sidecar: Sidecar, here: Machine) -> str | None:
    """Why an engine does not run on a machine, in a line; None if it does."""
    built = sidecar.machine
    if sidecar.compute_capabilities:
        if built.tensorrt != here.tensorrt:
            return f"built with TensorRT for RTX {built.tensorrt}, here is {here.tensorrt}"
        if here.sm not in [round(10 * capability) for capability in sidecar.compute_capabilities]:
            return f"built for {built.gpu}, here is {here.gpu} ({here.sm / 10:.1f})"
        return None
    if sidecar.version_compatible:
        versions_fit = release(built.tensorrt)[0] == release(here.tensorrt)[0]
    else:
        versions_fit = built.tensorrt == here.tensorrt
    if not versions_fit:
        return f"built with TensorRT {built.tensorrt}, here is {here.tensorrt}"
    gpu_fits = {
        "this": (built.gpu, built.sm) == (here.gpu, here.sm),
        "same_compute_capability": built.sm == here.sm,
        "ampere_plus": here.sm >= 80,
    }[sidecar.hardware]
    if not gpu_fits:
        return f"built for {built.gpu} (sm_{built.sm}), here is {here.gpu} (sm_{here.sm})"
    if release(here.driver) < release(built.driver):
        return f"built with a driver for CUDA {built.driver}, here is one for {here.driver}"
    return None

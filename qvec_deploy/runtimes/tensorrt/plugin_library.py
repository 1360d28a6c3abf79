"""Our plugin as a compiled library, for releases of TensorRT that take none from Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qvec_deploy.errors import IncompatibleError, IntegrityError
from qvec_deploy.io.files import require_file, sha256_bytes, storage_errors
from qvec_deploy.runtimes.kernels.plugin_config import LINEAR, NAMESPACE, VERSION

SOURCES = Path(__file__).parent / "plugin"
"""What it is built from, by CMake."""

_loaded: dict[str, Any] = {}  # handles by hash: a process can load a library once


def plugin_path(directory: Path, lowering: str) -> Path:
    """Where the library lies of engines that do not carry it."""
    return directory / f"engine.{lowering}.plugin.so"


def read_plugin(path: Path, expected: str | None = None) -> bytes:
    """The library's bytes.

    Args:
        expected: SHA-256 that it must have.

    Raises:
        StorageError: There is none.
        IntegrityError: It is another one.
        IncompatibleError: The file is no shared library.
    """
    require_file(path, what="the plugin library")
    with storage_errors(path):
        data = path.read_bytes()
    if expected is not None and sha256_bytes(data) != expected:
        raise IntegrityError(f"{path} is not the library that the engine was built with", hint="compile it again")
    if not data.startswith(b"\x7fELF"):
        raise IncompatibleError(f"{path} is no shared library", hint=f"build it with CMake from {SOURCES}")
    return data


def load_plugin(trt: Any, path: Path, expected: str | None = None) -> bytes:
    """Register the library's plugin with TensorRT, once in a process.

    Returns:
        Its bytes, as `read_plugin` does.

    Raises:
        IncompatibleError: TensorRT refuses it, or has another plugin of this name.
    """
    data = read_plugin(path, expected)
    digest, registry = sha256_bytes(data), trt.get_plugin_registry()
    if digest in _loaded:
        return data
    if _loaded or registry.get_creator(LINEAR, VERSION, NAMESPACE) is not None:
        raise IncompatibleError(
            f"{path} cannot be loaded: this process has another plugin {LINEAR}", hint="use a process of its own"
        )
    handle = registry.load_library(str(path))
    if handle is None or registry.get_creator(LINEAR, VERSION, NAMESPACE) is None:
        raise IncompatibleError(
            f"TensorRT {trt.__version__} does not take {path} for the plugin {LINEAR}",
            hint=f"build it with CMake from {SOURCES}, with this TensorRT's headers, for this machine",
        )
    _loaded[digest] = handle
    return data

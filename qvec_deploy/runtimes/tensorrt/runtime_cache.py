"""The kernels that TensorRT for RTX compiles when an engine first runs, kept beside the bundle for the next time.

The names here are those of TensorRT for RTX alone. A cache is never needed: what is wrong with it is a warning.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

from qvec_deploy.errors import StorageError, first_line
from qvec_deploy.io.files import storage_errors, write_bytes
from qvec_deploy.runtimes.engine_files import MODEL_FILE
from qvec_deploy.runtimes.tensorrt.sidecar import Sidecar
from qvec_deploy.runtimes.tensorrt.tensorrt_library import Machine

SUFFIX = ".runtime"
_LIBRARY_ERRORS = (RuntimeError, TypeError, ValueError)  # what bindings make of a library's exceptions


class RuntimeCache:
    """The compiled kernels of one engine, for one release of the library on one GPU.

    Args:
        path: Their file, which need not be there.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._known = path, b""
        self._cache: Any = None

    def create_context(self, trt: Any, engine: Any, sidecar: Sidecar) -> Any:
        """An execution context that takes its kernels from the cache, and puts new ones into it."""
        config = engine.create_runtime_config()
        if sidecar.cuda_graph and not sidecar.batches.static:  # one batch size is recorded by the session
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        try:
            cache = config.create_runtime_cache()
            self._read(cache)
            if config.set_runtime_cache(cache):
                self._cache = cache
        except _LIBRARY_ERRORS as error:
            _warn(f"kernels are compiled at every start, for there is no runtime cache: {first_line(error)}")
        return engine.create_execution_context(runtime_config=config)

    def _read(self, cache: Any) -> None:
        try:
            with storage_errors(self._path):
                known = self._path.read_bytes() if self._path.is_file() else b""
        except StorageError as error:
            _warn(f"kernels are compiled anew, for {error.message}")
            return
        if known and not cache.deserialize(known):
            _warn(f"kernels are compiled anew: {self._path} is damaged, or of another driver")
            return
        self._known = known

    def keep(self) -> None:
        """Write what the engine's first run has added."""
        if self._cache is None:
            return
        try:
            data = bytes(memoryview(self._cache.serialize()))
            if data != self._known:
                write_bytes(self._path, data)
                self._known = data
        except StorageError as error:
            _warn(f"the next start will compile kernels again, for {error.message}")
        except _LIBRARY_ERRORS as error:
            _warn(f"the next start will compile kernels again: {first_line(error)}")


def runtime_cache_path(directory: Path, library: str, here: Machine, sidecar: Sidecar) -> Path:
    """Where the kernels of an engine are kept: in the folder that holds its bundle.

    Args:
        directory: The engine's folder: a bundle, or a part of one.
    """
    bundle = directory.resolve()
    if (bundle.parent / MODEL_FILE).is_file():
        bundle = bundle.parent
    gpu = re.sub(r"[^A-Za-z0-9]+", "-", here.gpu).strip("-").lower()
    return bundle.parent / f"{library}-{here.tensorrt}-{gpu}-sm{here.sm}-{sidecar.sha256[:16]}{SUFFIX}"


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=2)

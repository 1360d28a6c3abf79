"""TensorRT on NVIDIA GPUs: engines are built where they run, kept beside the weights, and checked before they load."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from qvec_deploy.errors import IncompatibleError, IntegrityError
from qvec_deploy.io.files import require_file, sha256_file
from qvec_deploy.runtimes.cuda_driver import Cuda, OutOfDeviceMemory
from qvec_deploy.runtimes.engine_files import KERNELS_FILE
from qvec_deploy.runtimes.engine_options import Batches, EngineOptions
from qvec_deploy.runtimes.registry import check_engine, usual_capabilities
from qvec_deploy.runtimes.session import Advance, LinearProduct, Session, Stage
from qvec_deploy.runtimes.tensorrt.engine_build import (
    build_apart,
    build_files,
    engine_files,
    load_engine,
    lower_sources,
    read_sources,
    remove_engines,
)
from qvec_deploy.runtimes.tensorrt.plugin_library import load_plugin, plugin_path, read_plugin
from qvec_deploy.runtimes.tensorrt.runtime_cache import RuntimeCache, runtime_cache_path
from qvec_deploy.runtimes.tensorrt.sidecar import (
    REBUILD,
    Sidecar,
    check_machine,
    engine_path,
    find_engines,
    read_sidecar,
    stored_path,
)
from qvec_deploy.runtimes.tensorrt.tensorrt_builder import timing_cache_path
from qvec_deploy.runtimes.tensorrt.tensorrt_library import FULL, RTX, Library, Machine, load_tensorrt, machine, require
from qvec_deploy.runtimes.tensorrt.tensorrt_session import TensorrtSession, load_engines

if TYPE_CHECKING:
    import onnx

_TOLD = (
    "weights_bytes",
    "given_bytes",
    "allowed_bytes",
    "packed_bytes",
    "plugin_layers",
    "device_bytes",
    "build_s",
    "compute_capabilities",
    "stored_whole",
)


class TensorRT:
    """The `tensorrt` runtime."""

    library: ClassVar[Library] = FULL

    def missing(self, lowering: str | None = None) -> str | None:
        """What this machine lacks to build and run engines."""
        try:
            require(lowering, library=self.library)
        except IncompatibleError as error:
            return error.message
        return None

    def cannot_build(self, lowering: str) -> str | None:
        """What this machine lacks to build engines."""
        return self.missing(lowering)

    def compile(
        self,
        directory: Path,
        lowering: str,
        options: EngineOptions,
        *,
        caches: Path,
        stage: Stage | None = None,
    ) -> list[str]:
        """Build a lowering's engines, and a sidecar for each, from model.onnx and the packed weights in `directory`."""
        if options.plugin_library is not None:
            read_plugin(Path(options.plugin_library))
        trt, cuda = require(lowering, library=self.library, plugin=options.plugin_library is not None)
        here = machine(trt, cuda.gpu)
        cache = timing_cache_path(caches, here)
        remove_engines(directory, lowering)
        done: list[Batches] = []
        for batches in options.engines():
            try:
                with (stage or _unseen)(f"{lowering}, batch {batches}") as advance:
                    build_files(trt, here, self.library, directory, lowering, batches, options, advance, cache)
            except OutOfDeviceMemory as error:
                raise _too_large(lowering, batches, here, done) from error
            done.append(batches)
        return engine_files(directory, lowering, done)

    @contextlib.contextmanager
    def open(self, directory: Path, lowering: str, threads: int) -> Iterator[TensorrtSession]:
        """Load the engines that `compile` left; they must be built from the model and weights beside them."""
        engines = {engine: read_sidecar(engine) for engine in find_engines(directory, lowering)}
        plugins = {sidecar.plugin_sha256 for sidecar in engines.values()} - {""}
        trt, cuda = require(lowering, library=self.library, plugin=bool(plugins))
        if not engines:
            raise IncompatibleError(f"{directory} has no TensorRT engine for lowering `{lowering}`", hint=REBUILD)
        here, plans = machine(trt, cuda.gpu), []
        for engine, sidecar in engines.items():
            check_machine(engine, sidecar, here)
            plans.append((sidecar, load_engine(engine, self.library.runtime)))
        caches = {
            sidecar.sha256: RuntimeCache(runtime_cache_path(directory, self.library.runtime, here, sidecar))
            for sidecar, _ in plans
            if self.library.compiles_at_start
        }
        self._load_plugins(trt, cuda, directory, list(engines.values()))
        with load_engines(trt, cuda, plans, caches) as session:
            yield session

    def emulate(self, directory: Path, lowering: str, threads: int) -> contextlib.AbstractContextManager[Session]:
        """As `Emulator.emulate`."""
        from qvec_deploy.runtimes.tensorrt.emulation import open_emulation

        return open_emulation(directory, self.library.runtime, lowering, threads)

    def _load_plugins(self, trt: Any, cuda: Cuda, directory: Path, sidecars: Sequence[Sidecar]) -> None:
        """What engines do not carry of our plugin."""
        for sidecar in sidecars:
            if sidecar.plugin_sha256 and not sidecar.plugin_carried:
                load_plugin(trt, plugin_path(directory, sidecar.lowering), sidecar.plugin_sha256)

    def describe(self, directory: Path, lowering: str) -> list[dict[str, Any]]:
        """What the engines of a lowering are, for people and records; nothing is opened but their sidecars."""
        return [
            {
                "file": stored.name,
                "batches": str(sidecar.batches),
                "machine": asdict(sidecar.machine),
                "plan_bytes": sidecar.plan_bytes or stored.stat().st_size,
                "stored_bytes": stored.stat().st_size,
                **{name: getattr(sidecar, name) for name in _TOLD},
            }
            for engine in find_engines(directory, lowering)
            for sidecar, stored in [(read_sidecar(engine), stored_path(engine))]
        ]

    def read(self, directory: Path, lowering: str, batches: Batches) -> bytes:
        """The bytes of an engine, as TensorRT reads it; neither TensorRT nor a GPU is needed."""
        return load_engine(engine_path(directory, lowering, batches), self.library.runtime)

    def graph(self, directory: Path, lowering: str) -> onnx.ModelProto:
        """As `Compiler.graph`; neither TensorRT nor a GPU is needed."""
        stored, weights, _ = read_sources(directory)
        return lower_sources(directory, stored, weights, self.library.runtime, lowering, Batches(1, 1, 2)).model

    def products(self, directory: Path, lowering: str) -> tuple[LinearProduct, ...]:
        """As `Compiler.products`."""
        return next((read_sidecar(engine).products for engine in find_engines(directory, lowering)), ())


class TensorRTForRTX(TensorRT):
    """The `tensorrt-rtx` runtime: engines for a list of GPUs are built on any CPU, in a process of their own."""

    library: ClassVar[Library] = RTX

    def cannot_build(self, lowering: str) -> str | None:
        """What this machine lacks to build engines: the library, no GPU."""
        try:
            load_tensorrt(self.library)
        except IncompatibleError as error:
            return error.message
        return None

    def compile(
        self,
        directory: Path,
        lowering: str,
        options: EngineOptions,
        *,
        caches: Path,
        stage: Stage | None = None,
    ) -> list[str]:
        """As for TensorRT; the library may crash or hang, which costs an error and leaves its log."""
        load_tensorrt(self.library)
        if options.plugin_library is not None:
            raise IncompatibleError(f"{self.library.title} takes no plugin library", hint="leave out --plugin")
        runtime = self.library.runtime
        check_engine(
            runtime,
            lowering,
            options.compute_capabilities,
            others=options.hardware != "this" or options.version_compatible,
        )
        gpus = options.compute_capabilities or usual_capabilities(runtime, lowering)
        options = replace(options, compute_capabilities=gpus)
        if options.dynamic is None:
            options = replace(options, dynamic=True, batch_sizes=(*options.batch_sizes, *_USUAL_BATCHES))
        remove_engines(directory, lowering)
        for batches in options.engines():
            with (stage or _unseen)(f"{lowering}, batch {batches}") as advance:
                build_apart(directory, lowering, batches, options, advance)
            whole = read_sidecar(engine_path(directory, lowering, batches)).stored_whole
            if whole is not None:
                warnings.warn(f"engine `{lowering}`, batch {batches}, is stored whole: {whole}", stacklevel=2)
        return engine_files(directory, lowering, options.engines())

    def _load_plugins(self, trt: Any, cuda: Cuda, directory: Path, sidecars: Sequence[Sidecar]) -> None:
        """The plugin in Python, which launches the bundle's kernels."""
        if not any(sidecar.kernels_sha256 for sidecar in sidecars):
            return
        from qvec_deploy.runtimes.kernels.kernel_file import read_kernels
        from qvec_deploy.runtimes.tensorrt.python_plugin import KernelLauncher, register_python_plugin

        path = require_file(directory / KERNELS_FILE, what="the engines' compiled kernels")
        kernels = read_kernels(directory)
        if kernels is None or {sidecar.kernels_sha256 for sidecar in sidecars} != {sha256_file(path)}:
            raise IntegrityError(f"the engines in {directory} were built with another {path.name}", hint=REBUILD)
        register_python_plugin(trt, KernelLauncher(kernels, cuda))


_USUAL_BATCHES = (1, 8)
"""Smallest and largest batch of an open engine that nobody gave sizes."""


def _too_large(lowering: str, batches: Batches, here: Machine, done: list[Batches]) -> OutOfDeviceMemory:
    fits = ", ".join(map(str, done))
    return OutOfDeviceMemory(
        f"building `{lowering}` at batch {batches} takes more memory than {here.gpu} has free",
        hint=f"batch {fits} fits: leave out the larger ones" if fits else "free GPU memory, or use a smaller batch",
    )


@contextlib.contextmanager
def _unseen(_: str) -> Iterator[Advance]:
    yield lambda done, total: None

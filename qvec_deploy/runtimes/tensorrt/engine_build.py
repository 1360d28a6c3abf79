"""One engine of a bundle from its model and weights to files: built, gated and described; in this process or apart."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvec_deploy.errors import IncompatibleError, IntegrityError, QvecError, StorageError
from qvec_deploy.io.files import require_file, sha256_file, storage_errors, write_bytes
from qvec_deploy.io.scratch import keep_log, scratch_folder
from qvec_deploy.jobs.job import Job, JobFailure, SendEvent
from qvec_deploy.jobs.processes import LocalProcesses
from qvec_deploy.runtimes.engine_files import KERNELS_FILE, MODEL_FILE, WEIGHTS_FILE
from qvec_deploy.runtimes.engine_options import Batches, EngineOptions
from qvec_deploy.runtimes.registry import find_lowering
from qvec_deploy.runtimes.session import Advance
from qvec_deploy.runtimes.tensorrt.plugin_library import plugin_path
from qvec_deploy.runtimes.tensorrt.sidecar import (
    check_sources,
    delta_path,
    engine_path,
    find_engines,
    read_sidecar,
    sidecar_path,
    stored_path,
    write_sidecar,
)
from qvec_deploy.runtimes.tensorrt.stored_engine import read_engine, store_engine
from qvec_deploy.runtimes.tensorrt.tensorrt_builder import build_engine, check_stored_bytes, keep_timings, sidecar_of
from qvec_deploy.runtimes.tensorrt.tensorrt_library import RTX, Library, Machine, load_tensorrt

if TYPE_CHECKING:
    import onnx

    from qvec_deploy.packed import PackedFile
    from qvec_deploy.runtimes.kernels.kernel_file import CompiledKernels
    from qvec_deploy.runtimes.tensorrt.tensorrt_graph import TensorrtGraph

JOB = f"{__name__}:build_job"
BUILD_LIMIT_S = 3600
"""Seconds after which a build in a process of its own is taken to hang; a ViT-B takes one minute."""


def build_files(
    trt: Any,
    here: Machine,
    library: Library,
    directory: Path,
    lowering: str,
    batches: Batches,
    options: EngineOptions,
    advance: Advance,
    cache: Path | None = None,
) -> None:
    """Build an engine and leave it with its sidecar in `directory`.

    Args:
        here: What it is tied to.
        cache: File of measured tactics, read and written; None where nothing is measured.
    """
    stored, weights, hashes = read_sources(directory)
    _, *sizes = (length.dim_value for length in stored.graph.input[0].type.tensor_type.shape.dim)
    shape = sizes[0], sizes[1], sizes[2]
    graph = lower_sources(directory, stored, weights, library.runtime, lowering, batches)
    kernels = _kernels(directory, library) if graph.plugin_layers and options.plugin_library is None else None
    built = build_engine(trt, graph, batches, shape, options, timing_cache=cache, advance=advance, kernels=kernels)
    check_stored_bytes(built, graph, lowering)
    if built.plugin and not built.plugin_carried:
        write_bytes(plugin_path(directory, lowering), built.plugin)
    launched = sha256_file(directory / KERNELS_FILE) if graph.plugin_layers and library.runs_python else ""
    path = engine_path(directory, lowering, batches)
    sidecar = sidecar_of(built, graph, here, lowering, batches, shape, options, hashes=hashes)
    try:
        whole = store_engine(path, built.plan, graph.model if library.stores_deltas else None)
        write_sidecar(path, replace(sidecar, stored_whole=whole, kernels_sha256=launched))
    except StorageError:
        _remove(path)
        raise
    if cache is not None:
        keep_timings(cache, built.timings)


def build_apart(directory: Path, lowering: str, batches: Batches, options: EngineOptions, advance: Advance) -> None:
    """As `build_files`, in a process of its own and without a GPU: a crash of the library costs an error.

    Raises:
        IncompatibleError: The build failed, crashed or took too long; the library's log is kept for a day then.
        IntegrityError: What it is built from is damaged.
        StorageError: What it is built from is missing, or the engine cannot be written.
    """
    arguments = {
        "directory": str(directory),
        "lowering": lowering,
        "batches": asdict(batches),
        "options": asdict(options),
    }
    job = Job("engine", JOB, arguments)
    with (
        scratch_folder("engine") as logs,
        _library_named(lowering) as environment,
        LocalProcesses(1, logs=logs, on_event=lambda _, event: advance(*event), environment=environment) as processes,
    ):
        processes.submit(job)
        (outcome,) = processes.outcomes()
        if outcome.failure is not None:
            raise _failed(outcome.failure, lowering, batches, keep_log(logs / f"{job.name}.log", job.name))


@contextlib.contextmanager
def _library_named(lowering: str) -> Iterator[dict[str, str]]:
    """Variables of a process whose parser finds our plugin, where the lowering has one."""
    if not find_lowering(RTX.runtime, lowering).carries_kernels:
        yield {}
        return
    from qvec_deploy.runtimes.tensorrt.python_plugin import library_folder

    before = os.environ.get("LD_LIBRARY_PATH")
    with library_folder() as folder:
        yield {"LD_LIBRARY_PATH": os.pathsep.join([str(folder), *([before] if before else [])])}


def build_job(send: SendEvent, directory: str, lowering: str, batches: dict[str, int], options: dict[str, Any]) -> None:
    """The work of the process; the alarm ends it where the library hangs."""
    signal.alarm(BUILD_LIMIT_S)
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    chosen, trt = EngineOptions(**options), load_tensorrt(RTX)
    gpus = f"GPUs of compute capability {', '.join(map(str, chosen.compute_capabilities))}"
    here = Machine(str(trt.__version__), gpus, 0, "0.0")
    sizes = Batches(**batches)
    build_files(trt, here, RTX, Path(directory), lowering, sizes, chosen, lambda done, total: send([done, total]))


def load_engine(engine: Path, runtime: str) -> bytes:
    """The bytes of an engine, which are those that were built from the files beside it.

    Args:
        engine: Its name, as `engine_path` gives it.
        runtime: Name of its row.

    Raises:
        IncompatibleError: It was built from other files, or its graph is made otherwise by now.
        IntegrityError: It is damaged or was altered.
    """
    directory, sidecar = engine.parent, read_sidecar(engine)
    check_sources(engine, sidecar, source_paths(directory))

    def graph() -> onnx.ModelProto:
        stored, weights, _ = read_sources(directory)
        return lower_sources(directory, stored, weights, runtime, sidecar.lowering, sidecar.batches).model

    return read_engine(engine, sidecar, graph)


def remove_engines(directory: Path, lowering: str) -> None:
    """Remove a lowering's engines, their sidecars and their plugin library."""
    with storage_errors(directory):
        plugin_path(directory, lowering).unlink(missing_ok=True)
    for engine in find_engines(directory, lowering):
        with storage_errors(engine):
            _remove(engine)


def _remove(engine: Path) -> None:
    for path in (engine, delta_path(engine), sidecar_path(engine)):
        path.unlink(missing_ok=True)


def engine_files(directory: Path, lowering: str, built: Iterable[Batches]) -> list[str]:
    """Names of the files of engines, and of the plugin library beside them."""
    paths = [engine_path(directory, lowering, batches) for batches in built]
    plugin = plugin_path(directory, lowering)
    own = [name for path in paths for name in (stored_path(path).name, sidecar_path(path).name)]
    return [*own, plugin.name] if plugin.is_file() else own


def source_paths(directory: Path) -> dict[str, Path]:
    """What engines are built from: `model` and `weights`."""
    return {"model": directory / MODEL_FILE, "weights": directory / WEIGHTS_FILE}


def read_sources(directory: Path) -> tuple[onnx.ModelProto, PackedFile, dict[str, str]]:
    """Model, packed weights, and the SHA-256 of each, `model` and `weights`."""
    from qvec_deploy.packed import PackedFile
    from qvec_deploy.runtimes.graph.stored import load_stored

    paths = {what: require_file(path, what=what) for what, path in source_paths(directory).items()}
    hashes = {what: sha256_file(path) for what, path in paths.items()}
    return load_stored(directory), PackedFile.open(paths["weights"]), hashes


def lower_sources(
    directory: Path,
    stored: onnx.ModelProto,
    weights: PackedFile,
    runtime: str,
    lowering: str,
    batches: Batches,
) -> TensorrtGraph:
    """The graph that an engine is built from: the same bytes whenever it is made of the same files."""
    from qvec_deploy.runtimes.graph.activations import read_amax
    from qvec_deploy.runtimes.tensorrt.tensorrt_graph import tensorrt_graph

    amax = read_amax(directory) if find_lowering(runtime, lowering).calibrates_activations else None
    size = batches.largest if batches.static else None
    return tensorrt_graph(stored, weights, lowering, runtime=runtime, batch_size=size, amax=amax)


def _kernels(directory: Path, library: Library) -> CompiledKernels | None:
    """Those of the bundle; one of before has none, and Triton has to compile them where the engine takes them in."""
    from qvec_deploy.runtimes.kernels.ahead import require_triton
    from qvec_deploy.runtimes.kernels.kernel_file import read_kernels

    kernels = read_kernels(directory)
    if kernels is None and library.runs_python:
        raise IncompatibleError(
            f"{directory} has no compiled kernels for its engines to launch", hint="build the bundle where Triton is"
        )
    if kernels is None:
        require_triton()
    return kernels


def _failed(failure: JobFailure, lowering: str, batches: Batches, log: Path) -> QvecError:
    what = f"building `{lowering}` at batch {batches} with {RTX.title} failed"
    hint = f"{failure.hint}; the library's log is {log}"
    if "SIGALRM" in failure.message:
        return IncompatibleError(f"{what}: it took more than {BUILD_LIMIT_S} seconds", hint=f"the log is {log}")
    for kind in (IncompatibleError, IntegrityError, StorageError):
        if failure.kind == kind.__name__:
            return kind(failure.message, hint=hint)
    return IncompatibleError(f"{what}: {failure.message}", hint=hint)

"""TensorRT on NVIDIA GPUs: engines are built where they run, kept beside the weights, and checked before they load."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvec_deploy.errors import IncompatibleError, IntegrityError
from qvec_deploy.io.files import require_file, sha256_file, storage_errors, write_bytes
from qvec_deploy.runtimes.cuda_driver import OutOfDeviceMemory
from qvec_deploy.runtimes.engine_options import Batches, EngineOptions
from qvec_deploy.runtimes.session import Advance, Stage
from qvec_deploy.runtimes.tensorrt import TENSORRT
from qvec_deploy.runtimes.tensorrt.sidecar import (
    REBUILD,
    check_sidecar,
    engine_path,
    find_engines,
    read_sidecar,
    sidecar_path,
    write_sidecar,
)
from qvec_deploy.runtimes.tensorrt.tensorrt_builder import (
    build_engine,
    check_stored_bytes,
    keep_timings,
    sidecar_of,
    timing_cache_path,
)
from qvec_deploy.runtimes.tensorrt.tensorrt_library import Machine, machine, require
from qvec_deploy.runtimes.tensorrt.tensorrt_session import TensorrtSession, load_engines

if TYPE_CHECKING:
    import onnx

    from qvec_deploy.packed import PackedFile
    from qvec_deploy.runtimes.tensorrt.tensorrt_graph import TensorrtGraph


_TOLD = ("weights_bytes", "given_bytes", "allowed_bytes", "packed_bytes", "plugin_layers", "device_bytes", "build_s")


class TensorRT:
    """The `tensorrt` runtime."""

    def missing(self, lowering: str | None = None) -> str | None:
        """What this machine lacks to build and run engines."""
        try:
            require(lowering, building=True)
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
        """Build a lowering's engines, and a sidecar for each, from model.onnx and the packed weights in `directory`."""
        trt, cuda = require(lowering, building=True)
        here = machine(trt, cuda.gpu)
        cache = timing_cache_path(caches, here)
        stored, weights, hashes = _sources(directory)
        _, *sizes = (length.dim_value for length in stored.graph.input[0].type.tensor_type.shape.dim)
        shape = sizes[0], sizes[1], sizes[2]
        for engine in find_engines(directory, lowering):
            with storage_errors(engine):
                engine.unlink()
                sidecar_path(engine).unlink(missing_ok=True)
        done: list[Batches] = []
        for batches in options.engines():
            graph = _lower(directory, stored, weights, lowering, batches)
            try:
                with (stage or _unseen)(f"{lowering}, batch {batches}") as advance:
                    built = build_engine(trt, graph, batches, shape, options, timing_cache=cache, advance=advance)
            except OutOfDeviceMemory as error:
                raise _too_large(lowering, batches, here, done) from error
            check_stored_bytes(built, graph, lowering)
            path = engine_path(directory, lowering, batches)
            sidecar = sidecar_of(built, graph, here, lowering, batches, shape, options, hashes=hashes)
            write_bytes(path, built.plan)
            write_sidecar(path, sidecar)
            keep_timings(cache, built.timings)
            done.append(batches)
        paths = [engine_path(directory, lowering, batches) for batches in done]
        return [name for path in paths for name in (path.name, sidecar_path(path).name)]

    @contextlib.contextmanager
    def open(self, directory: Path, lowering: str, threads: int) -> Iterator[TensorrtSession]:
        """Load the engines that `compile` left; they must be built from the model and weights beside them."""
        trt, cuda = require(lowering, building=False)
        engines = find_engines(directory, lowering)
        if not engines:
            raise IncompatibleError(f"{directory} has no TensorRT engine for lowering `{lowering}`", hint=REBUILD)
        here, sources = machine(trt, cuda.gpu), _paths(directory)
        plans = []
        for engine in engines:
            sidecar = read_sidecar(engine)
            if engine != engine_path(directory, sidecar.lowering, sidecar.batches):
                raise IntegrityError(f"{engine} is not what its sidecar says", hint=REBUILD)
            plans.append((sidecar, check_sidecar(engine, sidecar, here, sources)))
        with load_engines(trt, cuda, plans) as session:
            yield session

    def describe(self, directory: Path, lowering: str) -> list[dict[str, Any]]:
        """What the engines of a lowering are, for people and records; nothing is opened but their sidecars."""
        return [
            {
                "file": engine.name,
                "batches": str(sidecar.batches),
                "machine": asdict(sidecar.machine),
                "plan_bytes": engine.stat().st_size,
                **{name: getattr(sidecar, name) for name in _TOLD},
            }
            for engine in find_engines(directory, lowering)
            for sidecar in [read_sidecar(engine)]
        ]


def _paths(directory: Path) -> dict[str, Path]:
    from qvec_deploy.runtimes.engine_files import MODEL_FILE, WEIGHTS_FILE

    return {"model": directory / MODEL_FILE, "weights": directory / WEIGHTS_FILE}


def _sources(directory: Path) -> tuple[onnx.ModelProto, PackedFile, dict[str, str]]:
    import onnx
    from google.protobuf.message import DecodeError

    from qvec_deploy.packed import PackedFile

    paths = {what: require_file(path, what=what) for what, path in _paths(directory).items()}
    try:
        stored = onnx.load(paths["model"], load_external_data=False)
    except DecodeError as error:
        raise IntegrityError(f"{paths['model']} is not an ONNX model", hint="build the bundle again") from error
    return stored, PackedFile.open(paths["weights"]), {what: sha256_file(path) for what, path in paths.items()}


def _lower(
    directory: Path, stored: onnx.ModelProto, weights: PackedFile, lowering: str, batches: Batches
) -> TensorrtGraph:
    from qvec_deploy.runtimes.graph.activations import read_amax
    from qvec_deploy.runtimes.tensorrt.tensorrt_graph import tensorrt_graph

    calibrated = {row.name for row in TENSORRT.lowerings if row.calibrates_activations}
    amax = read_amax(directory) if lowering in calibrated else None
    size = batches.largest if batches.static else None
    return tensorrt_graph(stored, weights, lowering, batch_size=size, amax=amax)


def _too_large(lowering: str, batches: Batches, here: Machine, done: list[Batches]) -> OutOfDeviceMemory:
    fits = ", ".join(map(str, done))
    return OutOfDeviceMemory(
        f"building `{lowering}` at batch {batches} takes more memory than {here.gpu} has free",
        hint=f"batch {fits} fits: leave out the larger ones" if fits else "free GPU memory, or use a smaller batch",
    )


@contextlib.contextmanager
def _unseen(_: str) -> Iterator[Advance]:
    yield lambda done, total: None

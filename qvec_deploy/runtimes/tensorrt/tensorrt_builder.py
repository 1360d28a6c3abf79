"""A lowered graph to a TensorRT engine: parse, count the plugins, build, weigh. Never opens what it built to run it."""

from __future__ import annotations

import contextlib
import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvec_deploy.errors import IncompatibleError, StorageError
from qvec_deploy.io.files import sha256_bytes, storage_errors, write_bytes
from qvec_deploy.io.scratch import scratch_folder
from qvec_deploy.runtimes.cuda_driver import OutOfDeviceMemory
from qvec_deploy.runtimes.engine_options import Batches, EngineOptions
from qvec_deploy.runtimes.graph import INPUT
from qvec_deploy.runtimes.session import Advance, LinearProduct
from qvec_deploy.runtimes.tensorrt.builder_log import (
    check_products,
    read_layers,
    read_weights_bytes,
)
from qvec_deploy.runtimes.tensorrt.plugin_library import load_plugin
from qvec_deploy.runtimes.tensorrt.sidecar import Sidecar
from qvec_deploy.runtimes.tensorrt.tensorrt_library import Machine, library_of, make_logger, starting

if TYPE_CHECKING:
    from qvec_deploy.runtimes.kernels.kernel_file import CompiledKernels
    from qvec_deploy.runtimes.tensorrt.tensorrt_graph import TensorrtGraph

_INLINE_BYTES = 1 << 30  # larger graphs keep their constants outside: protobuf ends at 2 GB
_MIB = 1 << 20


@dataclass(frozen=True)
class Built:
    """An engine, not yet on disk.

    Attributes:
        timings: The tactics measured, with those known before; empty where they are not kept.
        device_bytes: Memory that running it takes beyond its weights; 0 where that is known only on a GPU.
        products: What became of the quantized Linears, where the builder's log is read.
        plugin: The plugin library that it was built with; empty where there was none.
    """

    plan: bytes
    timings: bytes
    weights_bytes: int | None
    device_bytes: int
    seconds: float
    products: tuple[LinearProduct, ...] = ()
    plugin: bytes = b""

    @property
    def plugin_carried(self) -> bool:
        """Whether the engine carries that library."""
        return bool(self.plugin) and self.plugin in self.plan


def build_engine(
    trt: Any,
    graph: TensorrtGraph,
    batches: Batches,
    input_shape: tuple[int, int, int],
    options: EngineOptions,
    *,
    timing_cache: Path | None = None,
    advance: Advance | None = None,
    flags: Sequence[str] = (),
    kernels: CompiledKernels | None = None,
) -> Built:
    """Build one engine.

    Args:
        kernels: Those of our plugin; None has Triton compile them.
        timing_cache: Measured tactics of earlier builds; read if it is there, and not written here.
        flags: Names of builder flags to set beyond what `options` says, for experiments.

    Raises:
        IncompatibleError: TensorRT refuses, takes other layers than it should, or stores more than it was given.
    """
    start, logger = time.monotonic(), make_logger(trt, verbose=bool(options.compute_capabilities))
    library = options.plugin_library if graph.plugin_layers else None
    with _plugins(trt, graph.plugin_layers, kernels, library) as plugin:
        with starting(logger):
            builder = trt.Builder(logger)
        kinds = trt.NetworkDefinitionCreationFlag
        asked = 1 << int(kinds.STRONGLY_TYPED)  # which releases from 11 on are anyway
        if graph.plugin_layers and library is None and not library_of(trt).runs_python:
            asked |= 1 << int(kinds.PREFER_AOT_PYTHON_PLUGINS)
        network = builder.create_network(asked)
        _parse(trt, network, logger, graph)
        config = _configure(trt, builder, batches, input_shape, options)
        if library is not None and hasattr(config, "plugins_to_serialize"):
            config.plugins_to_serialize = [library]
        for name in flags:
            config.set_flag(getattr(trt.BuilderFlag, name))
        if timing_cache is not None:
            _use_timing_cache(config, timing_cache)
        monitor = config.progress_monitor = _make_monitor(trt, advance)  # kept alive: TensorRT only borrows it
        plan = builder.build_serialized_network(network, config)
        if monitor.cancelled:
            raise KeyboardInterrupt
    if plan is None:
        if logger.out_of_memory():
            raise OutOfDeviceMemory("TensorRT ran out of GPU memory", hint="free some, or use smaller batch sizes")
        raise IncompatibleError(f"TensorRT cannot build the engine: {logger.last_error()}", hint=_REPORT)
    timings = b"" if timing_cache is None else bytes(memoryview(config.get_timing_cache().serialize()))
    data = bytes(memoryview(plan))
    if options.compute_capabilities:  # no GPU is asked: what is known is what the builder says
        log = "\n".join(logger.lines)
        products = check_products(read_layers(log), graph.products)
        return Built(data, timings, read_weights_bytes(log), 0, time.monotonic() - start, products)
    weights_bytes, device_bytes = _weigh(trt, logger, data, options)
    return Built(data, timings, weights_bytes, device_bytes, time.monotonic() - start, plugin=plugin)


def check_stored_bytes(built: Built, graph: TensorrtGraph, lowering: str) -> None:
    """Refuse an engine in which packed weights did not stay packed."""
    if graph.allowed_bytes is None or built.weights_bytes is None:
        return
    if built.weights_bytes > graph.allowed_bytes:
        raise IncompatibleError(
            f"TensorRT stores {built.weights_bytes:,} bytes of weights where `{lowering}` gave it "
            f"{graph.weight_bytes:,}, and packed weights take {graph.allowed_bytes:,} at most: it has unpacked them",
            hint="this engine is of no use; report it with your TensorRT version, and try another lowering",
        )


def keep_timings(path: Path, timings: bytes) -> None:
    """Write a timing cache. One that cannot be written costs time in the next build and no engine: a warning."""
    try:
        write_bytes(path, timings)
    except StorageError as error:
        warnings.warn(f"the next build will measure again, for {error.message}", stacklevel=2)


def timing_cache_path(folder: Path, here: Machine) -> Path:
    """Where in a folder the measured tactics of this TensorRT on this GPU are kept, for all bundles beside it."""
    gpu = re.sub(r"[^A-Za-z0-9]+", "-", here.gpu).strip("-").lower()
    return folder / f"tensorrt-{here.tensorrt}-{gpu}-sm{here.sm}.timing"


_REPORT = "if the model is a plain ViT, report it with your TensorRT version"


@contextlib.contextmanager
def _plugins(trt: Any, layers: int, kernels: CompiledKernels | None, library: str | None) -> Iterator[bytes]:
    """Our plugin registered, and its errors raised, where the graph has nodes for it.

    Yields:
        The bytes of the library that it comes in; empty where it comes from Python.
    """
    if not layers or library is not None:
        yield b"" if library is None else load_plugin(trt, Path(library))
        return
    from qvec_deploy.runtimes.kernels.plugins import plugin_errors, register_plugins

    if library_of(trt).runs_python:
        from qvec_deploy.runtimes.tensorrt.python_plugin import register_python_plugin

        register_python_plugin(trt)
    else:
        register_plugins()
    with plugin_errors(kernels):
        yield b""


def _parse(trt: Any, network: Any, logger: Any, graph: TensorrtGraph) -> None:
    parser = trt.OnnxParser(network, logger)
    with scratch_folder("tensorrt") as scratch:
        path = scratch / "graph.onnx"
        save_graph(graph, path)
        parsed = parser.parse_from_file(str(path))
    if not parsed:
        reason = _first_error(parser) or logger.last_error()
        raise IncompatibleError(f"TensorRT {trt.__version__} cannot read the graph: {reason}", hint=_REPORT)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    plugins = sum(layer.type == trt.LayerType.PLUGIN_V3 for layer in layers)
    if plugins != graph.plugin_layers:
        raise IncompatibleError(
            f"TensorRT took {plugins} of {graph.plugin_layers} Linears for our plugin",
            hint="the engine would not keep its weights packed; report it with your TensorRT version",
        )


def _first_error(parser: Any) -> str | None:
    """What a parser says first, and of which node."""
    if not parser.num_errors or not (said := parser.get_error(0).desc().strip()):
        return None
    error = parser.get_error(0)
    where = f"{error.node_operator()} `{error.node_name()}`: " if error.node_operator() else ""
    return f"{where}{said.splitlines()[0]}"


def save_graph(graph: TensorrtGraph, path: Path) -> None:
    """Write a graph where TensorRT, or trtexec, can read it."""
    import onnx

    with storage_errors(path):
        onnx.save_model(graph.model, path, save_as_external_data=graph.weight_bytes > _INLINE_BYTES)


def _configure(
    trt: Any, builder: Any, batches: Batches, input_shape: tuple[int, int, int], options: EngineOptions
) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib * _MIB)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.compute_capabilities:
        _set_capabilities(trt, config, options.compute_capabilities)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware == "ampere_plus":
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    elif options.hardware == "same_compute_capability":
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
    if not batches.static:
        profile = builder.create_optimization_profile()
        sizes = (batches.smallest, batches.best, batches.largest)
        profile.set_shape(INPUT, *((size, *input_shape) for size in sizes))
        config.add_optimization_profile(profile)
    return config


def _set_capabilities(trt: Any, config: Any, capabilities: Sequence[float]) -> None:
    """Name the GPUs: without a list, engines are built that some of those GPUs cannot run."""
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        kind = getattr(trt.ComputeCapability, f"SM{round(10 * capability)}", None)
        if kind is None or not config.set_compute_capability(kind, index):
            raise IncompatibleError(
                f"TensorRT {trt.__version__} does not build for compute capability {capability}",
                hint="leave it out of target.engine.compute_capabilities",
            )


def _use_timing_cache(config: Any, path: Path) -> None:
    """Use the cache of a file; an empty one where there is none, or one that TensorRT does not take."""
    with storage_errors(path):
        known = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(known) or config.create_timing_cache(b"")
    if not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _make_monitor(trt: Any, advance: Advance | None) -> Any:
    """Shows the outermost phase. TensorRT may call it from threads of its own, and takes no exception from it."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.cancelled = False
            self.totals: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self.totals[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                if advance is not None and phase_name in self.totals:
                    advance(min(step + 1, self.totals[phase_name]), self.totals[phase_name])
            except KeyboardInterrupt:
                self.cancelled = True
            return not self.cancelled

        def phase_finish(self, phase_name: str) -> None:
            self.totals.pop(phase_name, None)

    return Monitor()


def _weigh(trt: Any, logger: Any, plan: bytes, options: EngineOptions) -> tuple[int | None, int]:
    """Bytes of weights that an engine stores, where this TensorRT can tell, and of memory that running it takes."""
    with starting(logger):
        runtime = trt.Runtime(logger)
    # Engines for several releases carry the runtime they need, and those with a plugin library that.
    runtime.engine_host_code_allowed = options.version_compatible or options.plugin_library is not None
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        if logger.out_of_memory():
            raise OutOfDeviceMemory("the engine does not fit the GPU", hint="free some memory, or use smaller batches")
        raise IncompatibleError(f"TensorRT cannot open what it built: {logger.last_error()}", hint=_REPORT)
    stored = None
    if hasattr(trt, "EngineStat"):  # older releases do not say
        stored = int(engine.get_engine_stat(trt.EngineStat.TOTAL_WEIGHTS_SIZE))
    return stored, int(engine.device_memory_size_v2)


def sidecar_of(
    built: Built,
    graph: TensorrtGraph,
    machine: Machine,
    lowering: str,
    batches: Batches,
    shape: tuple[int, int, int],
    options: EngineOptions,
    *,
    hashes: Mapping[str, str],
) -> Sidecar:
    """What is to be known of an engine before TensorRT sees it.

    Args:
        hashes: SHA-256 of the sources, `model` and `weights`; empty text where there are no files.
    """
    return Sidecar(
        machine=machine,
        lowering=lowering,
        batches=batches,
        input_shape=shape,
        hardware=options.hardware,
        version_compatible=options.version_compatible,
        cuda_graph=options.cuda_graph,
        plugin_layers=graph.plugin_layers,
        packed_bytes=graph.packed_bytes,
        given_bytes=graph.weight_bytes,
        allowed_bytes=graph.allowed_bytes,
        weights_bytes=built.weights_bytes,
        device_bytes=built.device_bytes,
        compute_capabilities=options.compute_capabilities,
        products=built.products,
        plan_bytes=len(built.plan),
        plugin_sha256=sha256_bytes(built.plugin) if built.plugin else "",
        plugin_carried=built.plugin_carried,
        sha256=sha256_bytes(built.plan),
        model_sha256=hashes["model"],
        weights_sha256=hashes["weights"],
        build_s=round(built.seconds, 3),
    )

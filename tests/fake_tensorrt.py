"""A TensorRT and a CUDA driver that a test owns: a runtime whose engines ONNX Runtime computes, faults on request.

What they show is our logic where engines are opened and run. Builder and parser only hand a graph over to that runtime:
what they are told, and what they say, is tested on NVIDIA's real ones (tests/contract/test_tensorrt_builder.py). That
the names exist in the bindings of full TensorRT is for the contract tests to show; what its libraries do with them,
only a machine that has them.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import importlib.machinery
import pickle
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import onnx
import onnxruntime
import pytest
from plugin_function import device_function

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.runtimes.cuda_driver import Gpu, OutOfDeviceMemory
from qvec_deploy.runtimes.graph import DOMAIN
from qvec_deploy.runtimes.tensorrt.emulation import emulated_model
from qvec_deploy.runtimes.tensorrt.tensorrt_linear import DYNAMIC_QUANTIZE

GPU = Gpu("NVIDIA Test", 89, "13.0")


@dataclass
class Faults:
    """What goes wrong.

    `out_of_memory_at`: the batch size from which on loading fails. `unpacks`: factor on the stored bytes that an engine
    reports; `stores`: what it reports instead. `carries_plugins`: whether engines keep the plugin libraries given.
    """

    out_of_memory_at: int | None = None
    unpacks: float = 1.0
    stores: int | None = None
    refuses_plan: bool = False
    refuses_capture: bool = False
    refuses_run: bool = False
    refuses_cache: bool = False
    carries_plugins: bool = True


@dataclass
class FakeCuda:
    """Device memory as a dictionary, streams as queues that are always empty, a clock that ticks at every event."""

    gpu: Gpu = GPU
    memory: dict[int, np.ndarray] = field(default_factory=dict)
    pinned_arrays: int = 0
    streams: int = 0
    captured: list[Any] | None = None
    launches: int = 0
    events: int = 0
    recorded: int = 0
    times: dict[int, int] = field(default_factory=dict)
    current: bool = False
    refuses_capture: bool = False

    def enter(self) -> None:
        self.current = True

    def free_bytes(self) -> int:
        return (1 << 30) - sum(array.nbytes for array in self.memory.values())

    def allocate(self, size: int) -> int:
        address = 4096 * (1 + len(self.memory) + self.streams)
        while address in self.memory:
            address += 4096
        self.memory[address] = np.zeros(size, np.uint8)
        return address

    def free(self, address: int) -> None:
        del self.memory[address]

    def pinned(self, shape: tuple[int, ...]) -> np.ndarray:
        self.pinned_arrays += 1
        return np.full(shape, np.nan, np.float32)

    def free_pinned(self, array: np.ndarray) -> None:
        self.pinned_arrays -= 1

    def upload(self, address: int, array: np.ndarray, stream: int) -> None:
        assert self.current and stream
        self.memory[address][: array.nbytes] = np.frombuffer(array.tobytes(), np.uint8)

    def download(self, array: np.ndarray, address: int, stream: int) -> None:
        array[...] = self.memory[address][: array.nbytes].view(np.float32).reshape(array.shape)

    def new_stream(self) -> int:
        self.streams += 1
        return self.streams

    def end_stream(self, stream: int) -> None:
        self.streams -= 1

    def new_event(self) -> int:
        self.events += 1
        return self.events

    def record(self, event: int, stream: int) -> None:
        self.recorded += 1
        self.times[event] = self.recorded

    def elapsed_ms(self, start: int, end: int) -> float:
        return float(self.times[end] - self.times[start])

    def end_event(self, event: int) -> None:
        del self.times[event]

    def wait(self, stream: int) -> None:
        assert self.captured is None, "synchronizing a stream that is being captured"

    @contextlib.contextmanager
    def capture(self, stream: int) -> Iterator[FakeGraph]:
        self.captured = []
        graph = FakeGraph(self)
        try:
            yield graph
            if self.refuses_capture:
                raise IncompatibleError("the CUDA driver refuses cuStreamEndCapture", hint="none")
            graph.work = self.captured
        finally:
            self.captured = None


class FakeGraph:
    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda, self.work = cuda, []

    def launch(self, stream: int) -> None:
        self.cuda.launches += 1
        for work in self.work:
            work()

    def destroy(self) -> None:
        self.work = []


class _Severity(enum.IntEnum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class _Base:
    def __init__(self) -> None:
        pass


class _Logger(_Base):
    Severity = _Severity


def fake_tensorrt(cuda: FakeCuda, faults: Faults, version: str = "10.16.1.11") -> Any:
    """A module `tensorrt`. Its `seen` records how it was used."""
    trt: Any = types.ModuleType("tensorrt")
    trt.__version__, trt.__spec__ = version, importlib.machinery.ModuleSpec("tensorrt", None)
    trt.seen = []
    trt.ILogger, trt.IProgressMonitor = _Logger, type("IProgressMonitor", (_Base,), {})
    names = {
        "NetworkDefinitionCreationFlag": ["EXPLICIT_BATCH", "STRONGLY_TYPED", "PREFER_AOT_PYTHON_PLUGINS"],
        "LayerType": ["CONSTANT", "PLUGIN_V3"],
        "MemoryPoolType": ["WORKSPACE"],
        "BuilderFlag": ["REFIT", "STRIP_PLAN", "WEIGHT_STREAMING", "VERSION_COMPATIBLE"],
        "HardwareCompatibilityLevel": ["NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"],
        "ProfilingVerbosity": ["LAYER_NAMES_ONLY", "DETAILED"],
        "EngineStat": ["TOTAL_WEIGHTS_SIZE", "STRIPPED_WEIGHTS_SIZE"],
        "LayerInformationFormat": ["JSON"],
        "CudaGraphStrategy": ["DISABLED", "WHOLE_GRAPH_CAPTURE"],
    }
    for name, members in names.items():
        setattr(trt, name, enum.IntEnum(name, {member: index for index, member in enumerate(members)}))
    trt.Builder = lambda logger: _Builder(trt, faults.carries_plugins)
    trt.OnnxParser = lambda network, logger: _Parser(trt, network)
    trt.Runtime = lambda logger: _Runtime(trt, logger, cuda, faults)
    registry = _Registry(trt)
    trt.get_plugin_registry = lambda: registry
    return trt


class _Buffer(bytes):
    @property
    def nbytes(self) -> int:
        return len(self)


class _Registry:
    """Takes every library whose bytes name our plugin."""

    def __init__(self, trt: Any) -> None:
        self.trt, self.loaded = trt, []

    def load_library(self, path: str) -> str | None:
        self.trt.seen.append(f"loaded {Path(path).name}")
        if b"QvecLinear" not in Path(path).read_bytes():
            return None
        self.loaded.append(path)
        return path

    def get_creator(self, name: str, version: str, namespace: str) -> str | None:
        return name if self.loaded and (version, namespace) == ("1", "qvec") else None


class _Builder:
    """Takes any configuration; a serialized network is its graph."""

    def __init__(self, trt: Any, carries: bool) -> None:
        self.trt, self.carries = trt, carries

    def create_network(self, flags: int) -> Any:
        return types.SimpleNamespace(flags=flags, model=None, num_layers=0)

    def create_optimization_profile(self) -> Any:
        return MagicMock()

    def create_builder_config(self) -> Any:
        config = MagicMock()
        config.get_timing_cache.return_value.serialize.return_value = b"timings"
        return config

    def build_serialized_network(self, network: Any, config: Any) -> _Buffer:
        self.trt.seen.append((network, config))
        given = config.plugins_to_serialize
        carried = [Path(path).read_bytes() for path in given] if isinstance(given, list) and self.carries else []
        return _Buffer(pickle.dumps(network.model.SerializeToString()) + b"".join(carried))


class _Parser:
    def __init__(self, trt: Any, network: Any) -> None:
        self.trt, self.network = trt, network

    num_errors = 0

    def parse_from_file(self, path: str) -> bool:
        model = self.network.model = onnx.load(path)
        kinds = self.trt.LayerType
        layers = [kinds.PLUGIN_V3 if node.domain == DOMAIN else kinds.CONSTANT for node in model.graph.node]
        self.network.num_layers = len(layers)
        self.network.get_layer = lambda index: types.SimpleNamespace(type=layers[index])
        return True


class _Runtime:
    def __init__(self, trt: Any, logger: Any, cuda: FakeCuda, faults: Faults) -> None:
        self.trt, self.logger, self.cuda, self.faults = trt, logger, cuda, faults
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, plan: bytes) -> _Engine | None:
        self.trt.seen.append("deserialized")
        self.trt.host_code = self.engine_host_code_allowed
        if self.faults.refuses_plan:
            self.logger.log(_Severity.ERROR, "Serialization assertion failed")
            return None
        return _Engine(self, onnx.load_from_string(pickle.loads(plan)))


class _Engine:
    num_io_tensors = 2
    device_memory_size_v2 = 1 << 20

    def __init__(self, runtime: _Runtime, model: onnx.ModelProto) -> None:
        self.runtime, self.model = runtime, model

    def get_tensor_name(self, index: int) -> str:
        return (self.model.graph.input[0], self.model.graph.output[0])[index].name

    def get_tensor_shape(self, name: str) -> list[int]:
        (value,) = [v for v in (*self.model.graph.input, *self.model.graph.output) if v.name == name]
        return [dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim]

    def get_engine_stat(self, what: Any) -> int:
        faults = self.runtime.faults
        stored = sum(len(tensor.raw_data) for tensor in self.model.graph.initializer)
        return int(stored * faults.unpacks) if faults.stores is None else faults.stores

    def create_runtime_config(self) -> _RuntimeConfig:
        return _RuntimeConfig(self.runtime)

    def create_execution_context(self, *, runtime_config: _RuntimeConfig | None = None) -> _Context | None:
        if runtime_config is not None:
            self.runtime.trt.seen.append(runtime_config)
        faults = self.runtime.faults
        if faults.out_of_memory_at is not None and _batch(self.model) >= faults.out_of_memory_at:
            if len(self.runtime.cuda.memory) % 4:  # once by a log line, once by an exception of the driver
                raise OutOfDeviceMemory("the GPU is out of memory", hint="none")
            self.runtime.logger.log(_Severity.ERROR, "CUDA error: out of memory")
            return None
        return _Context(self, runtime_config)


class _RuntimeConfig:
    """TensorRT for RTX alone has it: kernels that were compiled for an engine, as `kernels of SHAPE`."""

    def __init__(self, runtime: _Runtime) -> None:
        self.runtime, self.kernels, self.used = runtime, b"", False
        self.cuda_graph_strategy = runtime.trt.CudaGraphStrategy.DISABLED

    def create_runtime_cache(self) -> _RuntimeConfig:
        if self.runtime.faults.refuses_cache:
            raise RuntimeError("no cache here\nmore")
        return self

    def set_runtime_cache(self, cache: _RuntimeConfig) -> bool:
        self.used = True
        return True

    def deserialize(self, data: bytes) -> bool:
        good = data.startswith(b"kernels")
        self.kernels = data if good else b""
        return good

    def serialize(self) -> _Buffer:
        return _Buffer(self.kernels)


class _Context:
    def __init__(self, engine: _Engine, config: _RuntimeConfig | None) -> None:
        self.engine, self.addresses, self.shape, self.config = engine, {}, None, config
        self.session = onnxruntime.InferenceSession(
            runnable(engine.model).SerializeToString(), _plain_options(), providers=["CPUExecutionProvider"]
        )

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        fixed = self.engine.get_tensor_shape(name)
        return all(length in (-1, wanted) for length, wanted in zip(fixed, shape, strict=True))

    def execute_async_v3(self, stream: int) -> bool:
        cuda = self.engine.runtime.cuda
        if self.engine.runtime.faults.refuses_run:
            return False
        if self.config is not None and self.config.used:
            self.config.kernels = b"kernels of %d" % self.shape[0]
        if cuda.captured is not None:
            cuda.captured.append(self._compute)
            return not self.engine.runtime.faults.refuses_capture
        self._compute()
        return True

    def _compute(self) -> None:
        memory = self.engine.runtime.cuda.memory
        size = 4 * int(np.prod(self.shape))
        images = memory[self.addresses["images"]][:size].view(np.float32).reshape(self.shape)
        logits = self.session.run(None, {"images": images})[0]
        memory[self.addresses["logits"]][: logits.nbytes] = np.frombuffer(logits.tobytes(), np.uint8)


def runnable(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph for TensorRT with function bodies in place of our plugin, for ONNX Runtime."""
    if any(node.op_type == DYNAMIC_QUANTIZE for node in model.graph.node):
        return emulated_model(model)
    new = onnx.ModelProto()
    new.CopyFrom(model)
    functions = {}
    for node in new.graph.node:
        if node.domain == DOMAIN:
            cfg = dict(part.split("=") for part in {a.name: a for a in node.attribute}["cfg"].s.decode().split(";"))
            function = device_function(cfg["layout"], int(cfg["bits"]))
            functions[function.overload] = function
            node.overload = function.overload
    new.ClearField("functions")
    new.functions.extend(functions.values())
    return new


def run_on_cpu(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    """Logits of a graph, by ONNX Runtime with its optimizer off: it would quantize activations of INT4 products."""
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), _plain_options(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"images": images})[0]


def _plain_options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return options


def _batch(model: onnx.ModelProto) -> int:
    return model.graph.input[0].type.tensor_type.shape.dim[0].dim_value


@dataclass
class Setup:
    """What a test drives: `trt` is sys.modules["tensorrt"]."""

    trt: Any
    cuda: FakeCuda
    faults: Faults


def install(monkeypatch: pytest.MonkeyPatch, version: str = "10.16.1.11", gpu: Gpu = GPU) -> Setup:
    """Put the fakes where the real ones would be."""
    from qvec_deploy.runtimes.tensorrt import tensorrt_library

    cuda, faults = FakeCuda(gpu), Faults()
    trt = fake_tensorrt(cuda, faults, version)
    plugins: Any = types.ModuleType("qvec_deploy.runtimes.kernels.plugins")
    plugins.registered, plugins.errors = 0, []

    def register_plugins() -> None:
        plugins.registered += 1

    @contextlib.contextmanager
    def plugin_errors(kernels: Any = None) -> Iterator[None]:
        plugins.kernels = kernels
        yield
        if plugins.errors:
            raise plugins.errors.pop()

    plugins.register_plugins, plugins.plugin_errors = register_plugins, plugin_errors
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setitem(sys.modules, "qvec_deploy.runtimes.kernels.plugins", plugins)
    monkeypatch.setattr(tensorrt_library, "Cuda", lambda: cuda)
    return Setup(trt, cuda, faults)


def write_sources(folder: Path, state: dict[str, np.ndarray], scheme: Any, width: int = 32) -> np.ndarray:
    """A pico model's files as a build leaves them, with kernels and calibrated activations; PyTorch's logits."""
    from pico import PICO_ARGS, PICO_CLASSES, PICO_MODEL

    from qvec_deploy.bench.parity import parity_images, reference_logits, write_reference
    from qvec_deploy.models import create, quantized_linears
    from qvec_deploy.packed import Entry, PackedFile, pack, write_packed
    from qvec_deploy.quantize.reference import quantize
    from qvec_deploy.runtimes.engine_files import MODEL_FILE, WEIGHTS_FILE
    from qvec_deploy.runtimes.graph.activations import calibrate_amax, write_amax
    from qvec_deploy.runtimes.graph.stored import attach_weights
    from qvec_deploy.runtimes.kernels.kernel_file import write_kernels

    args = PICO_ARGS | {"embed_dim": width}
    model = create(PICO_MODEL, PICO_CLASSES, args)
    linears = {f"{name}.weight" for name in quantized_linears(model, ("head",))}
    values = {name: quantize(value, scheme) if name in linears else value for name, value in state.items()}
    layout = {name: Entry(value.shape, scheme if name in linears else None) for name, value in state.items()}
    tensors = [(name, pack(value) if name in linears else value) for name, value in values.items()]
    write_packed(folder / WEIGHTS_FILE, layout, tensors)
    write_kernels(folder)
    weights = PackedFile.open(folder / WEIGHTS_FILE)
    onnx.save(attach_weights(_skeleton(width), weights, WEIGHTS_FILE), folder / MODEL_FILE)
    images = parity_images((3, 32, 32))
    write_amax(folder, calibrate_amax(_with_floats(model, weights), weights, [images]))
    logits = reference_logits(weights, PICO_MODEL, PICO_CLASSES, args, images)
    write_reference(folder, logits)
    return logits


@functools.cache
def _skeleton(width: int) -> onnx.ModelProto:
    from pico import PICO_ARGS, PICO_CLASSES, PICO_MODEL
    from shared import export_once

    from qvec_deploy.runtimes.graph.export import export_skeleton

    return export_once(
        export_skeleton, PICO_MODEL, PICO_CLASSES, PICO_ARGS | {"embed_dim": width}, ("head",), (3, 32, 32)
    )


def _with_floats(model: Any, weights: Any) -> Any:
    import torch

    floats = {name: weights.array(name).copy() for name, info in weights.tensors.items() if info.scheme is None}
    model.load_state_dict({name: torch.from_numpy(value) for name, value in floats.items()}, strict=False)
    return model

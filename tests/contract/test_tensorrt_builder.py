"""What NVIDIA's real builder and parser are told, what they say, and what becomes of that: TensorRT for RTX, no GPU.

Full TensorRT's builder has the same interface; that the names exist there too is for test_tensorrt_bindings.py.
"""

from __future__ import annotations

import contextlib
import gc
import io
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx
import pytest
from linear_graphs import image_shape, linear_graph
from onnx import TensorProto, helper

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.runtimes.cuda_driver import OutOfDeviceMemory
from qvec_deploy.runtimes.engine_options import Batches, EngineOptions
from qvec_deploy.runtimes.registry import find_lowering
from qvec_deploy.runtimes.tensorrt import TENSORRT, TENSORRT_RTX, tensorrt_builder
from qvec_deploy.runtimes.tensorrt.sidecar import Sidecar
from qvec_deploy.runtimes.tensorrt.tensorrt_builder import Built, build_engine
from qvec_deploy.runtimes.tensorrt.tensorrt_graph import TensorrtGraph
from qvec_deploy.runtimes.tensorrt.tensorrt_library import Machine, make_logger
from qvec_deploy.runtimes.tensorrt.tensorrt_session import load_engines

trt = pytest.importorskip("tensorrt_rtx_bindings", reason="the extra `rtx` is not installed")
OPTIONS = EngineOptions(compute_capabilities=(8.6, 8.9))
OPEN = Batches(1, 4, 8)
TYPED, AHEAD = int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED), 20
INT4 = find_lowering(TENSORRT_RTX.name, "int4")
PACKED = find_lowering(TENSORRT.name, "packed")


class Watched:
    """The real module; what its builder makes is kept to be looked at.

    It knows full TensorRT's flag for our plugin, which the real one of TensorRT for RTX does not have.
    """

    def __init__(self, **replaced: Any) -> None:
        self.__name__ = "tensorrt"
        self.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=TYPED, PREFER_AOT_PYTHON_PLUGINS=AHEAD)
        self.asked: list[int] = []
        self.networks: list[Any] = []
        self.configs: list[Any] = []
        self.profiles: list[Any] = []
        self.replaced = replaced

    def __getattr__(self, name: str) -> Any:
        return getattr(trt, name)

    def Builder(self, logger: Any) -> Any:
        return _Builder(self, trt.Builder(logger), logger)


class _Builder:
    def __init__(self, seen: Watched, real: Any, logger: Any) -> None:
        self.seen, self.real, self.logger = seen, real, logger

    def create_network(self, flags: int) -> Any:
        self.seen.asked.append(flags)
        self.seen.networks.append(self.real.create_network(flags & ~(1 << AHEAD)))
        return self.seen.networks[-1]

    def create_builder_config(self) -> Any:
        self.seen.configs.append(self.real.create_builder_config())
        return self.seen.configs[-1]

    def create_optimization_profile(self) -> Any:
        self.seen.profiles.append(self.real.create_optimization_profile())
        return self.seen.profiles[-1]

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        build = self.seen.replaced.get("build", lambda *_: self.real.build_serialized_network(network, config))
        return build(self.logger)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())  # the builder's log, thousands of lines


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plugins need full TensorRT's Python package; here they are registered nowhere."""
    module: Any = ModuleType("qvec_deploy.runtimes.kernels.plugins")
    module.register_plugins = lambda: None
    module.plugin_errors = lambda *_: contextlib.nullcontext()
    monkeypatch.setitem(sys.modules, module.__name__, module)


def _build(
    graph: TensorrtGraph, options: EngineOptions = OPTIONS, batches: Batches = OPEN, module: Any = trt, **more: Any
) -> Built:
    return build_engine(module, graph, batches, image_shape(96), options, **more)


def _refused(graph: TensorrtGraph, match: str, *arguments: Any, **more: Any) -> str:
    with pytest.raises(IncompatibleError, match=match) as caught:
        _build(graph, *arguments, **more)
    assert "\n" not in caught.value.message and caught.value.hint
    return caught.value.message


def _model(graph: TensorrtGraph) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    return model


# What the builder is told.


def test_options_reach_the_builder() -> None:
    seen = Watched()
    _build(linear_graph(INT4), replace(OPTIONS, workspace_mib=512, optimization_level=2), module=seen)
    (network,), (config,) = seen.networks, seen.configs
    assert network.get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert seen.asked == [1 << TYPED]
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 512 << 20
    assert config.builder_optimization_level == 2
    assert config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED
    capabilities = [config.get_compute_capability(index) for index in range(config.num_compute_capabilities)]
    assert capabilities == [trt.ComputeCapability.SM86, trt.ComputeCapability.SM89]
    assert not list(config.plugins_to_serialize)


def test_an_open_batch_has_a_profile_and_a_static_one_none() -> None:
    seen = Watched()
    _build(linear_graph(INT4), module=seen)
    (profile,) = seen.profiles
    assert [tuple(shape) for shape in profile.get_shape("images")] == [(size, *image_shape(96)) for size in (1, 4, 8)]
    assert seen.configs[0].num_optimization_profiles == 1
    _build(linear_graph(INT4, batch=2), batches=Batches.of(2), module=seen)
    assert len(seen.profiles) == 1 and seen.configs[1].num_optimization_profiles == 0


@pytest.mark.parametrize("lowering", [INT4, PACKED], ids=lambda row: row.name)
def test_only_the_plugin_asks_for_plugins(lowering: Any, plugins: None) -> None:
    seen = Watched()
    with contextlib.suppress(IncompatibleError):
        _build(linear_graph(lowering), module=seen)
    assert seen.asked == [1 << TYPED | (1 << AHEAD if lowering is PACKED else 0)]


def test_flags_of_experiments_are_set() -> None:
    seen = Watched()
    _build(linear_graph(INT4), module=seen, flags=["WEIGHT_STREAMING"])
    assert seen.configs[0].get_flag(trt.BuilderFlag.WEIGHT_STREAMING)


# What it says while it works.


class _Remains:
    """As of a build that failed: in a cycle, so that a collection frees it."""

    def __init__(self, freed: list[str]) -> None:
        self.itself, self.freed = self, freed

    def __del__(self) -> None:
        self.freed.append("while TensorRT starts" if _Remains.starting else "at another time")

    starting = False


def test_nothing_is_collected_while_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library logs when it starts, and holds a lock that what it frees would wait for."""
    freed: list[str] = []

    def start(logger: Any) -> Any:
        _Remains.starting = True
        for _ in range(5):
            _Remains(freed)
            [[] for _ in range(20_000)]  # enough for any threshold
        _Remains.starting = False
        return trt.Builder(logger)

    class Starting(Watched):
        Builder = staticmethod(start)

    _build(linear_graph(INT4), module=Starting())
    gc.collect()
    assert set(freed) == {"at another time"}
    assert gc.isenabled()


def test_progress_is_shown() -> None:
    seen: list[tuple[int, int]] = []
    _build(linear_graph(INT4), advance=lambda done, total: seen.append((done, total)))
    assert seen[0][0] == 1 and seen == sorted(seen)
    assert len({total for _, total in seen}) == 1 and seen[-1][0] <= seen[-1][1]


def test_an_interrupt_ends_the_build() -> None:
    seen: list[int] = []

    def stop(done: int, total: int) -> None:
        seen.append(done)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _build(linear_graph(INT4), advance=stop)
    assert seen == [1]


# What it refuses.


def test_an_operator_that_it_does_not_know() -> None:
    graph = linear_graph(INT4)
    graph.model.graph.node.append(helper.make_node("Unsupported", ["logits"], ["odd"], name="odd one"))
    _refused(graph, r"TensorRT 1\.\d+\.\S+ cannot read the graph: Unsupported `odd one`: ")


@pytest.mark.parametrize("row", [row for row in (TENSORRT, TENSORRT_RTX) if "packed" in str(row.lowerings)])
def test_a_plugin_that_is_not_there(row: Any, plugins: None) -> None:
    graph = linear_graph(find_lowering(row.name, "packed"))
    _refused(graph, "cannot read the graph: QvecLinear .*Plugin not found", module=Watched())


def test_a_linear_that_was_not_taken_for_the_plugin(plugins: None) -> None:
    _refused(replace(linear_graph(INT4), plugin_layers=1), "took 0 of 1 Linears for our plugin", module=Watched())


def test_an_open_batch_without_a_profile() -> None:
    _refused(linear_graph(INT4), "cannot build the engine: .*no optimization profile", batches=Batches.of(1))


def test_a_profile_for_another_input() -> None:
    with pytest.raises(IncompatibleError, match="cannot build the engine: "):
        build_engine(trt, linear_graph(INT4), OPEN, (3, 4, 9), OPTIONS)


def _empty(model: onnx.ModelProto) -> None:
    model.Clear()


def _without_nodes(model: onnx.ModelProto) -> None:
    model.graph.ClearField("node")


def _without_outputs(model: onnx.ModelProto) -> None:
    model.graph.ClearField("output")


def _short_weights(model: onnx.ModelProto) -> None:
    tensor = next(each for each in model.graph.initializer if each.data_type == TensorProto.INT4)
    tensor.raw_data = tensor.raw_data[:-7]


def _other_bias(model: onnx.ModelProto) -> None:
    bias = next(each for each in model.graph.initializer if each.name == "bias")
    bias.dims[0], bias.raw_data = 63, bias.raw_data[:-2]


def _unknown_input(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type == "MatMul").input[0] = "nowhere"


@pytest.mark.parametrize(
    "change", [_empty, _without_nodes, _without_outputs, _short_weights, _other_bias, _unknown_input]
)
def test_a_graph_that_is_broken(change: Any) -> None:
    graph = linear_graph(INT4)
    model = _model(graph)
    change(model)
    _refused(replace(graph, model=model), "cannot (read the graph|build the engine): .+")


def test_an_engine_that_it_cannot_open() -> None:
    """Without a list of GPUs an engine is opened to be weighed, which without a driver cannot be."""
    with pytest.raises(IncompatibleError, match=r"cannot open what it built: .+"):
        tensorrt_builder._weigh(trt, make_logger(trt), b"no engine", EngineOptions())
    here = Machine(str(trt.__version__), "GPU", 89, "13.0")
    sidecar = Sidecar(here, "int4", OPEN, image_shape(96), "this", False, True, 0, 1, 1, None, 1, 0, "", "", "", 1.0)
    with (
        pytest.raises(IncompatibleError, match=r"TensorRT cannot open the engine: .+"),
        load_engines(trt, _NoCuda(), [(sidecar, b"no engine")]),  # type: ignore[arg-type]
    ):
        pass


class _NoCuda:
    def enter(self) -> None:
        """The driver's context, where there is a driver."""


# What the real one cannot be made to do here.


def test_memory_that_is_not_enough() -> None:
    def build(logger: Any) -> None:
        logger.log(trt.ILogger.Severity.ERROR, "Error Code 2: OutOfMemory (Requested size was 1 bytes.)")

    with pytest.raises(OutOfDeviceMemory, match="ran out of GPU memory"):
        _build(linear_graph(INT4), module=Watched(build=build))


def test_a_refusal_without_a_reason() -> None:
    _refused(
        linear_graph(INT4),
        "cannot build the engine: TensorRT does not say why$",
        module=Watched(build=lambda logger: None),
    )


# What only an engine that is open could show; that the names are there can be seen.


def test_names_of_the_runtime_cache() -> None:
    assert callable(trt.ICudaEngine.create_runtime_config)
    assert "runtime_config: " in trt.ICudaEngine.create_execution_context.__doc__
    for name in ("create_runtime_cache", "set_runtime_cache"):
        assert callable(getattr(trt.IRuntimeConfig, name))
    assert isinstance(trt.IRuntimeConfig.cuda_graph_strategy, property)
    for name in ("serialize", "deserialize"):
        assert callable(getattr(trt.IRuntimeCache, name))
    assert {"DISABLED", "WHOLE_GRAPH_CAPTURE"} <= trt.CudaGraphStrategy.__members__.keys()

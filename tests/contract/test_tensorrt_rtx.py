"""Engines by NVIDIA's real builder, TensorRT for RTX, on the CPU: what it computes, and what is refused."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_tensorrt import write_sources
from onnx import TensorProto, helper, numpy_helper

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.io.files import sha256_file
from qvec_deploy.runtimes.engine_options import Batches, EngineOptions
from qvec_deploy.runtimes.registry import check_engine
from qvec_deploy.runtimes.tensorrt import TENSORRT_RTX, engine_build, tensorrt_library
from qvec_deploy.runtimes.tensorrt.builder_log import LinearProduct, WantedProduct
from qvec_deploy.runtimes.tensorrt.sidecar import Sidecar, engine_path, find_engines, mismatch, read_sidecar
from qvec_deploy.runtimes.tensorrt.tensorrt_builder import Built, build_engine
from qvec_deploy.runtimes.tensorrt.tensorrt_graph import TensorrtGraph
from qvec_deploy.runtimes.tensorrt.tensorrt_library import Machine, load_tensorrt
from qvec_deploy.runtimes.tensorrt.tensorrt_linear import product_name
from qvec_deploy.runtimes.tensorrt.tensorrt_runtime import TensorRTForRTX
from qvec_deploy.tensors import QuantizedTensor, Scheme

pytest.importorskip("tensorrt_rtx_bindings", reason="the extra `rtx` is not installed")
BACKEND = TensorRTForRTX()
OPTIONS = EngineOptions(compute_capabilities=(8.6, 8.9))
SHAPE = (3, 4, 8)  # as an image: 3 x 4 rows of 8 columns, which the graph reshapes


def _graph(lowering: str, columns: int = 96, rows: int = 64) -> TensorrtGraph:
    """One Linear on images, and a sum over its positions."""
    convert = next(row for row in TENSORRT_RTX.lowerings if row.name == lowering).load()
    generator = np.random.default_rng(0)
    codes = generator.integers(-4, 4, (rows, columns)).astype(np.int8)
    scale = generator.uniform(0.01, 0.1, (rows, 1)).astype(np.float32)
    node = helper.make_node("QvecLinear", ["x", "fc.weight", "s", "bias"], ["y"], name="fc")
    made = convert(node, QuantizedTensor(codes, scale, Scheme(3, "channel")), 2.0)
    given = [*made.tensors, numpy_helper.from_array(np.zeros(rows, np.float16), "bias")]
    given.append(numpy_helper.from_array(np.array([0, 1, columns]), "shape"))
    nodes = [
        helper.make_node("Cast", ["images"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Reshape", ["half", "shape"], ["x"]),
        *made.nodes,
        helper.make_node("Cast", ["y"], ["logits"], to=TensorProto.FLOAT),
    ]
    side = columns // 12
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 4, side])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1, rows])],
        given,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", made.opset)], ir_version=10)
    products = () if made.product is None else (WantedProduct("fc", product_name(node), *made.product),)
    return TensorrtGraph(model, 0, 0, sum(len(tensor.raw_data) for tensor in given), None, products)


def _build(lowering: str, columns: int = 96, options: EngineOptions = OPTIONS) -> Built:
    shape = (3, 4, columns // 12)
    return build_engine(
        load_tensorrt(tensorrt_library.RTX), _graph(lowering, columns), Batches(1, 8, 8), shape, options
    )


@pytest.mark.parametrize(
    ("lowering", "inputs", "constants", "most"),
    [("float", None, None, 13_500), ("int4", "Half", "Int4", 6_144), ("w8a8", "Int8", "Int8", 12_288)],
)
def test_a_linear_is_multiplied_as_it_is_stored(
    lowering: str, inputs: str | None, constants: str | None, most: int
) -> None:
    built = _build(lowering)
    assert len(built.plan) > 100_000
    assert built.weights_bytes is not None and 0 < built.weights_bytes < most
    if inputs is None:
        assert built.products == ()
    else:
        (product,) = built.products
        assert product.fused and inputs in product.inputs and constants in product.constants


def test_a_padded_block_is_expanded_and_refused() -> None:
    """Rows of 12 weights make no two blocks of any size."""
    with pytest.raises(IncompatibleError, match="1 of 1 Linears are not multiplied as they are stored: `fc`"):
        _build("int4", 12)


def test_a_capability_that_the_library_lacks() -> None:
    with pytest.raises(IncompatibleError, match=r"does not build for compute capability 9\.0"):
        _build("float", options=EngineOptions(compute_capabilities=(8.6, 9.0)))


@pytest.mark.parametrize(
    ("wanted", "others", "says"),
    [
        ((9.0,), False, "does not build for compute capability 9.0"),
        ((8.6, 8.9, 8.6), False, "was given 8.6 twice"),
        ((), True, "neither `hardware` nor `version_compatible`"),
    ],
)
def test_what_cannot_be_asked_for(wanted: tuple[float, ...], others: bool, says: str) -> None:
    with pytest.raises(IncompatibleError, match=says):
        check_engine("tensorrt-rtx", wanted, others=others)
    check_engine("tensorrt-rtx", (8.6, 12.0), others=False)
    with pytest.raises(IncompatibleError, match="does not build engines for compute capabilities"):
        check_engine("tensorrt", (8.6,), others=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pico_states: dict[str, dict[str, np.ndarray]]) -> Path:
    made = tmp_path_factory.mktemp("sources")
    write_sources(made, pico_states["receiver"], Scheme(3, "channel"))
    return made


@pytest.mark.slow
@pytest.mark.parametrize("lowering", [row.name for row in TENSORRT_RTX.lowerings])
def test_a_bundle_gets_its_engine_without_a_gpu(folder: Path, lowering: str) -> None:
    seen: list[str] = []

    def stage(name: str) -> Any:
        seen.append(name)
        return engine_build_stage()

    assert BACKEND.cannot_build(lowering) is None
    names = BACKEND.compile(folder, lowering, EngineOptions(), caches=folder.parent, stage=stage)
    assert names == [f"engine.{lowering}.b1-8.plan", f"engine.{lowering}.b1-8.plan.json"]
    assert seen == [f"{lowering}, batch 1-8"]
    (engine,) = find_engines(folder, lowering)
    sidecar = read_sidecar(engine)
    assert sidecar.sha256 == sha256_file(engine)
    assert sidecar.compute_capabilities == (8.6, 8.9, 12.0)
    assert sidecar.weights_bytes is not None and sidecar.weights_bytes > 0
    assert len(sidecar.products) == (0 if lowering == "float" else 8)
    assert all(product.fused for product in sidecar.products)
    (described,) = BACKEND.describe(folder, lowering)
    assert described["compute_capabilities"] == (8.6, 8.9, 12.0)


def engine_build_stage() -> Any:
    """A stage that shows nothing."""
    from contextlib import nullcontext

    return nullcontext(lambda done, total: None)


def test_a_build_that_hangs_or_fails_is_one_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = EngineOptions(compute_capabilities=(8.6, 9.0))
    with pytest.raises(IncompatibleError, match=r"compute capability 9\.0") as caught:
        engine_build.build_apart(folder, "float", Batches.of(1), options, lambda done, total: None)
    assert "the library's log is" in caught.value.hint
    log = Path(caught.value.hint.rpartition("log is ")[2])
    assert log.is_file()
    assert not engine_path(folder, "float", Batches.of(1)).exists()


@pytest.mark.parametrize(("number", "says"), [(signal.SIGALRM, "it took more than"), (signal.SIGABRT, "SIGABRT")])
def test_a_process_that_dies_is_one_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, says: str
) -> None:
    monkeypatch.setattr(engine_build, "JOB", "job_functions:die_of")
    options = EngineOptions(compute_capabilities=(8.6,), workspace_mib=int(number))
    with pytest.raises(IncompatibleError, match=says):
        engine_build.build_apart(folder, "float", Batches.of(1), options, lambda done, total: None)


def test_which_gpus_run_it() -> None:
    built = Machine("1.7.1.116", "GPUs of compute capability 8.6, 8.9", 0, "0.0")
    sidecar = Sidecar(
        built, "int4", Batches.of(1), SHAPE, "this", False, True, 0, 1, 1, None, 1, 0, "", "", "", 1.0, (8.6, 8.9),
        (LinearProduct("fc", "gemm", ("Half",), ("Int4",), True),),
    )  # fmt: skip
    assert mismatch(sidecar, Machine("1.7.1.116", "RTX 4090", 89, "13.0")) is None
    assert "here is RTX 5090 (12.0)" in (mismatch(sidecar, Machine("1.7.1.116", "RTX 5090", 120, "13.0")) or "")
    assert "here is 1.7.2" in (mismatch(sidecar, Machine("1.7.2", "RTX 4090", 89, "13.0")) or "")

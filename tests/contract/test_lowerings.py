"""Every lowering computes what its operator means: numpy says what, ONNX Runtime and onnx's evaluator must agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.packed import Entry, PackedFile, pack, write_packed
from qvec_deploy.quantize.reference import quantize
from qvec_deploy.runtimes.graph import DOMAIN, OPSET
from qvec_deploy.runtimes.graph.stored import attach_weights
from qvec_deploy.runtimes.onnxruntime.ort_model import input_ranges, lowered_model, write_model
from qvec_deploy.runtimes.onnxruntime.ort_session import load_session
from qvec_deploy.runtimes.registry import find_lowering, runtime_bits_per_weight
from qvec_deploy.tensors import QuantizedTensor, Scheme

ROWS = 24
SCHEMES = [("tensor", 0, 40), ("channel", 0, 96), ("channel", 0, 100), ("group", 16, 48), ("group", 512, 1024)]


def _layer(
    bits: int, granularity: str, group_size: int, columns: int
) -> tuple[QuantizedTensor, np.ndarray, np.ndarray]:
    generator = np.random.default_rng([bits, columns])
    weight = generator.normal(size=(ROWS, columns)).astype(np.float32)
    scheme = Scheme(bits, granularity, group_size, method="mse")  # type: ignore[arg-type]
    bias = generator.normal(size=ROWS).astype(np.float32)
    return quantize(weight, scheme), bias, generator.normal(size=(2, 5, columns)).astype(np.float32)


def _skeleton(columns: int) -> onnx.ModelProto:
    """What the exporter leaves: one operator node whose initializers only lend their names."""
    node = helper.make_node(
        "QvecLinear", ["images", "a.weight", "a.scale", "a.bias"], ["logits"], domain=DOMAIN, K=columns, N=ROWS
    )
    shapes = {"images": ["batch", 5, columns], "logits": ["batch", 5, ROWS]}
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    initializers = [numpy_helper.from_array(np.zeros((ROWS, 1), np.int32), "a.weight")]
    initializers += [numpy_helper.from_array(np.zeros(ROWS, np.float32), name) for name in ("a.scale", "a.bias")]
    graph = helper.make_graph([node], "g", [values["images"]], [values["logits"]], initializers)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _store(folder: Path, quantized: QuantizedTensor, bias: np.ndarray) -> tuple[onnx.ModelProto, PackedFile]:
    path = folder / "weights.qvec.safetensors"
    layout = {"a.weight": Entry(quantized.codes.shape, quantized.scheme), "a.bias": Entry(bias.shape)}
    write_packed(path, layout, [("a.weight", pack(quantized)), ("a.bias", bias)])
    weights = PackedFile.open(path)
    model = attach_weights(_skeleton(quantized.codes.shape[1]), weights, path.name)
    onnx.save(model, folder / "model.onnx")
    return model, weights


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize(("granularity", "group_size", "columns"), SCHEMES)
def test_packed_is_exact_in_onnxruntime_and_onnx(
    tmp_path: Path, bits: int, granularity: str, group_size: int, columns: int
) -> None:
    quantized, bias, x = _layer(bits, granularity, group_size, columns)
    _store(tmp_path, quantized, bias)
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    expected = x @ quantized.dequantize().T + bias
    np.testing.assert_allclose(session.run(None, {"images": x})[0], expected, rtol=1e-5, atol=1e-4)
    evaluated = ReferenceEvaluator(onnx.load(tmp_path / "model.onnx")).run(None, {"images": x})[0]
    np.testing.assert_allclose(evaluated, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("bits", find_lowering("onnxruntime", "int4").bits)
@pytest.mark.parametrize(("granularity", "group_size", "columns"), SCHEMES)
def test_int4_keeps_every_code(tmp_path: Path, bits: int, granularity: str, group_size: int, columns: int) -> None:
    quantized, bias, x = _layer(bits, granularity, group_size, columns)
    _store(tmp_path, quantized, bias)
    expected = x @ quantized.dequantize().T + bias
    actual = load_session(tmp_path, "int4", 1).run(None, {"images": x})[0]
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", find_lowering("onnxruntime", "int8").bits)
@pytest.mark.parametrize(("granularity", "group_size", "columns"), SCHEMES[:3])
def test_int8_errs_by_its_activations_only(
    tmp_path: Path, bits: int, granularity: str, group_size: int, columns: int
) -> None:
    quantized, bias, x = _layer(bits, granularity, group_size, columns)
    _store(tmp_path, quantized, bias)
    # ONNX's DynamicQuantizeLinear: one scale and zero point for the whole activation tensor, zero included.
    scale = np.float32((max(x.max(), 0) - min(x.min(), 0)) / 255)
    zero_point = np.clip(np.rint(-min(x.min(), 0) / scale), 0, 255)
    rounded = ((np.clip(np.rint(x / scale) + zero_point, 0, 255) - zero_point) * scale).astype(np.float32)
    expected = rounded @ quantized.dequantize().T + bias
    actual = load_session(tmp_path, "int8", 1).run(None, {"images": x})[0]
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-3)
    assert np.abs(actual - (x @ quantized.dequantize().T + bias)).max() > 1e-4, "activations were not quantized"


def test_a_float_linear_is_a_matmul(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    weight, bias = generator.normal(size=(ROWS, 40)).astype(np.float32), np.ones(ROWS, np.float32)
    x = generator.normal(size=(1, 5, 40)).astype(np.float32)
    path = tmp_path / "weights.qvec.safetensors"
    write_packed(
        path, {"a.weight": Entry(weight.shape), "a.bias": Entry(bias.shape)}, [("a.weight", weight), ("a.bias", bias)]
    )
    model = attach_weights(_skeleton(40), PackedFile.open(path), path.name)
    assert [node.op_type for node in model.graph.node] == ["Transpose", "MatMul", "Add"]
    assert not model.functions
    onnx.save(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"images": x})[0], x @ weight.T + bias, rtol=1e-5, atol=1e-4)


def test_weights_are_stored_once_and_outside_the_graph(tmp_path: Path) -> None:
    quantized, bias, _ = _layer(3, "channel", 0, 96)
    model, weights = _store(tmp_path, quantized, bias)
    assert all(tensor.data_location == TensorProto.EXTERNAL for tensor in model.graph.initializer)
    spans = {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data} for tensor in model.graph.initializer
    }
    assert int(spans["a.weight"]["length"]) == ROWS * 96 * 3 // 8
    raw = weights.path.read_bytes()
    start = int(spans["a.bias"]["offset"])
    assert raw[start : start + int(spans["a.bias"]["length"])] == bias.tobytes()


def test_an_unused_weight_is_refused(tmp_path: Path) -> None:
    quantized, bias, _ = _layer(3, "channel", 0, 96)
    path = tmp_path / "weights.qvec.safetensors"
    layout = {"a.weight": Entry((ROWS, 96), quantized.scheme), "a.bias": Entry((ROWS,)), "b": Entry((ROWS,))}
    write_packed(path, layout, [("a.weight", pack(quantized)), ("a.bias", bias), ("b", bias)])
    with pytest.raises(IncompatibleError, match="does not use b"):
        attach_weights(_skeleton(96), PackedFile.open(path), path.name)


def test_the_graph_names_no_paths_of_the_building_machine(tmp_path: Path) -> None:
    quantized, bias, _ = _layer(3, "channel", 0, 96)
    model, _ = _store(tmp_path, quantized, bias)
    assert b"/" not in model.SerializeToString().replace(b"weights.qvec.safetensors", b"")


@pytest.mark.parametrize(
    ("lowering", "columns", "expected"),
    [("int4", 256, 4 + 32 / 256), ("int8", 256, 8 + 32 / 256), ("packed", 256, 32.0)],
)
def test_runtime_bits(tmp_path: Path, lowering: str, columns: int, expected: float) -> None:
    quantized, bias, _ = _layer(3, "channel", 0, columns)
    _, weights = _store(tmp_path, quantized, bias)
    assert runtime_bits_per_weight(weights.tensors.values(), "onnxruntime", lowering) == pytest.approx(expected)


@pytest.mark.parametrize(("lowering", "operator"), [("int4", "MatMulNBits"), ("int8", "DynamicQuantizeMatMul")])
def test_runtime_bits_are_what_the_runtime_holds_after_loading(tmp_path: Path, lowering: str, operator: str) -> None:
    quantized, bias, _ = _layer(3, "channel", 0, 96)
    _, weights = _store(tmp_path, quantized, bias)
    write_model(tmp_path, lowering, [], 1) if lowering == "int4" else _rewrite(tmp_path, lowering)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "loaded.onnx").graph
    (node,) = graph.node  # nothing is left to unpack at a run
    assert node.op_type == operator
    held = {tensor.name: numpy_helper.to_array(tensor).nbytes for tensor in graph.initializer}
    taken = 8 * sum(held[name] for name in node.input[1:3]) / quantized.codes.size
    assert runtime_bits_per_weight(weights.tensors.values(), "onnxruntime", lowering) == pytest.approx(taken)


def _rewrite(folder: Path, lowering: str) -> None:
    """Another lowering in the place of the model, without calibration."""
    (folder / "model.onnx").write_bytes(lowered_model(folder, lowering).SerializeToString())


@pytest.mark.parametrize("bits", find_lowering("onnxruntime", "int8").bits)
@pytest.mark.parametrize(("granularity", "group_size", "columns"), SCHEMES[:3])
def test_a_calibrated_int8_errs_by_its_grid_only(
    tmp_path: Path, bits: int, granularity: str, group_size: int, columns: int
) -> None:
    quantized, bias, x = _layer(bits, granularity, group_size, columns)
    _store(tmp_path, quantized, bias)
    write_model(tmp_path, "int8", [x], 1)
    scale = np.float32((x.max() - x.min()) / 255)
    zero = np.rint(-x.min() / scale)
    rounded = ((np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale).astype(np.float32)
    expected = rounded @ quantized.dequantize().T + bias
    session = load_session(tmp_path, "int8", 1)
    actual = session.run(None, {"images": x})[0]
    assert (np.abs(actual - expected) > 1e-3).mean() < 0.02  # a value between two steps may fall to either side
    np.testing.assert_array_equal(session.run(None, {"images": x[:1]})[0], actual[:1])


def test_ranges_are_those_of_all_images_and_stay_in_the_model(tmp_path: Path) -> None:
    quantized, bias, x = _layer(3, "channel", 0, 96)
    _store(tmp_path, quantized, bias)
    assert input_ranges(tmp_path, [x, 3 * x], 1) == {"a": (float(3 * x.min()), float(3 * x.max()))}
    write_model(tmp_path, "int8", [x], 1)
    before = lowered_model(tmp_path, "int8")
    write_model(tmp_path, "packed", [], 1)
    assert lowered_model(tmp_path, "int8") == before


@pytest.mark.parametrize("lowering", ["packed", "int4", "int8"])
def test_the_written_file_is_opened_as_it_is(tmp_path: Path, lowering: str, monkeypatch: pytest.MonkeyPatch) -> None:
    quantized, bias, x = _layer(3, "channel", 0, 96)
    _store(tmp_path, quantized, bias)
    expected = load_session(tmp_path, "packed", 1).run(None, {"images": x})[0]
    write_model(tmp_path, lowering, [x], 1)
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
    monkeypatch.setattr("qvec_deploy.runtimes.onnxruntime.ort_model.lowered_model", None)
    actual = load_session(tmp_path, lowering, 1).run(None, {"images": x})[0]
    assert np.linalg.norm(actual - expected) < (0.02 if lowering == "int8" else 1e-5) * np.linalg.norm(expected)


@pytest.mark.parametrize("lowering", ["packed", "int4", "int8"])
def test_a_model_of_0_1_0_takes_every_lowering(tmp_path: Path, lowering: str) -> None:
    """It declared payloads as int32 words."""
    quantized, bias, x = _layer(3, "channel", 0, 96)
    _store(tmp_path, quantized, bias)
    expected = load_session(tmp_path, lowering, 1).run(None, {"images": x})[0]
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.UINT8:
            tensor.data_type, tensor.dims[:] = TensorProto.INT32, (ROWS, 9)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    np.testing.assert_array_equal(load_session(tmp_path, lowering, 1).run(None, {"images": x})[0], expected)

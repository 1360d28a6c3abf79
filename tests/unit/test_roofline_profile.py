"""ONNX Runtime's profile by layer: every lowering's names are found again, and nothing is counted twice."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from pico import PICO_ARGS, PICO_CLASSES, PICO_MODEL
from shared import export_once
from small_engines import SCHEME, write_engine

from qvec_deploy.bench.parity import parity_images
from qvec_deploy.bench.roofline.trace import trace_operations
from qvec_deploy.errors import IncompatibleError, StorageError
from qvec_deploy.packed import PackedFile
from qvec_deploy.runtimes.engine_files import MODEL_FILE, WEIGHTS_FILE
from qvec_deploy.runtimes.graph.export import export_skeleton
from qvec_deploy.runtimes.graph.stored import attach_weights
from qvec_deploy.runtimes.onnxruntime import ort_profile
from qvec_deploy.runtimes.onnxruntime.ort_profile import layer_times
from qvec_deploy.runtimes.onnxruntime.ort_session import OnnxRuntime

SHAPE = (3, 32, 32)


@pytest.fixture(scope="module")
def skeleton() -> onnx.ModelProto:
    return export_once(export_skeleton, PICO_MODEL, PICO_CLASSES, PICO_ARGS, ("head",), SHAPE)


def _engine(directory: Path, skeleton: onnx.ModelProto, lowering: str, *, factors: bool = False) -> None:
    write_engine(directory, None if lowering == "float" else SCHEME, factors=factors)
    model = attach_weights(skeleton, PackedFile.open(directory / WEIGHTS_FILE), WEIGHTS_FILE)
    (directory / MODEL_FILE).write_bytes(model.SerializeToString())


@pytest.mark.parametrize("factors", [False, True])
@pytest.mark.parametrize("lowering", ["float", "packed", "int4", "int8"])
def test_layers_are_those_of_the_roofline(
    tmp_path: Path, skeleton: onnx.ModelProto, lowering: str, factors: bool
) -> None:
    _engine(tmp_path, skeleton, lowering, factors=factors and lowering != "float")
    times = OnnxRuntime().profile(tmp_path, lowering, 1, parity_images(SHAPE), 3)
    operations = trace_operations(PICO_MODEL, PICO_CLASSES, PICO_ARGS, SHAPE)
    assert list(times) == [operation.layer for operation in operations]
    assert all(ms >= 0 for ms in times.values()) and 0 < sum(times.values()) < 1000
    assert list(tmp_path.glob("profile*")) == []


def _graph(directory: Path) -> None:
    """qkv, two products and a softmax, proj with a bias; float as `attach_weights` leaves it."""
    nodes = [
        helper.make_node("LayerNormalization", ["x", "a.norm.weight"], ["n"], name="norm"),
        helper.make_node("Transpose", ["a.qkv.weight"], ["qkv_w"], name="qkv_t"),
        helper.make_node("MatMul", ["n", "qkv_w"], ["q"], name="qkv_matmul"),
        helper.make_node("MatMul", ["q", "q"], ["s"], name="scores"),
        helper.make_node("Softmax", ["s"], ["p"], name="softmax"),
        helper.make_node("MatMul", ["p", "q"], ["o"], name="weighted"),
        helper.make_node("Transpose", ["a.proj.weight"], ["proj_w"], name="proj_t"),
        helper.make_node("MatMul", ["o", "proj_w"], ["proj_y"], name="proj_matmul"),
        helper.make_node("Add", ["proj_y", "a.proj.bias"], ["y"], name="proj_add"),
    ]
    names = ["a.norm.weight", "a.qkv.weight", "a.proj.weight", "a.proj.bias"]
    weights = [helper.make_tensor(name, TensorProto.FLOAT, [1], [0.0]) for name in names]
    graph = helper.make_graph(nodes, "g", [], [], weights)
    onnx.save(helper.make_model(graph), directory / MODEL_FILE)


def _trace(path: Path, runs: list[dict[str, int]]) -> Path:
    events = [{"cat": "Session", "name": "model_run", "dur": 10**6}]
    for run in runs:
        events += [{"cat": "Node", "name": f"{name}_kernel_time", "dur": dur} for name, dur in run.items()]
        events += [{"cat": "Node", "name": f"{name}_fence_before", "dur": 10**6} for name in run]
    path.write_text(json.dumps(events), encoding="utf-8")
    return path


def test_durations_are_summed_by_layer(tmp_path: Path) -> None:
    _graph(tmp_path)
    run = {"norm": 13, "qkv_matmul": 103, "scores/MatMulScaleFusion/": 23, "softmax": 14, "weighted": 33}
    run |= {"proj_matmul": 53, "proj_add": 5, "reshape": 3, "invented_by_a_fusion": 8}
    late = dict.fromkeys(run, 10_000)  # one run that something else disturbed
    times = layer_times(tmp_path, _trace(tmp_path / "t.json", [run, late, run]), 3)
    # three microseconds, what the cheapest node takes, are the profiler's own
    assert times == {
        "a.qkv": pytest.approx(0.100),
        "a": pytest.approx(0.020 + 0.011 + 0.030),
        "a.proj": pytest.approx(0.050 + 0.002),
        "rest": pytest.approx(0.010 + 0.005),
    }
    assert list(times) == ["a.qkv", "a", "a.proj", "rest"]


def test_a_profile_of_another_model_is_refused(tmp_path: Path, skeleton: onnx.ModelProto) -> None:
    _engine(tmp_path, skeleton, "packed")
    with pytest.raises(IncompatibleError, match="shows 2 packed Linears, the model has 8"):
        layer_times(tmp_path, _trace(tmp_path / "t.json", [{"MatMul_7": 5, "MatMul_9": 6}]), 1)


def test_a_profile_that_was_cut_off_is_an_error_of_the_disk(tmp_path: Path) -> None:
    """ONNX Runtime does not say when the folder for temporary files is full."""
    trace = tmp_path / "profile.json"
    trace.write_text('[{"cat": "Node", "na')
    with pytest.raises(StorageError, match=f"{tmp_path}: ONNX Runtime's profile") as caught:
        ort_profile._median_us(trace, 1)
    assert "TMPDIR" in caught.value.hint

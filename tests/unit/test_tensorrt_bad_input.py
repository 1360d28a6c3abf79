"""What is refused before TensorRT sees it, each with one line and the exit code that is documented."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from fake_tensorrt import write_sources

from qvec_deploy.errors import IncompatibleError, IntegrityError
from qvec_deploy.packed import PackedFile
from qvec_deploy.runtimes.engine_options import Batches, EngineOptions
from qvec_deploy.runtimes.graph.stored import load_stored
from qvec_deploy.runtimes.tensorrt import TENSORRT, TENSORRT_RTX
from qvec_deploy.runtimes.tensorrt.engine_build import lower_sources, read_sources
from qvec_deploy.runtimes.tensorrt.tensorrt_library import RTX, load_tensorrt
from qvec_deploy.runtimes.tensorrt.tensorrt_runtime import TensorRTForRTX
from qvec_deploy.tensors import Scheme

LINEAR = "blocks.1.mlp.fc1.weight"
LOWERINGS = [
    pytest.param(row.name, lowering.name, id=f"{row.name}-{lowering.name}")
    for row in (TENSORRT, TENSORRT_RTX)
    for lowering in row.lowerings
]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, pico_states: dict[str, dict[str, np.ndarray]]) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    write_sources(folder, pico_states["receiver"], Scheme(3, "channel"))
    return folder


@pytest.fixture
def folder(sources: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sources, tmp_path / "bundle"))


def _lower(folder: Path, runtime: str, lowering: str) -> Any:
    stored, weights, _ = read_sources(folder)
    return lower_sources(folder, stored, weights, runtime, lowering, Batches(1, 8, 8))


def _set_scale(folder: Path, value: float) -> None:
    """Write a scale of one row where it lies in the file, as nothing of ours would."""
    path = folder / "weights.qvec.safetensors"
    span = PackedFile.open(path).tensors[LINEAR].scale
    assert span is not None
    with path.open("r+b") as file:
        file.seek(span.offset)
        file.write(np.float32(value).tobytes())


@pytest.mark.parametrize("value", [0.0, -0.5, float("nan"), float("inf")])
@pytest.mark.parametrize(("runtime", "lowering"), LOWERINGS)
def test_a_scale_that_no_grid_has(folder: Path, runtime: str, lowering: str, value: float) -> None:
    """The real builder takes any of them silently."""
    assert _lower(folder, runtime, lowering)
    _set_scale(folder, value)
    with pytest.raises(IntegrityError, match=f"{LINEAR}.* has a scale that is not positive and finite") as caught:
        _lower(folder, runtime, lowering)
    assert "\n" not in caught.value.message and caught.value.exit_code == 5


@pytest.mark.parametrize("value", [1e-30, 2.0**-25])
@pytest.mark.parametrize("lowering", ["int4", "w8a8", "fp8"])
def test_a_scale_that_float16_has_not_is_not_zero(folder: Path, lowering: str, value: float) -> None:
    """As a row of zeros has: TensorRT would take a zero for what divides by it."""
    _set_scale(folder, value)
    graph = _lower(folder, "tensorrt-rtx", lowering)
    scales = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in graph.model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT16 and "scale" in tensor.name
    }
    assert scales and all((scale > 0).all() for scale in scales.values())


@pytest.mark.parametrize("value", ["NaN", "-1.0", "Infinity"])
def test_a_range_of_activations_that_nothing_has(folder: Path, value: str) -> None:
    path = folder / "activations.json"
    amax = json.loads(path.read_text())
    first = next(iter(amax["amax"].values()))
    path.write_text(path.read_text().replace(str(first), value, 1))
    with pytest.raises(IntegrityError, match=r"activations\.json (holds an impossible|is damaged)"):
        _lower(folder, "tensorrt-rtx", "w8a8")


def _nothing_inside(model: onnx.ModelProto) -> bytes:
    model.graph.ClearField("node")
    return model.SerializeToString()


def _other_ends(model: onnx.ModelProto) -> bytes:
    model.graph.input[0].name = "pixels"
    return model.SerializeToString()


@pytest.mark.parametrize(
    "make",
    [
        lambda model: b"",
        lambda model: b"\xff" * 100,
        lambda model: b'{"model": "vit"}',
        lambda model: model.SerializeToString()[:-100],
        _nothing_inside,
        _other_ends,
    ],
    ids=["empty", "garbage", "text", "cut off", "no nodes", "other input"],
)
def test_a_graph_that_is_none(folder: Path, make: Callable[[onnx.ModelProto], bytes]) -> None:
    path = folder / "model.onnx"
    path.write_bytes(make(onnx.load(path, load_external_data=False)))
    for read in (load_stored, read_sources):
        with pytest.raises(IntegrityError, match=r"model\.onnx is (damaged: .*|not a model of images and logits)$"):
            read(folder)


def test_a_graph_whose_weight_is_nowhere(folder: Path) -> None:
    path = folder / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    node = next(node for node in model.graph.node if LINEAR in node.input)
    node.input[1] = "blocks.9.mlp.fc1.weight"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(IntegrityError, match=r"blocks\.9\.mlp\.fc1\.weight"):
        _lower(folder, "tensorrt-rtx", "int4")


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["scale", "model"])
def test_nothing_is_written_of_what_is_refused(folder: Path, damage: str) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="the extra `rtx` is not installed")
    if damage == "scale":
        _set_scale(folder, 0.0)
    else:
        (folder / "model.onnx").write_bytes(b"")
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(IntegrityError) as caught:
        TensorRTForRTX().compile(folder, "int4", EngineOptions(), caches=folder.parent)
    assert "\n" not in caught.value.message
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (None, "TensorRT for RTX cannot be imported: .*tensorrt_rtx_bindings"),
        (SimpleNamespace(__version__="1.8.0.2"), r"1\.8\.0\.2 is installed; 1\.7 and later, below 1\.8, can be used$"),
        (SimpleNamespace(__version__="1.6.9"), r"1\.6\.9 is installed; 1\.7 and later, below 1\.8, can be used$"),
    ],
    ids=["missing", "later", "earlier"],
)
def test_a_wheel_that_is_missing_or_another(
    folder: Path, monkeypatch: pytest.MonkeyPatch, module: Any, says: str
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", module)
    with pytest.raises(IncompatibleError, match=says) as caught:
        load_tensorrt(RTX)
    assert "pip install 'qvec-deploy[rtx]'" in caught.value.hint and "\n" not in caught.value.message
    assert TensorRTForRTX().cannot_build("int4") == TensorRTForRTX().missing("int4") == caught.value.message
    with pytest.raises(IncompatibleError, match=says):
        TensorRTForRTX().compile(folder, "int4", EngineOptions(), caches=folder.parent)
    assert not list(folder.glob("engine.*"))


def test_bindings_without_their_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the wheel of the bindings alone says."""
    said = "libtensorrt_rtx.so.1: cannot open shared object file: No such file or directory"

    def refuse(name: str) -> Any:
        raise ImportError(said)

    monkeypatch.setattr("importlib.import_module", refuse)
    with pytest.raises(IncompatibleError, match=f"^TensorRT for RTX cannot be imported: {said}$"):
        load_tensorrt(RTX)

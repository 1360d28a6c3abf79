"""The onnxruntime-cuda runtime: its float16 graphs on the CPU provider, its refusals, and no silent fallback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto
from pico import PICO_ARGS
from small_engines import WIDE_ARGS, relative_error, write_engine

from qvec_deploy.bench.parity import parity_images
from qvec_deploy.errors import IncompatibleError, IntegrityError
from qvec_deploy.packed import Entry, PackedFile, unpack, write_packed
from qvec_deploy.runtimes.engine_files import MODEL_FILE, WEIGHTS_FILE
from qvec_deploy.runtimes.onnxruntime_cuda import ort_cuda_session as module
from qvec_deploy.runtimes.onnxruntime_cuda.ort_cuda_session import (
    CPU,
    CUDA,
    CudaSession,
    OnnxRuntimeCuda,
    half_model,
    session_options,
)
from qvec_deploy.tensors import Scheme

pytestmark = pytest.mark.slow

HALF_TOLERANCE = 5e-3
SHAPE = (3, 32, 32)
IMAGES = parity_images(SHAPE)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A 3-bit model whose blocks would be 256 codes long, and its logits; do not write to it."""
    folder = tmp_path_factory.mktemp("packed")
    return folder, write_engine(folder, args=WIDE_ARGS, graph=True, factors=True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A float model and its logits; do not write to it."""
    folder = tmp_path_factory.mktemp("plain")
    return folder, write_engine(folder, scheme=None, graph=True)


def test_int4_computes_what_pytorch_computes(packed: tuple[Path, np.ndarray]) -> None:
    with OnnxRuntimeCuda(CPU).open(packed[0], "int4", 1) as session:
        logits = session.run(IMAGES)
        assert session.input_shape == SHAPE
    assert logits.dtype == np.float32
    assert relative_error(logits, packed[1]) < HALF_TOLERANCE


def test_int4_takes_groups(tmp_path: Path) -> None:
    reference = write_engine(tmp_path, Scheme(3, "group", 16), PICO_ARGS, graph=True)
    with OnnxRuntimeCuda(CPU).open(tmp_path, "int4", 1) as session:
        assert relative_error(session.run(IMAGES), reference) < HALF_TOLERANCE


def test_every_batch_size_works_and_two_stay_loaded(plain: tuple[Path, np.ndarray]) -> None:
    with OnnxRuntimeCuda(CPU).open(plain[0], "float", 1) as session:
        one = np.concatenate([session.run(IMAGES[i : i + 1]) for i in range(2)])
        np.testing.assert_allclose(session.run(IMAGES), one, atol=HALF_TOLERANCE)
        assert session.run(np.resize(IMAGES, (5, *SHAPE))).shape[0] == 5
        assert isinstance(session, CudaSession)
        assert list(session._sessions) == [2, 5]


def test_everything_between_the_ends_is_float16(packed: tuple[Path, np.ndarray]) -> None:
    model, arrays = half_model(packed[0], "int4")
    assert {tensor.data_type for tensor in model.graph.initializer} <= {
        TensorProto.FLOAT16, TensorProto.UINT8, TensorProto.INT64
    }  # fmt: skip
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float16), np.dtype(np.uint8)}
    ends = (*model.graph.input, *model.graph.output)
    assert [value.type.tensor_type.elem_type for value in ends] == [TensorProto.FLOAT] * 2


def test_the_kernels_get_what_they_take_and_every_code_survives(packed: tuple[Path, np.ndarray]) -> None:
    model, arrays = half_model(packed[0], "int4")
    weights = PackedFile.open(packed[0] / WEIGHTS_FILE)
    nodes = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
    assert len(nodes) == sum(info.scheme is not None for info in weights.tensors.values())
    for node in nodes:
        block = next(attribute.i for attribute in node.attribute if attribute.name == "block_size")
        assert block == 128
        assert len(node.input) == 3, "CUDA's kernel refuses a bias"
        quantized = unpack(weights.packed(node.input[1].removesuffix(".codes")))
        payload = arrays[node.input[1]]
        codes = np.stack([payload & 15, payload >> 4], axis=-1).reshape(quantized.codes.shape).astype(np.int8) - 8
        np.testing.assert_array_equal(codes, quantized.codes)
        scales = arrays[node.input[2]]
        assert scales.shape == payload.shape[:2]
        np.testing.assert_array_equal(scales, np.repeat(quantized.scale.astype(np.float16), scales.shape[1], axis=1))


@pytest.mark.parametrize("lowering", ["int4", "float"])
def test_no_node_computes_shapes_once_the_batch_is_known(
    packed: tuple[Path, np.ndarray], plain: tuple[Path, np.ndarray], tmp_path: Path, lowering: str
) -> None:
    """Shapes are computed on the CPU wherever a GPU is; demanding that no node is left there needs that none are."""
    model, arrays = half_model((packed if lowering == "int4" else plain)[0], lowering)
    options = session_options(1, 4, strict=False)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
    options.add_external_initializers(list(arrays), values)
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[CPU])
    graph = onnx.load(tmp_path / "optimized.onnx").graph
    shapes = {"Shape", "Size", "Range", "ConstantOfShape", "Expand"}
    assert shapes & {node.op_type for node in model.graph.node}
    assert not shapes & {node.op_type for node in graph.node}


def test_a_session_that_cannot_have_the_gpu_is_refused_not_moved_to_the_cpu(plain: tuple[Path, np.ndarray]) -> None:
    """The real provider with no GPU in sight, in a process of its own: its complaints go there."""
    code = f"""
import sys
from pathlib import Path
from qvec_deploy.errors import IncompatibleError
from qvec_deploy.runtimes.onnxruntime_cuda.ort_cuda_session import CUDA, CudaSession, half_model
try:
    CudaSession(*half_model(Path({str(plain[0])!r}), "float"), "float", 1, CUDA).load(1)
except IncompatibleError as error:
    sys.exit(f"refused: {{error.message}}")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={"CUDA_VISIBLE_DEVICES": ""}
    )
    assert done.returncode == 1, done.stderr
    assert "refused: lowering `float` on CUDAExecutionProvider cannot be loaded at batch 1" in done.stderr


def test_a_damaged_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / MODEL_FILE).write_bytes(b"\xff\xff")
    with pytest.raises(IntegrityError, match=r"model\.onnx is damaged"):
        half_model(tmp_path, "float")


def test_values_beyond_float16_are_refused(plain: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    weights = PackedFile.open(plain[0] / WEIGHTS_FILE)
    values = {name: np.array(weights.array(name)) for name in weights.tensors}
    values["head.bias"][0] = 1e6
    write_packed(tmp_path / WEIGHTS_FILE, {name: Entry(value.shape) for name, value in values.items()}, values.items())
    (tmp_path / MODEL_FILE).write_bytes((plain[0] / MODEL_FILE).read_bytes())
    with pytest.raises(IncompatibleError, match=r"head\.bias.*float16"):
        half_model(tmp_path, "float")


def test_out_of_memory_names_lowering_and_batch(
    plain: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = _crowded(monkeypatch, plain[0], most=5)
    session.run(IMAGES)
    with pytest.raises(
        IncompatibleError, match=r"`float`.* fails at batch 20: CUDA failure 2: out of memory"
    ) as caught:
        session.run(np.zeros((20, *SHAPE), np.float32))
    assert caught.value.hint == "batch 5 fits", "not the 2 that was loaded"
    assert len(session.run(np.zeros((5, *SHAPE), np.float32))) == 5, "the session can still be used"


def test_out_of_memory_at_every_batch(plain: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    session = _crowded(monkeypatch, plain[0], most=0)
    with pytest.raises(IncompatibleError, match="fails at batch 20") as caught:
        session.run(np.zeros((20, *SHAPE), np.float32))
    assert "smaller batch" in caught.value.hint


def _crowded(monkeypatch: pytest.MonkeyPatch, folder: Path, most: int) -> CudaSession:
    """A session on a GPU that is full beyond a batch size."""
    session = CudaSession(*half_model(folder, "float"), "float", 1, CPU)
    load = session.load

    class Full:
        def run(self, *_: object) -> None:
            raise RuntimeError("CUDA failure 2: out of memory ; GPU=0\n more")

    def loaded(batch: int) -> Any:
        found = load(batch)
        return found if batch <= most else Full()

    monkeypatch.setattr(session, "load", loaded)
    return session


def _refusing(message: str) -> Any:
    def refuse() -> None:
        raise IncompatibleError(message, hint="none")

    return refuse


@pytest.mark.parametrize(
    ("patches", "said"),
    [
        ({"providers": [CPU]}, "it is not onnxruntime-gpu"),
        ({"driver": _refusing("no NVIDIA driver is installed")}, "no NVIDIA driver"),
        ({"driver": _refusing("the NVIDIA driver finds no GPU")}, "finds no GPU"),
        ({"loads": lambda: False}, "cannot load CUDAExecutionProvider: the libraries of CUDA 13.0 or cuDNN"),
        ({}, None),
    ],
    ids=["cpu-build", "no-driver", "no-gpu", "no-libraries", "works"],
)
def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, patches: dict[str, Any], said: str | None) -> None:
    working = {"providers": [CUDA, CPU], "driver": lambda: None, "loads": lambda: True}
    chosen = {**working, **patches}
    fake = SimpleNamespace(
        __version__="1.2.3", cuda_version="13.0", get_available_providers=lambda: chosen["providers"]
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    monkeypatch.setattr(module, "Cuda", chosen["driver"])
    monkeypatch.setattr(module, "_provider_loads", chosen["loads"])
    reason = OnnxRuntimeCuda().missing()
    if said is None:
        assert reason is None
    else:
        assert reason is not None
        assert said in reason


def test_opening_without_a_gpu_says_what_is_missing(
    plain: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "Cuda", _refusing("no NVIDIA driver is installed"))
    with (
        pytest.raises(IncompatibleError, match=r"no NVIDIA driver|not onnxruntime-gpu"),
        OnnxRuntimeCuda().open(plain[0], "float", 1),
    ):
        pass

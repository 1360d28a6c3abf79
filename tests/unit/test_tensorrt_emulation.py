"""Engines computed on the CPU: their number formats bit by bit, and PyTorch's answers but for these formats."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
import torch
from fake_tensorrt import write_sources
from onnx import TensorProto, helper

from qvec_deploy.bench.parity import check_parity, parity_images
from qvec_deploy.errors import IncompatibleError, IntegrityError
from qvec_deploy.runtimes.engine_files import ACTIVATIONS_FILE
from qvec_deploy.runtimes.session import Emulator
from qvec_deploy.runtimes.tensorrt import TENSORRT, TENSORRT_RTX
from qvec_deploy.runtimes.tensorrt.emulation import emulated_model, open_emulation
from qvec_deploy.runtimes.tensorrt.tensorrt_linear import DYNAMIC_QUANTIZE, TRT_DOMAIN, to_narrow
from qvec_deploy.tensors import Float32, Scheme

EXPECTED = {"w8a8": (1e-3, 0.014), "fp8": (0.01, 0.05), "nvfp4": (0.04, 0.19)}
"""Relative error of the logits where activations are quantized: twice what it is, and no less than half of it or so."""
ROWS = [(row.name, lowering.name) for row in (TENSORRT, TENSORRT_RTX) for lowering in row.lowerings]


def _nvfp4(x: Float32, step: np.float32) -> Float32:
    """What the emulation makes of TensorRT's operator and the two that read its outputs."""
    blocked = {"axis": -1, "block_size": 16}
    nodes = [
        helper.make_node(
            DYNAMIC_QUANTIZE, ["x", "step"], ["codes", "scales"], domain=TRT_DOMAIN, scale_type=17, **blocked
        ),
        helper.make_node("DequantizeLinear", ["scales", "step"], ["steps"]),
        helper.make_node("DequantizeLinear", ["codes", "steps"], ["y"], **blocked),
    ]
    x_info, y_info = (helper.make_tensor_value_info(name, TensorProto.FLOAT, x.shape) for name in "xy")
    given = [helper.make_tensor("step", TensorProto.FLOAT, [], [step])]
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(TRT_DOMAIN, 1)]
    graph = helper.make_graph(nodes, "nvfp4", [x_info], [y_info], given)
    model = emulated_model(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: Float32 = session.run(None, {"x": x})[0]
    return found


def _values(kind: str) -> Float32:
    """Blocks of many sizes; of nothing but zeros; larger than was calibrated; every tie between two codes."""
    generator = np.random.default_rng(0)
    if kind == "ties":
        ties = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0], np.float32)
        return np.concatenate([ties, -ties]).reshape(1, 1, 16)
    x = generator.normal(size=(2, 5, 96)) * np.exp(4 * generator.normal(size=(2, 5, 1)))
    x[0, 0] = 0
    return x.astype(np.float32)


@pytest.mark.parametrize(("kind", "share"), [("blocks", 1.0), ("blocks", 0.1), ("ties", 1.0)])
def test_nvfp4_is_that_of_numpy_and_of_modelopt(kind: str, share: float) -> None:
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    x = _values(kind)
    step = np.float32(share * np.abs(x).max() / (6 * 448))
    if kind == "ties":
        step = np.float32(1)  # so that a block's scale is 1, and its values are the codes
    found = _nvfp4(x, step)
    blocks = x.reshape(*x.shape[:-1], -1, 16)
    wanted = np.abs(blocks).max(-1, keepdims=True) / np.float32(6)
    scale = np.minimum(wanted / step, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * step
    ratio = np.clip(blocks / np.where(scale == 0, 1, scale), -6, 6)
    codes = ratio.astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    np.testing.assert_array_equal(found, (codes * scale).reshape(x.shape))
    quantized, scales, double = NVFP4QTensor.quantize(torch.from_numpy(x.copy()), 16, None, torch.tensor(step))
    other = quantized.dequantize(scale=scales, double_scale=double, block_sizes={-1: 16}).numpy()
    np.testing.assert_array_equal(found, other.reshape(x.shape))
    assert (found[x == 0] == 0).all()


def test_codes_that_a_type_does_not_hold() -> None:
    codes = np.arange(-4, 4, dtype=np.int8).reshape(2, 4)
    for kind in (TensorProto.INT4, TensorProto.INT8, TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT4E2M1):
        assert len(to_narrow("w", codes, kind).raw_data) == (4 if kind in (22, 23) else 8)
    with pytest.raises(IncompatibleError, match="FLOAT4E2M1 does not hold every code of w"):
        to_narrow("w", codes - 1, TensorProto.FLOAT4E2M1)
    with pytest.raises(IncompatibleError, match="FLOAT8E4M3FN does not hold every code of w"):
        to_narrow("w", codes * 17, TensorProto.FLOAT8E4M3FN)


@pytest.fixture(scope="module")
def sources(
    tmp_path_factory: pytest.TempPathFactory, pico_states: dict[str, dict[str, np.ndarray]]
) -> tuple[Path, np.ndarray]:
    folder = tmp_path_factory.mktemp("sources")
    return folder, write_sources(folder, pico_states["receiver"], Scheme(3, "channel", method="mse"))


@pytest.mark.parametrize(("runtime", "lowering"), ROWS)
def test_an_emulated_engine_agrees_with_pytorch(sources: tuple[Path, np.ndarray], runtime: str, lowering: str) -> None:
    folder, reference = sources
    backend = {row.name: row for row in (TENSORRT, TENSORRT_RTX)}[runtime].load()
    assert isinstance(backend, Emulator)
    with backend.emulate(folder, lowering, 1) as session:
        parity = check_parity(session, runtime, lowering, reference)
        assert session.run(parity_images(session.input_shape)[:1]).shape == reference[:1].shape
    least, most = EXPECTED.get(lowering, (0.0, 2e-3))
    assert least < parity.relative_error < most
    assert not list(folder.glob("*emulation*"))


def test_an_emulation_of_damaged_files(sources: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    folder, _ = sources
    for path in folder.iterdir():
        if path.is_file() and path.name != ACTIVATIONS_FILE:
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / ACTIVATIONS_FILE).write_text('{"amax": {"a": -1}}')
    with pytest.raises(IntegrityError, match="impossible magnitude"), open_emulation(tmp_path, "tensorrt", "fp8", 1):
        pass

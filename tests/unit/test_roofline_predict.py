"""The shortest time of a layer: by hand, and by the laws every prediction keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvec_deploy.bench.roofline.devices import LISTED
from qvec_deploy.bench.roofline.predict import Mode, mode_of, predict
from qvec_deploy.bench.roofline.roofline_values import REST, Device, MatrixProduct, Operation
from qvec_deploy.builder.context import BuildContext
from qvec_deploy.errors import IncompatibleError
from qvec_deploy.packed import Entry, PackedFile, pack, write_packed
from qvec_deploy.quantize.reference import quantize
from qvec_deploy.recipe import load_recipe
from qvec_deploy.runtimes.registry import RUNTIMES, runtime_bits_per_weight

CPU = Device("a CPU", "measured", 10.0, {"fp32": 100.0, "int8": 400.0}, threads=1)
FLOAT = Mode("fp32", 32.0, "fp32")


def _linear(rows: int, columns: int, tokens: int, name: str = "fc") -> Operation:
    return Operation(name, "linear", (MatrixProduct(tokens, columns, rows),), rows * columns, tokens * (rows + columns))


def test_by_hand() -> None:
    fc, rest = _linear(1000, 1000, tokens=1), Operation(REST, "rest", (), 0, 5000)
    found = predict([fc, rest], {"fc"}, FLOAT, CPU, 2)
    # 4 MB of weights and 2 x 8 KB of activations at 10 GB/s, against 4 million operations at 100 G/s
    assert found.layers[0].ms == pytest.approx((4e6 + 16e3) / 10e9 * 1e3) and found.layers[0].bound == "memory"
    assert found.layers[1].ms == pytest.approx(40e3 / 10e9 * 1e3) and found.layers[1].bound == "memory"
    assert found.ms == pytest.approx(0.4016 + 0.004) and found.batch_size == 2
    many = predict([fc], {"fc"}, FLOAT, CPU, 1000)
    assert many.layers[0].ms == pytest.approx(2e9 / 100e9 * 1e3) and many.layers[0].bound == "compute"


def test_modes_are_those_of_the_lowerings() -> None:
    assert mode_of("onnxruntime", "float", 32.0) == FLOAT
    assert mode_of("onnxruntime", "int4", 4.5) == Mode("fp32", 4.5, "fp32")
    assert mode_of("onnxruntime", "int8", 8.1) == Mode("fp32", 8.1, "int8")
    assert mode_of("torch-cuda", "packed", 3.1) == Mode("fp16", 3.1, "fp16")
    assert mode_of("tensorrt", "w8a8", 8.1) == Mode("fp16", 8.1, "int8")


def test_only_quantized_linears_change() -> None:
    layers = [_linear(500, 500, 300, "fc"), _linear(500, 500, 300, "head")]
    full, low = (predict(layers, {"fc"}, mode, CPU, 1).layers for mode in (FLOAT, Mode("fp32", 8.0, "int8")))
    assert low[0].ms == pytest.approx(full[0].ms / 4)  # compute-bound in both, at four times the rate
    assert low[1] == full[1]


def test_a_rate_that_is_not_known() -> None:
    without = replace(CPU, gflops={"fp32": 100.0})
    layers = [_linear(500, 500, 300)]
    assert predict(layers, {"fc"}, Mode("fp32", 8.0, "int8"), without, 1) == predict(layers, {"fc"}, FLOAT, CPU, 1)
    with pytest.raises(IncompatibleError, match="no fp32 rate of NVIDIA L4 is known"):
        predict(layers, {"fc"}, FLOAT, LISTED["l4"].device, 1)


operations = st.builds(_linear, st.integers(1, 4096), st.integers(1, 4096), st.integers(1, 1024))
devices = st.builds(
    lambda bandwidth, rate: Device("d", "measured", bandwidth, {"fp32": rate}, 1),
    st.floats(1, 1e4),
    st.floats(1, 1e6),
)


@given(operations, devices, st.integers(1, 256), st.floats(2, 32))
def test_never_below_either_bound(operation: Operation, device: Device, batch: int, bits: float) -> None:
    (layer,) = predict([operation], {"fc"}, Mode("fp32", bits, "fp32"), device, batch).layers
    compute = batch * operation.flops / (device.gflops["fp32"] * 1e9) * 1e3
    memory = (operation.weights * bits / 8 + 4 * batch * operation.values) / (device.bandwidth_gb_s * 1e9) * 1e3
    assert layer.ms >= compute * (1 - 1e-9) and layer.ms >= memory * (1 - 1e-9)
    assert layer.ms == pytest.approx(compute if layer.bound == "compute" else memory)


@given(operations, devices, st.integers(1, 256), st.integers(1, 256), st.floats(2, 32), st.floats(2, 32))
def test_more_images_and_wider_weights_are_never_faster(
    operation: Operation, device: Device, batch: int, more: int, bits: float, other: float
) -> None:
    def ms(images: int, width: float) -> float:
        return predict([operation], {"fc"}, Mode("fp32", width, "fp32"), device, images).ms

    assert ms(batch + more, bits) > ms(batch, bits)
    assert ms(batch + more, bits) <= ms(batch, bits) * (batch + more) / batch * (1 + 1e-9)
    assert ms(batch, max(bits, other)) >= ms(batch, min(bits, other))


@pytest.mark.parametrize("name", LISTED)
def test_one_token_is_bound_by_memory_everywhere(name: str) -> None:
    device = LISTED[name].device
    full, low = (predict([_linear(4096, 4096, 1)], {"fc"}, Mode("fp16", bits, "fp16"), device, 1) for bits in (16, 3))
    assert full.layers[0].bound == low.layers[0].bound == "memory"
    assert full.ms / low.ms == pytest.approx(16 / 3, rel=0.01)


@pytest.mark.parametrize(
    ("runtime", "lowering"),
    [(row.name, each.name) for row in RUNTIMES.values() for each in row.lowerings if 3 in each.bits],
)
def test_planned_bits_are_those_of_the_file(
    tmp_path: Path, pico_recipe: Callable[..., Path], runtime: str, lowering: str
) -> None:
    plan = BuildContext().plan(load_recipe(pico_recipe()))
    generator = np.random.default_rng(0)
    layout = {tensor.name: Entry(tensor.shape, tensor.scheme) for tensor in plan.quantized}
    values = {
        tensor.name: pack(quantize(generator.normal(size=tensor.shape).astype(np.float32), tensor.scheme))
        for tensor in plan.quantized
        if tensor.scheme is not None
    }
    write_packed(tmp_path / "w.safetensors", layout, values.items())
    expected = runtime_bits_per_weight(PackedFile.open(tmp_path / "w.safetensors").tensors.values(), runtime, lowering)
    assert runtime_bits_per_weight(plan.tensors, runtime, lowering) == pytest.approx(expected)

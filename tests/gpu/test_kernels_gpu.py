"""The kernels on a GPU: every case in every way, the inline assembly, graphs, and compiled PTX without Triton."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch
from kernel_cases import CASES, Case, dequantized, device_weight, excess, tensors

import qvec_deploy.runtimes.kernels.op  # noqa: F401 - registers the operator
from qvec_deploy.errors import IncompatibleError
from qvec_deploy.runtimes.kernels import launch
from qvec_deploy.runtimes.kernels.ahead import ARGUMENTS, DEEP_TILES, TILES, Compiled, Tile, compile_ahead

pytestmark = pytest.mark.gpu

SHAPES = [  # ViT-B's MLP, ViT-S's qkv, SO400M's MLP, and a large language model's
    Case("p32", 197, 3072, 768, seed=1),
    Case("p32", 1, 768, 3072, seed=2),
    Case("p32", 50, 768, 3072, group=64, dtype="bfloat16", seed=3),
    Case("rows", 197, 1152, 384, seed=4),
    Case("rows", 16, 1152, 4304, seed=5),
    Case("p32", 16, 8192, 8192, seed=6),
]


def _run(case: Case, values: dict[str, Any], way: launch.Way, asm: bool = True) -> torch.Tensor:
    return launch.run(values["x"], device_weight(case, values), values["bias"], way, asm=asm)


@pytest.mark.parametrize("asm", [True, False])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_are_within_rounding(case: Case, asm: bool) -> None:
    values = tensors(case, "cuda")
    assert excess(case, values, _run(case, values, case.tile, asm)) <= 1.0


@pytest.mark.parametrize("case", CASES, ids=str)
def test_assembly_gives_the_same_bits(case: Case) -> None:
    values = tensors(case, "cuda")
    assert torch.equal(_run(case, values, case.tile, asm=True), _run(case, values, case.tile, asm=False))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_dequantized_weights_are_exact(case: Case) -> None:
    values = tensors(case, "cuda")
    found = launch.dequantize(device_weight(case, values), getattr(torch, case.dtype))
    assert torch.equal(found.cpu(), dequantized(case, values))


@pytest.mark.parametrize("tile", [*TILES, *DEEP_TILES], ids=str)
@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_every_tile_is_within_rounding(case: Case, tile: Tile) -> None:
    from triton.runtime.errors import OutOfResources

    values = tensors(case, "cuda")
    try:
        y = _run(case, values, tile)
    except OutOfResources:
        assert tile in DEEP_TILES, "tiles of engines must fit every GPU"
        return
    assert excess(case, values, y) <= 1.0


@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_the_fallback_is_within_rounding(case: Case) -> None:
    """Weights rounded once, everything added in float32."""
    values = tensors(case, "cuda")
    assert excess(case, values, _run(case, values, None), rounded_weights=True) <= 1.0


def _op(case: Case, values: dict[str, Any]) -> torch.Tensor:
    y: torch.Tensor = torch.ops.qvec.linear(
        *(values[name] for name in ("x", "words", "scale", "bias")),
        case.layout, case.bits, case.k, case.group,
    )  # fmt: skip
    return y


@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_the_operator_is_timed_once_and_captured(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_ways", {})
    values = tensors(case, "cuda")
    first = _op(case, values)
    (way,) = launch._ways.values()
    assert excess(case, values, first, rounded_weights=way is None) <= 1.0
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = _op(case, values)
    graph.replay()
    assert excess(case, values, y, rounded_weights=way is None) <= 1.0
    assert list(launch._ways.values()) == [way]


def test_the_operator_is_one_for_pytorch() -> None:
    values = tensors(SHAPES[0], "cuda")
    inputs = tuple(values[name] for name in ("x", "words", "scale", "bias"))
    checks = torch.library.opcheck(torch.ops.qvec.linear, (*inputs, "p32", 3, SHAPES[0].k, 0))
    assert set(checks.values()) == {"SUCCESS"}


def test_no_rows_are_no_work() -> None:
    values = tensors(CASES[0], "cuda")
    values["x"] = values["x"][:0]
    assert _op(CASES[0], values).shape == (0, CASES[0].n)


def test_words_left_on_the_cpu_are_refused() -> None:
    values = tensors(CASES[0], "cuda")
    values["words"] = values["words"].cpu()
    with pytest.raises(IncompatibleError, match="x is on cuda:0 and words on cpu"):
        launch.linear(values["x"], device_weight(CASES[0], values), values["bias"])


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_compiled_ptx_runs_without_triton(case: Case, tile: Tile) -> None:
    values = tensors(case, "cuda")
    compiled = compile_ahead(**_weight(case), tile=tile)
    y = torch.full((case.m, case.n), torch.nan, dtype=values["x"].dtype, device="cuda")
    _launch(compiled, {**values, "m": case.m, "n": case.n, "k": case.k, "y": y}, case.m)
    assert excess(case, values, y) <= 1.0


def _weight(case: Case) -> dict[str, Any]:
    size = {"rows": case.n, "columns": case.k, "group_size": case.group}
    return {"layout": case.device_layout, "bits": case.bits, **size, "dtype": case.dtype}


def _launch(compiled: Compiled, values: dict[str, Any], m: int) -> None:
    """As an engine does: the driver assembles the PTX, and nothing but the documented arguments is passed."""
    torch.cuda.synchronize()
    driver = ctypes.CDLL("libcuda.so.1")
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    assert driver.cuModuleLoadData(ctypes.byref(module), compiled.ptx + b"\0") == 0
    assert driver.cuModuleGetFunction(ctypes.byref(function), module, compiled.name.encode()) == 0
    arguments = [
        ctypes.c_int32(value) if isinstance(value, int) else ctypes.c_void_p(value.data_ptr())
        for value in (values[name] for name in ARGUMENTS)
    ]
    pointers = (ctypes.c_void_p * len(arguments))(*[ctypes.addressof(argument) for argument in arguments])
    blocks = (*compiled.grid(m), compiled.threads, 1, 1)
    assert driver.cuLaunchKernel(function, *blocks, compiled.shared_bytes, None, pointers, None) == 0
    torch.cuda.synchronize()
    assert driver.cuModuleUnload(module) == 0

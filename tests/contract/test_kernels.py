"""The kernels keep to the meaning of the operator, and compile for every architecture, on a machine without a GPU.

Interpreted, everything but the inline assembly is shown; that is calculated here, instruction by instruction. Whether
a GPU agrees is shown by tests/gpu/test_kernels_gpu.py.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import triton
from kernel_cases import CASES, Case

import qvec_deploy.runtimes.kernels.op  # noqa: F401 - registers the operator
from qvec_deploy.errors import IncompatibleError
from qvec_deploy.runtimes.kernels import ahead, launch
from qvec_deploy.runtimes.kernels.ahead import (
    ARCHITECTURES,
    DEEP_TILES,
    SHARED_LIMIT,
    TILES,
    Tile,
    assemble,
    compile_ahead,
    usual_tile,
)
from qvec_deploy.runtimes.kernels.layouts import LAYOUTS, DeviceLayout, choose_layout

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
WEIGHTS = {"p32": (768, 3072), "rows": (1152, 384)}
FEW_SPILLS = 64  # bytes of a thread, stores and loads together: 36 by Triton 3.8, 12 by 3.9
NEWEST_PTX = (8, 0)  # which the drivers of CUDA 12.0 read: older than any that TensorRT 10.9 runs on


@pytest.fixture(scope="module")
def interpreted() -> dict[str, dict[str, Any]]:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", str(ROOT / "tests" / "kernel_cases.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    results: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return results


@pytest.mark.parametrize("case", CASES, ids=str)
def test_interpreted_kernels_are_within_rounding(case: Case, interpreted: dict[str, dict[str, Any]]) -> None:
    result = interpreted[str(case)]
    assert result["excess"] <= 1.0
    assert result["dequantized"], "not the codes times the scales"
    assert result["fallback"] <= 1.0


def test_the_fallback_rounds_weights_and_is_judged_so(interpreted: dict[str, dict[str, Any]]) -> None:
    """Held to exact weights it fails, which is why whoever times the ways must know which one was kept."""
    assert max(result["fallback_held_to_exact_weights"] for result in interpreted.values()) > 1.0


def test_the_fallback_adds_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, seen = torch.backends.cuda.matmul, []
    monkeypatch.setattr(launch, "dequantize", lambda *_: torch.zeros(2, 32, dtype=torch.float16))

    def dense(*_: Any) -> None:
        seen.append([getattr(settings, name) for name in launch._REDUCED])
        raise ZeroDivisionError

    monkeypatch.setattr(torch.nn.functional, "linear", dense)
    before = [getattr(settings, name) for name in launch._REDUCED]
    with pytest.raises(ZeroDivisionError):
        x, words, scale = torch.zeros(1, 32), torch.zeros(3, 2, dtype=torch.int32), torch.ones(2, 1)
        launch.run(x, launch.DeviceWeight(words, scale, LAYOUTS["rows"], 3, 32, 0), None, None)
    assert seen == [[False, False, False]]
    assert [getattr(settings, name) for name in launch._REDUCED] == before
    assert any(before), "PyTorch's defaults allow less precision: nothing was shown otherwise"


def test_the_cases_are_different() -> None:
    assert len({str(case) for case in CASES}) == len(CASES)
    assert all(case.device_layout.takes(case.n, case.k, case.bits, case.group) for case in CASES)


# --- the inline assembly, calculated


_BLOCK = re.compile(r"\{\s*\.reg \.b32 a, b, factor, offset;(.*?)\}", re.DOTALL)


def _run_block(text: str, words: tuple[np.ndarray, np.ndarray], dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Execute one block of the assembly on two registers of many threads."""
    registers: dict[str, np.ndarray] = {}
    named: list[str] = []  # outputs in the order of first mention, inputs likewise
    inputs = iter(words)

    def value(name: str) -> np.ndarray:
        if name not in registers:
            registers[name] = next(inputs) if name.startswith("%") else np.uint32(int(name, 0))
        return registers[name]

    for line in filter(None, (line.strip() for line in text.split(";"))):
        instruction, _, rest = line.partition(" ")
        target, *sources = [each.strip() for each in rest.split(",")]
        operands = [value(each) for each in sources]
        if instruction == "mov.b32":
            result = operands[0]
        elif instruction == "lop3.b32":
            result = _lop3(*operands)
        elif instruction == "prmt.b32":
            result = _prmt(*operands)
        else:
            assert instruction == f"fma.rn.{'f16' if dtype == 'float16' else 'bf16'}x2"
            result = _fma(*operands, dtype)
        registers[target] = result
        if target.startswith("%") and target not in named:
            named.append(target)
    first, second = named
    return registers[first], registers[second]


def _lop3(a: np.ndarray, b: np.ndarray, c: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The logical function of three bits whose value for (0xF0, 0xCC, 0xAA) is `table`."""
    result = np.zeros_like(a)
    for index in range(8):
        if int(table) >> index & 1:
            result |= (a if index & 4 else ~a) & (b if index & 2 else ~b) & (c if index & 1 else ~c)
    return result


def _prmt(a: np.ndarray, b: np.ndarray, selector: np.ndarray) -> np.ndarray:
    """Four bytes picked out of the eight of b and a."""
    pool = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    result = np.zeros_like(pool)
    for place in range(4):
        picked = int(selector) >> (4 * place) & 7
        result |= (pool >> np.uint64(8 * picked) & np.uint64(0xFF)) << np.uint64(8 * place)
    return result.astype(np.uint32)


def _halves(word: np.ndarray, dtype: str) -> list[np.ndarray]:
    bits = [np.asarray(word, np.uint32) & np.uint32(0xFFFF), np.asarray(word, np.uint32) >> np.uint32(16)]
    if dtype == "float16":
        return [each.astype(np.uint16).view(np.float16).astype(np.float64) for each in bits]
    return [(each << np.uint32(16)).view(np.float32).astype(np.float64) for each in bits]


def _fma(a: np.ndarray, b: np.ndarray, c: np.ndarray, dtype: str) -> np.ndarray:
    result = np.zeros_like(a)
    for place, (left, right, added) in enumerate(
        zip(_halves(a, dtype), _halves(b, dtype), _halves(c, dtype), strict=True)
    ):
        exact = left * right + added
        if dtype == "float16":
            assert (exact.astype(np.float16) == exact).all(), "a code is not exact"
            bits = exact.astype(np.float16).view(np.uint16).astype(np.uint32)
        else:
            bits = exact.astype(np.float32).view(np.uint32) >> np.uint32(16)
            assert ((bits << np.uint32(16)).view(np.float32) == exact).all(), "a code is not exact"
        result |= bits << np.uint32(16 * place)
    return result


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_inline_assembly_gives_the_codes(bits: int, dtype: ahead.Float) -> None:
    compiled = compile_ahead(layout="p32", bits=bits, rows=64, columns=256, dtype=dtype, tile=TILES[0])
    blocks = {re.sub(r"%\w+", "%", text): text for text in _BLOCK.findall(compiled.ptx.decode())}
    fields = (10 if dtype == "float16" else 7) // bits
    assert len(blocks) == min(fields, 16 // bits)  # one for every place in a mantissa
    words = np.random.default_rng(bits).integers(0, 1 << 32, (2, 1000), dtype=np.uint64).astype(np.uint32)
    for text in blocks.values():
        mask = int(re.search(r"lop3.b32 a, %\w+, (0x[0-9a-f]+)", text)[1], 0)  # type: ignore[index]
        place = (mask & -mask).bit_length() - 1
        assert mask == (((1 << bits) - 1) << place) * 0x10001
        low, high = _run_block(text, (words[0], words[1]), dtype)
        for found, shift in ((low, place), (high, 16 + place)):
            codes = (words >> np.uint32(shift) & np.uint32((1 << bits) - 1)).astype(int) - (1 << (bits - 1))
            assert (np.stack(_halves(found, dtype)) == codes).all()


# --- compiled


def _weight(layout: str) -> dict[str, Any]:
    rows, columns = WEIGHTS[layout]
    return {"layout": layout, "bits": 3, "rows": rows, "columns": columns}


def _ptx_version(ptx: bytes) -> tuple[int, int]:
    found = re.match(rb"\.version (\d+)\.(\d+)\n", ptx)
    assert found
    return int(found[1]), int(found[2])


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("layout", list(WEIGHTS))
def test_kernels_of_engines_keep_to_the_limits(layout: str, tile: Tile) -> None:
    compiled = compile_ahead(**_weight(layout), tile=tile)
    assert compiled.shared_bytes <= SHARED_LIMIT
    assert compiled.assembly.spill_bytes <= FEW_SPILLS
    assert b"\n.target sm_80\n" in compiled.ptx
    assert _ptx_version(compiled.ptx) <= NEWEST_PTX


@pytest.mark.parametrize(
    "change", [{}, {"bits": 2}, {"bits": 4}, {"group_size": 64}, {"asm": False}, {"dtype": "bfloat16"}]
)
@pytest.mark.parametrize("layout", list(WEIGHTS))
def test_code_for_the_oldest_gpus_is_assembled_for_every_later_one(layout: str, change: dict[str, Any]) -> None:
    compiled = compile_ahead(**{**_weight(layout), **change}, tile=usual_tile(197))
    assert compiled.shared_bytes <= SHARED_LIMIT
    assert _ptx_version(compiled.ptx) <= NEWEST_PTX
    later = ARCHITECTURES if not change else ARCHITECTURES[:1]
    assert all(assemble(compiled.ptx, each).spill_bytes <= FEW_SPILLS for each in later)


@pytest.mark.parametrize(("layout", "sm"), [("rows", 80), ("rows", 90), ("rows", 120), ("p32", 80)])
def test_ptx_declares_the_oldest_version_that_has_what_it_says(layout: str, sm: int) -> None:
    ptx = compile_ahead(**_weight(layout), tile=TILES[3], sm=sm).ptx
    major, minor = _ptx_version(ptx)
    assemble(ptx, sm)
    if (major, minor) > (7, 0):
        older = f"{major}.{minor - 1}" if minor else f"{major - 1}.8"
        with pytest.raises(IncompatibleError, match="ptxas does not assemble"):
            assemble(re.sub(rb"^\.version .*", f".version {older}".encode(), ptx), sm)


@pytest.mark.parametrize("needed", [b"ld.shared::cta.b32 %r1, [%r1];", b"mov.b32 %r1, 0;"])
def test_the_version_follows_the_instructions(needed: bytes) -> None:
    text = b".version 8.5\n.target sm_80\n.address_size 64\n.visible .entry kernel()\n{\n.reg .b32 %r<2>;\n"
    found = ahead._with_least_version((text + needed + b"\nret;\n}\n").decode(), 80).encode()
    assert _ptx_version(found) == ((7, 8) if b"::cta" in needed else (7, 0))
    assert found.partition(b"\n")[2] == text.partition(b"\n")[2] + needed + b"\nret;\n}\n"


def test_ptx_has_the_arguments_and_the_oldest_target() -> None:
    compiled = compile_ahead(layout="p32", bits=3, rows=768, columns=768, tile=TILES[3])
    text = compiled.ptx.decode()
    head = re.search(rf"\.visible \.entry {compiled.name}\((.*?)\)", text, re.DOTALL)
    assert head
    kinds = re.findall(r"\.param \.(\w+)", head[1])
    assert kinds == ["u64", "u64", "u64", "u64", "u32", "u32", "u32", "u64"]
    assert re.match(r"\.version \d\.\d\n\.target sm_80\n", text)
    assert f".reqntid {compiled.threads}" in text
    assert compiled.grid(197) == (4, 12, 1)


def test_what_is_compiled_only_for_the_gpu_at_hand_compiles() -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from qvec_deploy.runtimes.kernels import triton_kernels

    types = {"x": "*fp16", "words": "*i32", "scale": "*fp32", "y": "*fp32", "parts": "*fp32"}
    types |= dict.fromkeys(("m", "n", "k"), "i32")
    tile = next(tile for tile in DEEP_TILES if tile.split > 1)
    shape = {"GROUP": 0, "SPLIT": tile.split, "bias": None}
    block = {"BITS": 3, "ASM": True, "BLOCK_M": tile.rows, "BLOCK_N": tile.columns}
    kernels = [(triton_kernels.linear_p32, shape | block), (triton_kernels.combine, shape | {"BLOCK": 256})]
    for kernel, constants in kernels:
        signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
        built = triton.compile(
            ASTSource(kernel, signature, constants, {}),
            target=GPUTarget("cuda", 90, 32),
            options={"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True},
        )
        assert built.asm["cubin"]


@pytest.mark.parametrize(("sm", "instruction"), [(90, "wgmma.mma_async"), (100, "tcgen05.mma")])
@pytest.mark.parametrize("layout", list(WEIGHTS))
def test_large_tiles_reach_the_tensor_cores_of_their_own_gpu(layout: str, sm: int, instruction: str) -> None:
    """What is taken for many rows of x where nothing was timed; a Hopper or Blackwell would compile this."""
    compiled = compile_ahead(**_weight(layout), tile=usual_tile(197), sm=sm)
    assert instruction in compiled.ptx.decode()
    assert compiled.assembly.spill_bytes == 0


def test_weights_of_all_sizes_share_their_ptx() -> None:
    first = compile_ahead(layout="p32", bits=3, rows=768, columns=768, tile=TILES[3])
    assert compile_ahead(layout="p32", bits=3, rows=3072, columns=768, tile=TILES[3]).ptx == first.ptx


def _ptx_with(body: str, parameters: int) -> str:
    declared = ",\n".join(f".param .u64 .ptr .global .align 1 kernel_param_{i}" for i in range(parameters))
    return f".version 9.4\n.target sm_80\n.visible .entry kernel(\n{declared}\n)\n{{\n{body} // why\nret;\n}}\n"


def test_hidden_parameters_are_left_out() -> None:
    text = ahead._strip(_ptx_with("ld.param.u64 %rd1, [kernel_param_1];", 4), "kernel", 2)
    assert "kernel_param_1\n)" in text
    assert "kernel_param_2" not in text
    assert "why" not in text


@pytest.mark.parametrize(
    ("body", "parameters", "says"),
    [("ld.param.u64 %rd1, [kernel_param_3];", 4, "uses 1 of those"), ("", 1, "has 1 parameters")],
)
def test_hidden_parameters_that_are_used_are_refused(body: str, parameters: int, says: str) -> None:
    with pytest.raises(IncompatibleError, match=says):
        ahead._strip(_ptx_with(body, parameters), "kernel", 2)


WEIGHT: dict[str, Any] = {"layout": "p32", "bits": 3, "rows": 64, "columns": 256}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"columns": 384}, "does not take a weight of shape"),
        ({"layout": "p64"}, "words in layout 'p64'"),
        ({"sm": 75}, "not compiled for sm_75"),
        ({"sm": 61}, "not compiled for sm_61"),
        ({"group_size": 24}, "in groups of 24"),
        ({"bits": 5}, "at 5 bits"),
    ],
)
def test_what_cannot_be_compiled_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(IncompatibleError, match=says):
        compile_ahead(**{**WEIGHT, **change})


def test_ptx_that_ptxas_refuses_is_an_error() -> None:
    with pytest.raises(IncompatibleError, match="ptxas does not assemble"):
        assemble(b".version 7.0\n.target sm_80\nnonsense\n", 80)


def test_without_triton_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton.backends.nvidia", None)
    with pytest.raises(IncompatibleError, match="kernels cannot be compiled"):
        compile_ahead(**WEIGHT, tile=Tile(32, 32, 1, 1))


def test_interpreted_kernels_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(IncompatibleError, match="interpreted here"):
        compile_ahead(**WEIGHT, tile=Tile(32, 32, 1, 1))


# --- the operator for PyTorch, on a CPU


def _arguments(n: int, k: int, bits: int = 3, group: int = 0, dtype: torch.dtype = torch.float16) -> dict[str, Any]:
    generator = np.random.default_rng(n + k)
    codes = generator.integers(-(1 << (bits - 1)), 1 << (bits - 1), (n, k), dtype=np.int8)
    layout = choose_layout(n, k, bits, group)
    groups = k // group if group else 1
    return {
        "x": torch.from_numpy(generator.standard_normal((2, 5, k)).astype(np.float32)).to(dtype),
        "words": torch.from_numpy(layout.pack(codes, bits)),
        "scale": torch.from_numpy(generator.uniform(0.01, 0.02, (n, groups)).astype(np.float32)),
        "bias": torch.from_numpy(generator.standard_normal(n).astype(np.float32)).to(dtype),
        "layout_id": layout.id,
        "bits": bits,
        "columns": k,
        "group_size": group,
    }


def _device(arguments: dict[str, Any], layout: DeviceLayout) -> tuple[Any, ...]:
    """x, the weight and the bias."""
    weight = {name: arguments[name] for name in ("words", "scale", "bits", "columns", "group_size")}
    return arguments["x"], launch.DeviceWeight(**weight, layout=layout), arguments["bias"]


@pytest.mark.parametrize("bias", [False, True])
def test_the_operator_is_one_for_pytorch(bias: bool) -> None:
    arguments = _arguments(64, 256)
    if not bias:
        arguments["bias"] = None
    checks = torch.library.opcheck(torch.ops.qvec.linear, tuple(arguments.values()))
    assert set(checks.values()) == {"SUCCESS"}
    assert torch.ops.qvec.linear(**arguments).shape == (2, 5, 64)


@pytest.mark.parametrize("case", CASES[::3], ids=str)
def test_the_operator_on_a_cpu_is_within_rounding(case: Case) -> None:
    from kernel_cases import excess, tensors

    values = tensors(case, "cpu")
    inputs = [values[name] for name in ("x", "words", "scale", "bias")]
    y = torch.ops.qvec.linear(*inputs, case.layout, case.bits, case.k, case.group)
    assert excess(case, values, y) <= 1.0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": torch.zeros(2, 255, dtype=torch.float16)}, "x has shape"),
        ({"x": torch.zeros((), dtype=torch.float16)}, "x has shape"),
        ({"x": torch.zeros(2, 256)}, "x is torch.float32"),
        ({"x": torch.zeros(256, 2, dtype=torch.float16).T}, "x is not contiguous"),
        ({"x": torch.zeros(2, 256, dtype=torch.bfloat16)}, "bias is torch.float16"),
        ({"words": torch.zeros((48, 31), dtype=torch.int32)}, "words is torch.int32 of shape"),
        ({"words": torch.zeros((48, 32), dtype=torch.int64)}, "words is torch.int64"),
        ({"words": torch.zeros((32, 48), dtype=torch.int32).T}, "words is not contiguous"),
        ({"words": torch.zeros((48, 32), dtype=torch.int32, device="meta")}, "x is on cpu and words on meta"),
        ({"scale": torch.ones(64, 2)}, "scale is torch.float32 of shape"),
        ({"scale": torch.ones(64, 1, dtype=torch.float16)}, "scale is torch.float16"),
        ({"bias": torch.zeros(63, dtype=torch.float16)}, "bias is torch.float16 of shape"),
        ({"layout_id": "p31"}, "words in layout 'p31'"),
        ({"group_size": 24}, "in groups of 24"),
        ({"bits": 5}, "at 5 bits"),
    ],
)
def test_arguments_that_do_not_belong_together_are_refused(change: dict[str, Any], says: str) -> None:
    arguments = {**_arguments(64, 256), **change}
    layout = LAYOUTS.get(arguments.pop("layout_id"))
    if layout is None:
        with pytest.raises(IncompatibleError, match=says):
            torch.ops.qvec.linear(**{**_arguments(64, 256), **change})
        return
    with pytest.raises(IncompatibleError, match=says):
        launch.check(*_device(arguments, layout))


def test_tensors_on_a_cpu_are_refused_by_the_kernels() -> None:
    arguments = _arguments(64, 256)
    with pytest.raises(IncompatibleError, match="the tensors are on cpu"):
        launch.linear(*_device(arguments, LAYOUTS[arguments.pop("layout_id")]))


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> dict[Any, launch.Way]:
    """What is kept of timings, empty, on a GPU that captures nothing."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(launch, "_ways", {})
    return launch._ways


def test_the_fastest_way_is_kept_and_one_that_does_not_fit_is_left_out(
    ways: dict[Any, launch.Way], monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.runtime.errors import OutOfResources

    seen: list[launch.Way] = []

    def bench(run: Any, **_: Any) -> float:
        run()
        return {TILES[1]: 2.0, None: 3.0}.get(seen[-1], 9.0)

    def how(way: launch.Way) -> torch.Tensor:
        seen.append(way)
        if way == TILES[0]:
            raise OutOfResources(1, 0, "shared memory")
        if way == TILES[2]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.zeros(1)

    monkeypatch.setattr("triton.testing.do_bench", bench)
    assert launch._way_for(("shape",), how, 17) == TILES[1]
    assert seen == launch.ways(17)
    assert launch._way_for(("shape",), how, 17) == TILES[1]
    assert seen == launch.ways(17), "timed once"
    assert ways == {("shape",): TILES[1]}


def test_a_gpu_too_full_to_time_anything_goes_the_usual_way_and_keeps_nothing(
    ways: dict[Any, launch.Way], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("triton.testing.do_bench", full)
    assert launch._way_for(("shape",), lambda way: torch.zeros(1), 197) == usual_tile(197)
    assert not ways


def test_nothing_is_timed_while_a_graph_is_captured(
    ways: dict[Any, launch.Way], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr("triton.testing.do_bench", lambda *_, **__: pytest.fail("timed"))
    assert launch._way_for(("shape",), lambda way: torch.zeros(1), 5) == usual_tile(5)
    assert not ways


@pytest.mark.parametrize("m", [1, 16, 17, 50, 64, 65, 197, 1576])
def test_ways_fit_the_rows_of_x(m: int) -> None:
    ways = launch.ways(m)
    assert ways[-1] is None, "dequantized and multiplied is always among them"
    tiles = [way for way in ways if way]
    assert usual_tile(m) in tiles
    assert all(tile.rows < 2 * max(m, 16) and (tile.split == 1 or m <= 16) for tile in tiles)

"""The kernels' benchmark: what needs no GPU of it, its counting and its judging."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.slow

SCRIPTS = Path(__file__).parents[2] / "scripts"

SASS = """
\t.target\tsm_90
.text.linear:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/              @!P0 BRA `(.L_x_2) ;
.L_x_0:
        /*0020*/                   LDG.E R2, [R4] ;
.L_x_1:
        /*0030*/                   LOP3.LUT R2, R2, 0x70007, RZ, 0xc0, !PT ;
        /*0040*/                   HMMA.16816.F32 R8, R4, R2, R8 ;
        /*0050*/                   HMMA.16816.F32 R12, R4, R3, R12 ;
        /*0060*/               @P1 BRA `(.L_x_1) ;
        /*0070*/               @P0 BRA `(.L_x_0) ;
.L_x_2:
        /*0080*/                   HMMA.16816.F32 R8, R4, R2, R8 ;
        /*0090*/                   EXIT ;
.L_x_3:
        /*00a0*/                   BRA `(.L_x_3);
"""


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    spec = importlib.util.spec_from_file_location("bench_kernels", SCRIPTS / "bench_kernels.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_main_loop_is_the_innermost_with_most_mma(bench: ModuleType) -> None:
    import kernel_instructions

    loop = kernel_instructions.main_loop(SASS)
    assert loop == kernel_instructions.Loop(instructions=4, mma=2)
    assert loop.others_per_mma == 1.0
    assert kernel_instructions.main_loop(SASS.replace("HMMA", "FFMA")) is None


def test_a_compiled_kernel_has_a_main_loop(bench: ModuleType) -> None:
    import kernel_instructions

    from qvec_deploy.runtimes.kernels.ahead import TILES, assemble, compile_ahead

    compiled = compile_ahead(layout="p32", bits=3, rows=768, columns=768, tile=TILES[2])
    loop = kernel_instructions.main_loop(kernel_instructions.disassemble(assemble(compiled.ptx, 89).cubin))
    assert loop is not None
    assert loop.mma % 16 == 0, "a block of 256 columns is 16 steps of 16"
    assert loop.others_per_mma < 20


def test_shapes_are_those_of_vision_transformers(bench: ModuleType) -> None:
    found = bench.shapes(["B", "H"])
    assert found["ViT-B qkv"] == (2304, 768)
    assert found["ViT-H fc2"] == (1280, 5120)
    assert len(found) == 9
    assert bench.shapes(["none"]) == {"8192x8192": (8192, 8192)}


def test_cold_copies_overflow_the_cache(bench: ModuleType) -> None:
    assert bench.copies_for(10**6, False, 5e7) == 1
    assert bench.copies_for(10**6, True, 5e7) * 10**6 > 2 * 5e7
    assert bench.copies_for(1, True, 5e7) == bench.MOST_COPIES


def test_the_engines_tile_is_chosen_with_the_cache_as_cold_as_the_row(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every copy of the weight is read in turn, however many there are; CUDA is played here."""
    import kernel_candidates
    import torch

    from qvec_deploy.runtimes.kernels.layouts import choose_layout

    read: list[int] = []
    graphs: list[int] = []

    class Kernel:
        def __init__(self, compiled: Any) -> None:
            pass

        def launch(self, values: dict[str, Any], m: int) -> None:
            read.append(int(values["words"][0, 0]))

    def record(launch: Any, launches: int) -> None:
        read.clear()
        for i in range(launches):
            launch(i)
        graphs.append(launches)

    monkeypatch.setattr(kernel_candidates, "DriverKernel", Kernel)
    monkeypatch.setattr(kernel_candidates, "record_graph", record)
    monkeypatch.setattr(kernel_candidates, "replay_us", lambda graph: 1.0)
    for copies, launches in ((1, 32), (100, 100)):
        words = torch.arange(copies, dtype=torch.int32)[:, None, None].expand(copies, 48, 32)
        x = torch.zeros((1, 256), dtype=torch.float16)
        kernel_candidates.fastest_tile(choose_layout(64, 256, 3), (1, 64, 256), x, words, None, None)
        assert set(graphs) == {launches}
        assert set(read) == set(range(copies))
        graphs.clear()


def _row(shape: str, m: int, ratio: float, l2: str = "cold") -> dict[str, Any]:
    return {"shape": shape, "m": m, "l2": l2, "native": {"ratio": ratio}}


def _measured(**overrides: Any) -> dict[str, Any]:
    rows = [_row("8192x8192", 1, 3.5), _row("8192x8192", 16, 3.1), _row("8192x8192", 197, 0.5)]
    rows += [_row("ViT-B qkv", 197, 1.1), _row("ViT-S fc1", 1576, 0.8), _row("ViT-S fc1", 1576, 0.1, "warm")]
    return {"rows": rows, "end_to_end": {"ratio": 1.1, "weight_bytes_ratio": 0.2}} | overrides


def test_aims_that_are_met_are_not_missed(bench: ModuleType) -> None:
    assert bench.missed_aims(_measured()) == []


def test_the_worst_row_judges(bench: ModuleType) -> None:
    rows = [*_measured()["rows"], _row("8192x8192", 16, 2.9), _row("ViT-H proj", 197, 0.9)]
    missed = bench.missed_aims(_measured(rows=rows, end_to_end={"ratio": 0.9, "weight_bytes_ratio": 0.3}))
    assert missed == [
        "8192x8192, M <= 16, native: 2.90x at 8192x8192, M = 16, wanted 3x",
        "ViT shapes, M = 197, native: 0.90x at ViT-H proj, M = 197, wanted 1x",
        "end to end, batch 1: 0.90x, wanted 1x",
        "end to end, batch 1: 0.300 of fp16's weight bytes, wanted 0.21",
    ]


def test_what_was_not_measured_is_missed(bench: ModuleType) -> None:
    assert [line.endswith("not measured") for line in bench.missed_aims({})] == [True] * 4


def test_a_record_is_named_by_day_and_gpu(bench: ModuleType, tmp_path: Path) -> None:
    document = {"date": "2026-11-23T10:00:00+00:00", "gpu": {"name": "NVIDIA H100 80GB HBM3"}, "rows": []}
    path = bench.write_record(tmp_path / "records", document)
    assert path.name == "kernels_2026-11-23_nvidia_h100_80gb_hbm3.json"
    assert json.loads(path.read_text()) == document


def test_without_a_gpu_the_table_is_called_static_and_no_aim_is_met(bench: ModuleType, tmp_path: Path) -> None:
    code = "import kernel_instructions as k, sys, bench_kernels as b\n"
    code += (
        "entry = dict(layout='p32', tile='t', sm=90, others_per_mma=4.5, registers=9, spill_bytes=0, shared_bytes=9)\n"
    )
    code += "b.static_table = lambda: [entry]\nsys.exit(b.main())"
    command = [sys.executable, "-c", code, "--static", "--check", "--record", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=SCRIPTS)
    assert done.returncode == 3, done.stderr
    assert "STATIC TABLE" in done.stdout
    assert "4.50 (  9)" in done.stdout
    assert done.stderr.count("not measured") == 4
    (record,) = tmp_path.glob("kernels_*_static.json")
    document = json.loads(record.read_text())
    assert (document["kind"], document["static"][0]["sm"]) == ("static", 90)
    assert len(document["missed"]) == 4
    assert document["environment"]["packages"]["torch"]

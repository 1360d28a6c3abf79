"""The plugin in C++: its packing on the CPU against numpy bit for bit, its kernels on a CPU and by nvcc."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kernel_cases import CASES as KERNEL_CASES
from kernel_cases import Case, dequantized, excess, tensors

from qvec_deploy.runtimes.kernels.layouts import LAYOUTS
from qvec_deploy.runtimes.kernels.plugin_config import PluginConfig
from qvec_deploy.runtimes.tensorrt.plugin_library import SOURCES

DECLARATIONS = Path(__file__).parents[1] / "tensorrt_declarations"
CUDA_ON_CPU = Path(__file__).parents[1] / "cuda_on_cpu"
COMPILERS = {
    "g++": ["g++", "-std=c++17", "-O1", "-Wall", "-Werror", "-shared", "-fPIC"],
    "nvcc": ["nvcc", "-std=c++17", "-O1", "-x", "cu", "-shared", "-Xcompiler", "-fPIC"],
}
ARCHITECTURES = (75, 80, 86, 87, 89, 90, 100, 120)
CASES = [
    ("p32", 64, 256, 0),
    ("p32", 192, 768, 0),
    ("p32", 128, 512, 16),
    ("p32", 64, 1024, 512),
    ("rows", 1, 1, 0),
    ("rows", 70, 33, 0),
    ("rows", 129, 191, 0),
    ("rows", 10, 96, 48),
    ("rows", 192, 576, 0),
]

COMPUTED = [
    case for case in KERNEL_CASES if case.dtype == "float16" and case.bits <= 4 and case.tile.split == 1
]  # these kernels know float16 and 2 to 4 bits


def need(tool: str) -> None:
    """Skip where a tool is missing."""
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")


@pytest.fixture(scope="module", params=list(COMPILERS))
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    need(request.param)
    library = tmp_path_factory.mktemp("layout") / "liblayout.so"
    command = [*COMPILERS[request.param], f"-I{SOURCES}", str(DECLARATIONS / "layout_on_cpu.cpp"), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = ctypes.CDLL(str(library))
    loaded.word_count.restype = ctypes.c_int64
    return loaded


def _at(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize(("layout", "rows", "columns", "group"), CASES)
def test_words_codes_and_values_are_numpys(
    compiled: Any, layout: str, rows: int, columns: int, group: int, bits: int
) -> None:
    draw, p32 = np.random.default_rng(rows + columns + bits), layout == "p32"
    codes = draw.integers(-(1 << (bits - 1)), 1 << (bits - 1), (rows, columns)).astype(np.int8)
    scale = draw.uniform(1e-3, 1, (rows, columns // group if group else 1)).astype(np.float32)
    words = LAYOUTS[layout].pack(codes, bits)
    assert compiled.word_count(p32, bits, rows, columns) == words.size

    packed = np.zeros_like(words)
    compiled.pack_codes(p32, bits, _at(codes), rows, columns, _at(packed))
    assert (packed == words).all()

    decoded = np.zeros_like(codes)
    compiled.decode_codes(p32, bits, _at(words), rows, columns, _at(decoded))
    assert (decoded == codes + 100).all(), "every code once"

    values = np.empty(codes.shape, np.float32)
    compiled.values_of(p32, bits, _at(words), _at(scale), rows, columns, group, _at(values))
    expected = codes * np.repeat(scale, columns // scale.shape[1], axis=1)
    assert expected.dtype == np.float32 and values.tobytes() == expected.tobytes()
    if hasattr(compiled, "halves_of"):  # nvcc's own conversion, on the CPU
        halves = np.empty(codes.shape, np.float16)
        compiled.halves_of(_at(values), ctypes.c_int64(values.size), _at(halves))
        assert halves.tobytes() == expected.astype(np.float16).tobytes()


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernels themselves, compiled for the CPU; only the notation of launches is another."""
    need("g++")
    folder = tmp_path_factory.mktemp("kernels")
    text = (SOURCES / "qvec_linear.cu").read_text(encoding="utf-8")
    launched, count = re.subn(
        r"(\w+<decltype\(layout\)>)<<<grid, (\w+), 0, stream>>>\(", r"run_grid(\1, grid, \2, ", text
    )
    assert count == 2 and "<<<" not in launched
    (folder / "qvec_linear.cpp").write_text(launched, encoding="utf-8")
    includes = [f"-I{each}" for each in (SOURCES, DECLARATIONS, CUDA_ON_CPU)]
    command = ["g++", "-std=c++20", "-O2", "-shared", "-fPIC", "-pthread", *includes]
    done = subprocess.run(
        [*command, str(folder / "qvec_linear.cpp"), "-o", str(folder / "lib.so")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(folder / "lib.so"))


@pytest.mark.slow
@pytest.mark.parametrize("case", COMPUTED, ids=str)
def test_kernels_compute_what_they_should_on_a_cpu(kernels: Any, case: Case) -> None:
    values = tensors(case, "cpu")
    bias = values["bias"] if values["bias"] is not None else torch.zeros(case.n, dtype=torch.float16)
    layout = case.device_layout
    config = str(PluginConfig(layout.id, layout.version, case.bits, case.n, case.k, case.group)).encode()
    words, scale = (_place(values[name]) for name in ("words", "scale"))
    y = torch.full((case.m, case.n), torch.nan, dtype=torch.float16)
    assert kernels.qvec_linear(config, _place(values["x"]), words, scale, _place(bias), case.m, _place(y), None) == 0
    assert excess(case, values, y) <= 1.0
    dense = torch.full((case.n, case.k), torch.nan, dtype=torch.float16)
    assert kernels.qvec_dequantize(config, words, scale, _place(dense), None) == 0
    assert torch.equal(dense, dequantized(case, values))


@pytest.mark.parametrize(
    "change",
    [
        ("layout=p32", "layout=p64"),
        ("layout_version=1", "layout_version=2"),
        ("bits=3", "bits=5"),
        ("rows=64", "rows=63"),
        ("columns=256", "columns=255"),
        ("group_size=0", "group_size=24"),
        ("sm=80", "sm=80;more=1"),
    ],
)
def test_weights_that_the_kernels_do_not_know_are_refused(kernels: Any, change: tuple[str, str]) -> None:
    config = str(PluginConfig("p32", 1, 3, 64, 256))
    assert kernels.qvec_linear(config.encode(), None, None, None, None, 0, None, None) == 0
    assert change[0] in config
    assert kernels.qvec_linear(config.replace(*change).encode(), None, None, None, None, 0, None, None) != 0


def _place(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


@pytest.mark.slow
def test_kernels_fit_every_gpu_without_spills(tmp_path: Path) -> None:
    need("nvcc")
    targets = [flag for sm in ARCHITECTURES for flag in ("-gencode", f"arch=compute_{sm},code=sm_{sm}")]
    command = ["nvcc", "-std=c++17", "-c", "-Werror", "all-warnings", "-Xptxas", "-v", "--threads", "2", *targets]
    source = str(SOURCES / "qvec_linear.cu")
    done = subprocess.run(
        [*command, f"-I{DECLARATIONS}", source, "-o", str(tmp_path / "plugin.o")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = done.stdout + done.stderr
    kernels = re.findall(r"Compiling entry function '(\w+)' for 'sm_(\d+)'", told)
    assert sorted({int(sm) for _, sm in kernels}) == list(ARCHITECTURES)
    assert len(kernels) == 12 * len(ARCHITECTURES), "two kernels, two layouts, three widths"
    assert set(re.findall(r"(\d+) bytes spill", told)) == {"0"}
    assert max(int(size) for size in re.findall(r"(\d+) bytes smem", told)) <= 48 * 1024
    assert max(int(count) for count in re.findall(r"Used (\d+) registers", told)) <= 168


@pytest.mark.slow
def test_cmake_builds_the_library(tmp_path: Path) -> None:
    for tool in ("cmake", "nvcc", "nm"):
        need(tool)
    settings = [f"-DTENSORRT_ROOT={DECLARATIONS}", "-DCMAKE_CUDA_ARCHITECTURES=87", "-DCMAKE_CUDA_COMPILER=nvcc"]
    for command in (
        ["cmake", "-S", str(SOURCES), "-B", str(tmp_path), *settings],
        ["cmake", "--build", str(tmp_path)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", str(tmp_path / "libqvec_linear.so")], capture_output=True, text=True, check=True
    )
    assert {line.split()[-1] for line in listed.stdout.splitlines()} == {
        "getCreators",
        "qvec_dequantize",
        "qvec_linear",
        "setLoggerFinder",
    }

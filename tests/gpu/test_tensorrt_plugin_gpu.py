"""The kernels of the plugin in C++ on a GPU, without TensorRT: fused and dequantizing, in both layouts."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel_cases import CASES, Case, dequantized, excess, tensors

from qvec_deploy.runtimes.kernels.plugin_config import PluginConfig
from qvec_deploy.runtimes.tensorrt.plugin_library import SOURCES

pytestmark = pytest.mark.gpu

DECLARATIONS = Path(__file__).parents[1] / "tensorrt_declarations"
HALF = [case for case in CASES if case.dtype == "float16" and case.bits <= 4]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    made = tmp_path_factory.mktemp("plugin") / "libqvec_linear.so"
    command = ["nvcc", "-std=c++17", "-arch=native", "-shared", "-Xcompiler", "-fPIC", f"-I{DECLARATIONS}"]
    subprocess.run([*command, str(SOURCES / "qvec_linear.cu"), "-o", str(made)], check=True)
    return ctypes.CDLL(str(made))


def _config(case: Case) -> bytes:
    layout = case.device_layout
    return str(PluginConfig(layout.id, layout.version, case.bits, case.n, case.k, case.group)).encode()


def _at(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


@pytest.mark.parametrize("case", HALF, ids=str)
def test_the_fused_kernel_is_within_rounding(library: Any, case: Case) -> None:
    values = tensors(case, "cuda")
    bias = values["bias"] if values["bias"] is not None else torch.zeros(case.n, dtype=torch.float16, device="cuda")
    y = torch.full((case.m, case.n), torch.nan, dtype=torch.float16, device="cuda")
    torch.cuda.synchronize()
    inputs = [_at(each) for each in (values["x"], values["words"], values["scale"], bias)]
    assert library.qvec_linear(_config(case), *inputs, case.m, _at(y), None) == 0
    torch.cuda.synchronize()
    assert excess(case, values, y) <= 1.0


@pytest.mark.parametrize("case", HALF, ids=str)
def test_dequantized_weights_are_exact(library: Any, case: Case) -> None:
    values = tensors(case, "cuda")
    dense = torch.full((case.n, case.k), torch.nan, dtype=torch.float16, device="cuda")
    torch.cuda.synchronize()
    assert library.qvec_dequantize(_config(case), _at(values["words"]), _at(values["scale"]), _at(dense), None) == 0
    torch.cuda.synchronize()
    assert torch.equal(dense.cpu(), dequantized(case, values))

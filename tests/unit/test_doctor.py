"""`qvec-deploy doctor`: what it says of GPUs and what builds on them, without any and with those that a test plays."""

from __future__ import annotations

import contextlib
import importlib.metadata
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from fake_tensorrt import GPU, install

from qvec_deploy.bench import gpu_watch as nvml
from qvec_deploy.bench.environment import GpuState
from qvec_deploy.cli import doctor_command as doctor
from qvec_deploy.cli import parts
from qvec_deploy.errors import IncompatibleError
from qvec_deploy.runtimes import cuda_driver as cuda
from qvec_deploy.runtimes.kernels.ahead import BASELINE_SM
from qvec_deploy.runtimes.onnxruntime import ort_loading
from qvec_deploy.runtimes.onnxruntime_cuda import ort_cuda_session as onnxruntime_cuda
from qvec_deploy.runtimes.registry import RUNTIMES
from qvec_deploy.runtimes.tensorrt import tensorrt_library


def _refuse() -> Any:
    raise IncompatibleError("no NVIDIA driver is installed (libcuda.so.1)", hint="none")


def _machine(monkeypatch: pytest.MonkeyPatch, *, version: str, aot: bool, watched: bool, capability: int = 89) -> None:
    """A GPU with a driver, ONNX Runtime's provider and a TensorRT, all of the test's own."""
    gpu = cuda.Gpu(GPU.name, capability, GPU.driver)
    install(monkeypatch, version, gpu)
    plugin = ModuleType("tensorrt.plugin")
    if aot:
        plugin.aot_impl = None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", plugin)

    @contextlib.contextmanager
    def watch() -> Iterator[Any]:
        state = GpuState(name=GPU.name, driver="580.65.06", memory_bytes=24 << 30)
        yield SimpleNamespace(state=lambda: state) if watched else None

    monkeypatch.setattr(cuda, "Cuda", lambda: SimpleNamespace(gpu=gpu))
    monkeypatch.setattr(nvml, "watch_gpu", watch)
    monkeypatch.setattr(onnxruntime_cuda, "providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime_cuda.OnnxRuntimeCuda, "missing", lambda self, lowering=None: None)
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: divmod(capability, 10))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: GPU.name)


def _text(found: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> str:
    doctor.print_examination(found)
    return capsys.readouterr().out


def test_a_machine_that_has_everything(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _machine(monkeypatch, version="10.16.1.11", aot=True, watched=True)
    found = doctor.examine()
    assert found["gpu"] == {
        "missing": None,
        "name": "NVIDIA Test",
        "compute_capability": 8.9,
        "cuda": "13.0",
        "driver": "580.65.06",
        "memory_bytes": 24 << 30,
    }
    assert found["tensorrt"] == {"version": "10.16.1.11", "aot": True, "missing": None}
    assert all(runtime["works"] for runtime in found["runtimes"].values())
    assert len(found["lowerings"]) == sum(len(row.lowerings) for row in RUNTIMES.values())
    assert {entry["missing"] for entry in found["lowerings"]} == {None}
    text = _text(found, capsys)
    assert "GPU: NVIDIA Test, compute capability 8.9, 24.0 GiB" in text
    assert "NVIDIA driver: 580.65.06, for CUDA 13.0 and earlier" in text
    assert f"CUDA of torch: 13.0; Triton: {importlib.metadata.version('triton')}" in text
    assert "ONNX Runtime is built with: CUDAExecutionProvider, CPUExecutionProvider" in text
    assert "TensorRT: 10.16.1.11, takes compiled plugins" in text
    assert "runtime tensorrt: works" in text


def test_a_machine_that_has_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr(cuda, "Cuda", _refuse)
    monkeypatch.setattr(onnxruntime_cuda, "Cuda", _refuse)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.version.cuda", None)
    found = doctor.examine()
    assert found["gpu"] == {"missing": "no NVIDIA driver is installed (libcuda.so.1)"}
    assert found["tensorrt"]["version"] is None
    assert {name for name, runtime in found["runtimes"].items() if runtime["works"]} == {"onnxruntime"}
    text = _text(found, capsys)
    assert "GPU: none: no NVIDIA driver is installed (libcuda.so.1)" in text
    assert "CUDA of torch: none" in text
    assert "TensorRT: no: TensorRT cannot be imported" in text
    for name, runtime in found["runtimes"].items():
        if not runtime["builds"]:
            assert f"runtime {name}: no: {runtime['missing']}" in text
            assert runtime["remedy"] in text


def test_what_builds_without_a_gpu_is_not_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="the extra `rtx` is not installed")
    monkeypatch.setattr(tensorrt_library, "Cuda", _refuse)
    found = doctor.examine()
    runtime = found["runtimes"]["tensorrt-rtx"]
    assert (runtime["works"], runtime["builds"], runtime["remedy"]) == (False, True, None)
    assert found["runtimes"]["tensorrt"]["builds"] is False
    text = _text(found, capsys)
    assert "runtime tensorrt-rtx: builds, runs not here: no NVIDIA driver is installed (libcuda.so.1)" in text
    (line,) = [line for line in text.splitlines() if line.startswith("tensorrt-rtx") and " int4 " in line]
    assert line.split()[:3] == ["tensorrt-rtx", "int4", "builds"]


def test_what_is_missing_of_a_runtime_is_said_by_lowering(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A TensorRT before compiled plugins, on a GPU before the kernels, where NVML is silent."""
    _machine(monkeypatch, version="10.8.0.43", aot=False, watched=False, capability=75)
    found = doctor.examine()
    missing = {(entry["runtime"], entry["lowering"]): entry["missing"] for entry in found["lowerings"]}
    assert "needs TensorRT 10.9 or later" in missing["tensorrt", "packed"]
    assert "the kernels need sm_80" in missing["torch-cuda", "packed"]
    assert missing["tensorrt", "int4"] is missing["torch-cuda", "float"] is None
    text = _text(found, capsys)
    assert "NVIDIA driver: version unknown, for CUDA 13.0" in text
    assert "memory: NVML does not say" in text
    assert "TensorRT: 10.8.0.43, takes our plugin as a library: compile --plugin" in text
    assert "runtime tensorrt: works\n  but not lowering packed: lowering `packed` needs TensorRT 10.9" in text
    (line,) = [line for line in text.splitlines() if line.startswith("torch-cuda") and " packed " in line]
    assert line.split()[:3] == ["torch-cuda", "packed", "no"]


def test_parts_are_told_and_two_runtimes_in_one_place(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(parts, "find_spec", lambda name: None if name in ("ray", "sklearn") else object())
    monkeypatch.setattr(ort_loading, "distributions", lambda name: iter([name]))
    found = doctor.examine()
    assert found["parts"]["build"] == {"missing": ["sklearn"]}
    assert found["parts"]["sign"] == {"missing": []}
    text = _text(found, capsys)
    assert "part build: no: without sklearn: pip install 'qvec-deploy[build]'" in text
    assert "part sign: installed" in text
    assert "onnxruntime and onnxruntime-gpu are both installed" in text
    monkeypatch.setattr(ort_loading, "distributions", lambda name: iter(["x"] if name == "onnxruntime" else []))
    assert ort_loading.installed_twice() is None


def test_the_remedy_names_the_capability_that_is_asked_for() -> None:
    assert f"capability {BASELINE_SM / 10:.1f}" in RUNTIMES["torch-cuda"].remedy

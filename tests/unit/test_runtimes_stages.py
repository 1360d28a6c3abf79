"""Runs part by part: the driver's calls, TensorRT's session on fakes, and PyTorch's where it has none."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_tensorrt import FakeCuda, Setup, install, write_sources
from small_engines import write_engine

from qvec_deploy.bench.latency import measure_latency, time_stages
from qvec_deploy.bench.runnable import Flushable, Staged
from qvec_deploy.errors import IncompatibleError
from qvec_deploy.runtimes import cuda_driver as cuda
from qvec_deploy.runtimes.cuda_driver import FUNCTIONS, Cuda
from qvec_deploy.runtimes.engine_options import EngineOptions
from qvec_deploy.runtimes.onnxruntime_cuda.ort_cuda_session import CudaSession
from qvec_deploy.runtimes.tensorrt.tensorrt_runtime import TensorRT
from qvec_deploy.runtimes.torch_cuda.torch_session import TorchCuda
from qvec_deploy.tensors import Scheme


class Driver:
    """The calls of this file, with real types; every other call succeeds."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        for name, arguments in FUNCTIONS.items():
            setattr(self, name, ctypes.CFUNCTYPE(ctypes.c_int, *arguments)(self._wrap(name)))

    def _wrap(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append((name, *arguments))
            if name == "cuDeviceGetCount":
                arguments[0][0] = 1
            elif name == "cuDeviceGetAttribute":
                arguments[0][0] = {38: 6 << 20, 75: 8, 76: 9}[arguments[1]]
            elif name == "cuDeviceGetPCIBusId":
                ctypes.memmove(arguments[0], b"0000:3B:00.0\0", 13)
            elif name == "cuEventCreate":
                arguments[0][0] = 0xEEEE_0000_0001
            elif name == "cuEventElapsedTime":
                arguments[0][0] = 1.5
            return 0

        return call


def test_the_driver_s_events_and_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    monkeypatch.setattr(cuda, "_load", lambda: driver)
    gpu = Cuda()
    assert gpu.bus_id() == "0000:3B:00.0"
    assert gpu.l2_bytes() == 6 << 20
    event = gpu.new_event()
    driver.calls.clear()
    gpu.record(event, 0xABCD_0000_1111)
    assert gpu.elapsed_ms(event, event) == 1.5
    gpu.end_event(event)
    gpu.fill(1 << 40, 1 << 33, 0xABCD_0000_1111)
    assert [call for call in driver.calls if call[0] != "cuEventElapsedTime"] == [
        ("cuEventRecord", 0xEEEE_0000_0001, 0xABCD_0000_1111),
        ("cuEventDestroy_v2", 0xEEEE_0000_0001),
        ("cuMemsetD8Async", 1 << 40, 0, 1 << 33, 0xABCD_0000_1111),
    ]


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> Setup:
    """A TensorRT whose GPU needs a millisecond for each thing it is told to do."""
    made = install(monkeypatch)
    times: dict[int, float] = {}
    state: Any = made.cuda
    state.now_ms, state.live, state.filled = 0.0, 0, []

    def working(name: str) -> None:
        real = getattr(FakeCuda, name)

        def call(self: Any, *arguments: Any) -> Any:
            self.now_ms += 1.0
            return real(self, *arguments)

        monkeypatch.setattr(FakeCuda, name, call)

    def new_event(self: Any) -> int:
        self.live += 1
        return int(self.live)

    working("upload")
    working("download")
    monkeypatch.setattr(FakeCuda, "new_event", new_event, raising=False)
    monkeypatch.setattr(
        FakeCuda, "record", lambda self, event, stream: times.__setitem__(event, self.now_ms), raising=False
    )
    monkeypatch.setattr(FakeCuda, "elapsed_ms", lambda self, start, end: times[end] - times[start], raising=False)
    monkeypatch.setattr(FakeCuda, "end_event", lambda self, event: setattr(self, "live", self.live - 1), raising=False)
    monkeypatch.setattr(FakeCuda, "l2_bytes", lambda self: 1024, raising=False)
    monkeypatch.setattr(
        FakeCuda, "fill", lambda self, address, size, stream: self.filled.append((address, size)), raising=False
    )
    return made


@pytest.fixture
def folder(tmp_path: Path, pico_states: dict[str, dict[str, np.ndarray]]) -> Path:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    write_sources(bundle, pico_states["receiver"], Scheme(3, "channel", method="mse"))
    return bundle


def _images(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, 3, 32, 32)).astype(np.float32)


def test_tensorrt_s_parts_add_up_to_a_run(setup: Setup, folder: Path) -> None:
    TensorRT().compile(folder, "float", EngineOptions(batch_sizes=(1, 4)), caches=folder.parent)
    state: Any = setup.cuda
    with TensorRT().open(folder, "float", 1) as session:
        assert isinstance(session, Staged)
        expected = session.run(_images(4))
        for _ in range(3):
            stages = session.stages(4)
            assert stages is not None
            assert time_stages(stages, _images(4), clock=lambda: 0)[1:] == (1.0, 0.0, 1.0)
            np.testing.assert_array_equal(stages.finish(), expected)
        assert state.live == 4, "events are used again"
        assert session.stages(5) is None, "run in two pieces"
        one = session.stages(1)
        assert one is not None and one is not session.stages(4)
        taken = measure_latency({"trt": session}, _images(4), blocks=2, warmup=0, seed=0)["trt"]
        assert taken.stages is not None and taken.stages.d2h_ms == (1.0, 1.0)
    assert state.live == 0


def test_tensorrt_empties_twice_the_cache_and_gives_the_memory_back(setup: Setup, folder: Path) -> None:
    TensorRT().compile(folder, "float", EngineOptions(batch_sizes=(1,)), caches=folder.parent)
    state: Any = setup.cuda
    with TensorRT().open(folder, "float", 1) as session:
        assert isinstance(session, Flushable)
        session.flush_l2()
        session.flush_l2()
        (address, size), again = state.filled
        assert (address, size) == again
        assert size == 2048 == state.memory[address].nbytes
    assert state.memory == {}


def test_pytorch_on_the_cpu_has_no_parts_and_no_cache(tmp_path: Path) -> None:
    write_engine(tmp_path)
    with TorchCuda("cpu").open(tmp_path, "packed", 1) as session:
        assert isinstance(session, Staged)
        assert session.stages(2) is None
        taken = measure_latency({"torch": session}, _images(2), blocks=1, warmup=0, seed=0)["torch"]
        assert taken.stages is None
        with pytest.raises(IncompatibleError, match="no L2 cache to empty on the CPU"):
            measure_latency({"torch": session}, _images(2), blocks=1, warmup=0, seed=0, cold_l2=True)


def test_onnxruntime_pretends_no_parts() -> None:
    assert not hasattr(CudaSession, "stages")
    assert not hasattr(CudaSession, "flush_l2")

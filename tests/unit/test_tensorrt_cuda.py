"""The CUDA driver's calls, against a driver of the test's own: arguments by ctypes, results by pointer."""

from __future__ import annotations

import ctypes
import ctypes.util
from typing import Any

import numpy as np
import pytest

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.runtimes import cuda_driver as cuda
from qvec_deploy.runtimes.cuda_driver import FUNCTIONS, Cuda, Gpu, OutOfDeviceMemory


class Driver:
    """Keeps what was called; hands out the addresses of real host memory as device memory."""

    def __init__(self, **codes: int) -> None:
        self.calls: list[str] = []
        self.codes, self.gpus, self.blocks = codes, 1, []
        for name, arguments in FUNCTIONS.items():
            kind = ctypes.CFUNCTYPE(ctypes.c_int, *arguments)  # converts and checks like the real library
            setattr(self, name, kind(self._wrap(name)))

    def _wrap(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if name in self.codes:
                return self.codes[name]
            action = getattr(self, f"do_{name}", None)
            if action is not None:
                action(*arguments)
            return 0

        return call

    def do_cuDeviceGetCount(self, count: Any) -> None:
        count[0] = self.gpus

    def do_cuDeviceGet(self, device: Any, ordinal: int) -> None:
        device[0] = 7

    def do_cuDeviceGetName(self, name: Any, length: int, device: int) -> None:
        assert device == 7
        ctypes.memmove(name, b"NVIDIA Test\0", 12)

    def do_cuDriverGetVersion(self, version: Any) -> None:
        version[0] = 13020

    def do_cuDeviceGetAttribute(self, value: Any, code: int, device: int) -> None:
        value[0] = {75: 8, 76: 9}[code]

    def do_cuDevicePrimaryCtxRetain(self, context: Any, device: int) -> None:
        context[0] = 0x1234_5678_9ABC

    def do_cuCtxSetCurrent(self, context: int) -> None:
        assert context == 0x1234_5678_9ABC

    def do_cuMemGetInfo_v2(self, free: Any, total: Any) -> None:
        free[0], total[0] = 5 << 33, 8 << 33

    def _allocate(self, address: Any, size: int) -> None:
        block = (ctypes.c_char * size)()
        self.blocks.append(block)
        address[0] = ctypes.addressof(block)

    do_cuMemAlloc_v2 = do_cuMemAllocHost_v2 = _allocate

    def do_cuMemcpyHtoDAsync_v2(self, to: int, source: int, size: int, stream: int) -> None:
        ctypes.memmove(to, source, size)

    def do_cuMemcpyDtoHAsync_v2(self, to: int, source: int, size: int, stream: int) -> None:
        ctypes.memmove(to, source, size)

    def do_cuStreamCreate(self, stream: Any, flags: int) -> None:
        assert flags == 1
        stream[0] = 0xABCD_0000_1111

    def do_cuStreamEndCapture(self, stream: int, graph: Any) -> None:
        assert stream == 0xABCD_0000_1111
        graph[0] = 0x7777_0000_0001

    def do_cuGraphInstantiateWithFlags(self, executable: Any, graph: int, flags: int) -> None:
        assert graph == 0x7777_0000_0001
        executable[0] = 0x8888_0000_0001

    def do_cuGraphLaunch(self, executable: int, stream: int) -> None:
        assert executable == 0x8888_0000_0001

    def do_cuModuleLoadData(self, module: Any, ptx: bytes) -> None:
        assert ptx == b".version 7.0"
        module[0] = 0x5555_0000_0001

    def do_cuModuleGetFunction(self, function: Any, module: int, name: bytes) -> None:
        assert (module, name) == (0x5555_0000_0001, b"linear")
        function[0] = 0x6666_0000_0001

    def do_cuLaunchKernel(self, function: int, *rest: Any) -> None:
        *sizes, stream, arguments, extra = rest
        assert function == 0x6666_0000_0001 and stream == 0xABCD_0000_1111 and not extra
        values = (ctypes.c_uint64.from_address(arguments[0]), ctypes.c_int32.from_address(arguments[1]))
        self.launched = [tuple(sizes), *(value.value for value in values)]

    def do_cuGetErrorName(self, code: int, text: Any) -> None:
        text[0] = b"CUDA_ERROR_TEST"


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    made = Driver()
    monkeypatch.setattr(cuda, "_load", lambda: made)
    return made


def test_a_gpu_is_described(driver: Driver) -> None:
    assert Cuda().gpu == Gpu("NVIDIA Test", 89, "13.2")
    assert "cuDevicePrimaryCtxRetain" not in driver.calls, "asking takes no GPU memory"


def test_no_gpu(driver: Driver) -> None:
    driver.gpus = 0
    with pytest.raises(IncompatibleError, match="finds no GPU"):
        Cuda()


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "LIBRARY", "libnothing-of-that-name.so.1")
    with pytest.raises(IncompatibleError, match="no NVIDIA driver is installed"):
        Cuda()


def test_a_driver_without_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "LIBRARY", ctypes.util.find_library("c"))
    with pytest.raises(IncompatibleError, match="driver has no cuInit"):
        Cuda()


def test_a_kernel_is_loaded_and_launched(driver: Driver) -> None:
    gpu = Cuda()
    kernel = gpu.load_kernel(b".version 7.0", "linear")
    arguments = (ctypes.c_uint64(0x1234_5678_9ABC), ctypes.c_int32(-5))
    gpu.launch(kernel, (4, 12, 1), 128, 47104, arguments, 0xABCD_0000_1111)
    assert driver.calls[-3:] == ["cuModuleLoadData", "cuModuleGetFunction", "cuLaunchKernel"]
    assert driver.launched == [(4, 12, 1, 128, 1, 1, 47104), 0x1234_5678_9ABC, -5]


def test_data_goes_there_and_back(driver: Driver) -> None:
    gpu = Cuda()
    gpu.enter()
    gpu.enter()
    assert driver.calls.count("cuDevicePrimaryCtxRetain") == 1
    stream, address = gpu.new_stream(), gpu.allocate(24)
    there, back = gpu.pinned((2, 3)), gpu.pinned((2, 3))
    there[...] = np.arange(6).reshape(2, 3)
    gpu.upload(address, there[:1], stream)
    gpu.download(back, address, stream)
    gpu.wait(stream)
    np.testing.assert_array_equal(back, [[0, 1, 2], [0, 0, 0]])
    assert gpu.free_bytes() == 5 << 33
    gpu.free(address)
    gpu.free_pinned(there)
    gpu.free_pinned(back)
    gpu.end_stream(stream)
    assert driver.calls.count("cuMemFreeHost") == 2


def test_work_is_captured(driver: Driver) -> None:
    gpu = Cuda()
    stream = gpu.new_stream()
    with gpu.capture(stream) as graph:
        driver.calls.clear()
    graph.launch(stream)
    graph.destroy()
    assert driver.calls == [
        "cuStreamEndCapture",
        "cuGraphInstantiateWithFlags",
        "cuGraphDestroy",
        "cuGraphLaunch",
        "cuGraphExecDestroy",
    ]


def test_a_capture_ends_when_its_block_fails(driver: Driver) -> None:
    gpu = Cuda()
    with pytest.raises(ZeroDivisionError), gpu.capture(gpu.new_stream()):
        _ = 1 / 0
    assert driver.calls[-1] == "cuStreamEndCapture"


@pytest.mark.parametrize("name", ["cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphInstantiateWithFlags"])
def test_a_capture_that_is_refused(driver: Driver, name: str) -> None:
    gpu = Cuda()
    stream = gpu.new_stream()
    driver.codes[name] = 900
    with pytest.raises(IncompatibleError, match=r"refuses cu\w+: CUDA_ERROR_TEST \(900\)"), gpu.capture(stream):
        pass


def test_memory_that_is_not_there(driver: Driver) -> None:
    gpu = Cuda()
    driver.codes["cuMemAlloc_v2"] = 2
    with pytest.raises(OutOfDeviceMemory, match="out of memory"):
        gpu.allocate(1 << 50)

"""What is read off NVML, against one that the test scripts."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from qvec_deploy.bench import gpu_watch as gpu
from qvec_deploy.bench.environment import GpuState
from qvec_deploy.bench.gpu_watch import PERIOD_NS, GpuWatch, watch_gpu
from qvec_deploy.errors import IncompatibleError


class NVMLError(Exception):
    pass


class Nvml:
    """The module `pynvml`: readings come from lists, the last one stays; a name in `missing` is not supported."""

    NVMLError = NVMLError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self, reasons: list[int] | None = None, sm_mhz: list[int] | None = None) -> None:
        self.reasons, self.sm_mhz = list(reasons or [0]), list(sm_mhz or [1500, 1515])
        self.missing: set[str] = set()
        self.up, self.bus_ids, self.readings = 0, [], 0

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("nvml") and name in object.__getattribute__(self, "missing"):
            return object.__getattribute__(self, "_refuse")
        return object.__getattribute__(self, name)

    def _refuse(self, *arguments: Any) -> Any:
        raise NVMLError("not supported")

    def nvmlInit(self) -> None:
        self.up += 1

    def nvmlShutdown(self) -> None:
        self.up -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.65"

    def nvmlDeviceGetHandleByPciBusId(self, bus_id: str) -> str:
        self.bus_ids.append(bus_id)
        return "handle"

    def nvmlDeviceGetName(self, handle: str) -> str:
        assert handle == "handle"
        return "NVIDIA Test"

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:
        return SimpleNamespace(total=1 << 34)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: str) -> int:
        self.readings += 1
        return self.reasons.pop(0) if len(self.reasons) > 1 else self.reasons[0]

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:
        if kind == self.NVML_CLOCK_MEM:
            return 9001
        return self.sm_mhz.pop(0) if len(self.sm_mhz) > 1 else self.sm_mhz[0]

    def nvmlDeviceGetMaxClockInfo(self, handle: str, kind: int) -> int:
        return 1980

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return 71_234

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: str) -> int:
        return 72_000

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        return 61


def watched(nvml: Nvml, readings: int) -> GpuState:
    """The state after so many readings, the last of them by `state`."""
    time_ns = iter(range(0, 10**12, PERIOD_NS))
    watch = GpuWatch(nvml, "handle", clock=lambda: next(time_ns))
    for _ in range(readings - 1):
        watch.sample()
    return watch.state()


def test_the_state_of_a_gpu() -> None:
    assert watched(Nvml(), 2) == GpuState(
        name="NVIDIA Test",
        driver="580.65",
        memory_bytes=1 << 34,
        sm_clock_mhz=1515,
        max_sm_clock_mhz=1980,
        memory_clock_mhz=9001,
        clocks_locked=False,
        power_w=71.234,
        power_limit_w=72.0,
        temperature_c=61,
        throttling=(),
    )


def test_a_reason_seen_once_counts() -> None:
    assert watched(Nvml(reasons=[0, 0x04, 0, 0x40, 0]), 5).throttling == ("power cap", "thermal limit (hardware)")


@pytest.mark.parametrize("harmless", [0x00, 0x01, 0x02, 0x10, 0x100])
def test_what_is_no_throttling(harmless: int) -> None:
    assert watched(Nvml(reasons=[harmless]), 3).throttling == ()


@pytest.mark.parametrize(
    ("reasons", "sm_mhz", "readings", "locked"),
    [
        ([0x02], [1500, 1400, 1300], 3, True),  # somebody's setting limits them, all the time
        ([0x02, 0], [1500, 1515], 3, False),
        ([0], [1410], 10, True),  # they hold still below their maximum
        ([0], [1410], 9, False),  # that is too few readings to say so
        ([0], [1980], 20, False),  # at the maximum, which is where free clocks go too
        ([0], [1410, 1410, 1425], 20, False),
    ],
)
def test_locked_clocks(reasons: list[int], sm_mhz: list[int], readings: int, locked: bool) -> None:
    assert watched(Nvml(reasons, sm_mhz), readings).clocks_locked is locked


def test_what_a_gpu_does_not_tell_is_none() -> None:
    nvml = Nvml()
    nvml.missing = {name for name in dir(Nvml) if name.startswith("nvmlDevice") and not name.endswith("Name")}
    assert watched(nvml, 3) == GpuState("NVIDIA Test", "580.65", 0)


def test_readings_are_taken_now_and_then_only() -> None:
    nvml, now = Nvml(), [0]
    watch = GpuWatch(nvml, "handle", clock=lambda: now[0])
    for now[0] in range(0, 4 * PERIOD_NS, PERIOD_NS // 10):
        watch.sample()
    assert nvml.readings == 4


def test_the_gpu_is_found_by_its_place_on_the_bus(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(gpu, "_bus_id", lambda: "0000:3B:00.0")
    with watch_gpu() as watch:
        assert watch is not None and watch.state().name == "NVIDIA Test"
        assert (nvml.up, nvml.bus_ids) == (1, ["0000:3B:00.0"])
    assert nvml.up == 0


@pytest.mark.parametrize(("missing", "up"), [("nvmlInit", 0), ("nvmlDeviceGetHandleByPciBusId", 0)])
def test_without_nvml_nothing_is_watched(monkeypatch: pytest.MonkeyPatch, missing: str, up: int) -> None:
    nvml = Nvml()
    nvml.missing = {missing}
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(gpu, "_bus_id", lambda: "0000:3B:00.0")
    with watch_gpu() as watch:
        assert watch is None
    assert nvml.up == up


def test_without_a_gpu_nothing_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> str:
        raise IncompatibleError("no NVIDIA driver is installed", hint="none")

    monkeypatch.setitem(sys.modules, "pynvml", Nvml())
    monkeypatch.setattr(gpu, "_bus_id", no_driver)
    with watch_gpu() as watch:
        assert watch is None

"""What NVML says of the GPU while engines run on it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from qvec_deploy.bench.environment import GpuState
from qvec_deploy.errors import IncompatibleError

REASONS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "thermal limit (software)",
    0x40: "thermal limit (hardware)",
    0x80: "power brake",
}
"""Bits of nvmlDeviceGetCurrentClocksThrottleReasons that take speed away unasked.

An idle GPU (0x01), clocks that somebody set (0x02), and clocks kept equal to another GPU's or fit for a display (0x10,
0x100) are no throttling.
"""

CLOCKS_SET = 0x02
CONSTANT_FROM = 10  # readings; a clock that nobody set does not hold still below its maximum for so many
PERIOD_NS = 50_000_000  # readings are not free, and a throttled GPU stays so for longer


class GpuWatch:
    """Reads the GPU's state between runs, and remembers what was seen."""

    def __init__(self, nvml: Any, handle: Any, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._nvml, self._handle, self._clock = nvml, handle, clock
        self._next_ns = clock()
        self._reasons = 0
        self._set: list[bool] = []
        self._clocks_mhz: list[float] = []

    def sample(self) -> None:
        """Take a reading, if the last one is long enough ago."""
        now = self._clock()
        if now >= self._next_ns:
            self._next_ns = now + PERIOD_NS
            self._read()

    def state(self) -> GpuState:
        """The GPU now, and every reason for throttling that any reading showed."""
        self._read()
        nvml = self._nvml
        return GpuState(
            name=str(self._ask("nvmlDeviceGetName") or "unknown"),
            driver=str(self._answer(nvml.nvmlSystemGetDriverVersion) or "unknown"),
            memory_bytes=getattr(self._ask("nvmlDeviceGetMemoryInfo"), "total", 0),
            sm_clock_mhz=self._clocks_mhz[-1] if self._clocks_mhz else None,
            max_sm_clock_mhz=self._number("nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_SM),
            memory_clock_mhz=self._number("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM),
            clocks_locked=self._locked(),
            power_w=self._number("nvmlDeviceGetPowerUsage", scale=1e-3),
            power_limit_w=self._number("nvmlDeviceGetEnforcedPowerLimit", scale=1e-3),
            temperature_c=self._number("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
            throttling=tuple(text for bit, text in REASONS.items() if self._reasons & bit),
        )

    def _read(self) -> None:
        reasons = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        if reasons is not None:
            self._reasons |= reasons
            self._set.append(bool(reasons & CLOCKS_SET))
        clock_mhz = self._number("nvmlDeviceGetClockInfo", self._nvml.NVML_CLOCK_SM)
        if clock_mhz is not None:
            self._clocks_mhz.append(clock_mhz)

    def _locked(self) -> bool | None:
        """Whether the clocks are fixed. NVML sets them but does not tell, so it is read off what they do.

        Either every reading says that a setting of somebody's limits them, or they hold still below their maximum.
        """
        if self._set and all(self._set):
            return True
        if not self._clocks_mhz:
            return None
        most = self._number("nvmlDeviceGetMaxClockInfo", self._nvml.NVML_CLOCK_SM)
        still = len(self._clocks_mhz) >= CONSTANT_FROM and len(set(self._clocks_mhz)) == 1
        return still and most is not None and self._clocks_mhz[0] < most

    def _number(self, function: str, *arguments: Any, scale: float = 1.0) -> float | None:
        value = self._ask(function, *arguments)
        return None if value is None else round(value * scale, 3)

    def _ask(self, function: str, *arguments: Any) -> Any:
        return self._answer(getattr(self._nvml, function), self._handle, *arguments)

    def _answer(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What NVML answers; None where this GPU or driver does not know."""
        try:
            return function(*arguments)
        except self._nvml.NVMLError:
            return None


@contextlib.contextmanager
def watch_gpu() -> Iterator[GpuWatch | None]:
    """Watch the first GPU that CUDA sees; None where there is none, or NVML cannot be used.

    CUDA and NVML number GPUs differently, so the GPU is looked up by its place on the bus.
    """
    import pynvml  # type: ignore[import-untyped]

    try:
        bus_id = _bus_id()
        pynvml.nvmlInit()
    except (pynvml.NVMLError, IncompatibleError):
        yield None
        return
    try:
        handle = pynvml.nvmlDeviceGetHandleByPciBusId(bus_id)
    except pynvml.NVMLError:
        handle = None
    try:
        yield GpuWatch(pynvml, handle) if handle is not None else None
    finally:
        pynvml.nvmlShutdown()


def _bus_id() -> str:
    from qvec_deploy.runtimes.cuda_driver import Cuda

    return Cuda().bus_id()

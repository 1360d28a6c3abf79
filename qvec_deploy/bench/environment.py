"""The machine and the software a measurement was taken on. No host name, no user, no path."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from qvec_deploy.runtimes.registry import RUNTIME_PACKAGES

PACKAGES = (
    "qvec-deploy",
    "torch",
    "timm",
    "onnx",
    "nvidia-modelopt",
    "numpy",
    "safetensors",
    *sorted(RUNTIME_PACKAGES - {"torch"}),
)
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "amx_bf16")  # what picks integer kernels

CPUINFO = Path("/proc/cpuinfo")
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


@dataclass(frozen=True)
class GpuState:
    """The GPU that engines ran on, as NVML sees it; None where it does not say.

    Attributes:
        sm_clock_mhz: The multiprocessors' clock right after measuring.
        clocks_locked: Whether somebody fixed the clocks (see `gpu.GpuWatch`).
        throttling: NVML's reasons for lower clocks while measuring.
    """

    name: str
    driver: str
    memory_bytes: int
    sm_clock_mhz: float | None = None
    max_sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    clocks_locked: bool | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    temperature_c: float | None = None
    throttling: tuple[str, ...] = ()


@dataclass(frozen=True)
class Environment:
    """What can change a number, as far as it can be seen from here.

    Attributes:
        cpu_flags: Those of `FLAGS` that this CPU has.
        usable_cores: Cores that this process may run on: its affinity.
        threads: Each session was told to use so many.
        load_average: The last minute's, when the environment was captured.
        governor: Frequency governor of the first core; None where it cannot be seen, as in virtual machines.
        packages: Version by name, for each of `PACKAGES` that is installed.
        affinity: Cores the process was held to while latency was measured; None where nothing was asked.
        frequency_mhz: Mean frequency of the usable cores right after measuring; None where it cannot be seen.
        load_average_after: Of the last minute, after measuring; None where nothing was measured.
        gpu: The GPU; None where no engine used one.
    """

    cpu: str
    cpu_flags: tuple[str, ...]
    logical_cores: int
    usable_cores: int
    threads: int
    load_average: float
    memory_bytes: int
    governor: str | None
    operating_system: str
    python: str
    packages: dict[str, str]
    affinity: tuple[int, ...] | None = None
    frequency_mhz: float | None = None
    load_average_after: float | None = None
    gpu: GpuState | None = None


def capture_environment(threads: int, cores: Sequence[int] = ()) -> Environment:
    """The environment now. Capture it before measuring: the load average then shows what others do."""
    cpu, flags = _cpu()
    return Environment(
        cpu=cpu,
        cpu_flags=flags,
        logical_cores=psutil.cpu_count() or 1,
        usable_cores=available_threads(),
        threads=threads,
        load_average=round(psutil.getloadavg()[0], 2),
        memory_bytes=psutil.virtual_memory().total,
        governor=GOVERNOR.read_text(encoding="ascii").strip() if GOVERNOR.is_file() else None,
        operating_system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        packages={name: version for name in PACKAGES if (version := installed_version(name))},
        affinity=tuple(sorted(cores)) or None,
    )


def complete_environment(environment: Environment, gpu: GpuState | None = None) -> Environment:
    """Add what can only be seen right after measuring."""
    load_average = round(psutil.getloadavg()[0], 2)
    return replace(environment, frequency_mhz=_frequency_mhz(), load_average_after=load_average, gpu=gpu)


def _cpu() -> tuple[str, tuple[str, ...]]:
    """Model name and flags, from /proc/cpuinfo where there is one (Linux on x86 and most of ARM)."""
    if not CPUINFO.is_file():
        return platform.processor() or platform.machine(), ()
    fields: dict[str, str] = {}
    for line in CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    present = set(fields.get("flags", "").split())
    return fields.get("model name", platform.machine()), tuple(flag for flag in FLAGS if flag in present)


def _affinity() -> list[int]:
    """Cores this process may run on; none where psutil cannot tell (it can on Linux, Windows and FreeBSD)."""
    process = psutil.Process()
    return list(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else []


def _frequency_mhz() -> float | None:
    """Mean of the usable cores, as the kernel reports it; virtual machines often report a constant, or nothing."""
    if not hasattr(psutil, "cpu_freq"):
        return None
    cores = psutil.cpu_freq(percpu=True) or []
    usable = [core for core in _affinity() if core < len(cores)]
    seen = [cores[core].current for core in usable] or [core.current for core in cores]
    return round(sum(seen) / len(seen), 1) if any(seen) else None


def installed_version(package: str) -> str | None:
    """The version of a distribution; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def available_threads() -> int:
    """Cores this process may use."""
    return len(_affinity()) or psutil.cpu_count() or 1

"""The machine and the software, in words."""

from __future__ import annotations

from qvec_deploy.bench.environment import Environment, GpuState
from qvec_deploy.bench.results import Report


def environment_facts(report: Report) -> tuple[tuple[str, str], ...]:
    """The machine and the software: pairs of a term and its value."""
    machine = report.environment
    entries = [
        ("CPU", machine.cpu),
        ("CPU flags", ", ".join(machine.cpu_flags)),
        ("Cores", f"{machine.logical_cores} logical, {machine.usable_cores} usable, {machine.threads} threads used"),
        ("Affinity", ", ".join(map(str, machine.affinity)) if machine.affinity else ""),
        ("Load average", _load(machine)),
        ("Frequency governor", machine.governor or "not visible"),
        ("Frequency", f"{machine.frequency_mhz:.0f} MHz right after measuring" if machine.frequency_mhz else ""),
        ("Memory", f"{machine.memory_bytes / 2**30:.1f} GiB"),
        *(_gpu(machine.gpu) if machine.gpu else ()),
        ("System", machine.operating_system),
        ("Python", machine.python),
        *sorted(machine.packages.items()),
    ]
    return tuple((term, text) for term, text in entries if text)


def _load(machine: Environment) -> str:
    after = machine.load_average_after
    before = f"{machine.load_average:g} before measuring"
    return before if after is None else f"{before}, {after:g} after"


def _gpu(gpu: GpuState) -> tuple[tuple[str, str], ...]:
    locked = {True: ", locked", False: ", not locked", None: ""}[gpu.clocks_locked]
    clocks = [
        f"{gpu.sm_clock_mhz:.0f} MHz{_of(gpu.max_sm_clock_mhz, 'MHz')}" if gpu.sm_clock_mhz else "",
        f"memory {gpu.memory_clock_mhz:.0f} MHz" if gpu.memory_clock_mhz else "",
    ]
    shown = ", ".join(text for text in clocks if text)
    power = f"{gpu.power_w:.0f} W{_of(gpu.power_limit_w, 'W')}" if gpu.power_w is not None else ""
    return (
        ("GPU", f"{gpu.name}, {gpu.memory_bytes / 2**30:.1f} GiB, driver {gpu.driver}"),
        ("GPU clocks", f"{shown}{locked}" if shown else locked.removeprefix(", ")),
        ("GPU power", power),
        ("GPU temperature", f"{gpu.temperature_c:g} °C" if gpu.temperature_c is not None else ""),
        ("GPU throttling", ", ".join(gpu.throttling) or "none was seen"),
    )


def _of(limit: float | None, unit: str) -> str:
    return f" of {limit:.0f} {unit}" if limit is not None else ""

"""What this machine can do, and how to get the rest."""

from __future__ import annotations

import importlib.util
import shutil
from typing import Any

from rich.console import Console
from rich.table import Table

from qvec_deploy.measure.environment import capture_environment
from qvec_deploy.plan import LOWERINGS
from qvec_deploy.targets import RUNTIMES, find_target

_REMEDIES = {
    "onnxruntime": "pip install onnxruntime, or onnxruntime-gpu on x86-64 Linux: one of the two, never both",
    "torch-cuda": "an NVIDIA GPU (sm_80 or later), its driver, and torch with CUDA and triton: pip install torch",
    "onnxruntime-cuda": "an NVIDIA GPU, its driver, and: pip install 'onnxruntime-gpu[cuda,cudnn]'",
    "tensorrt": "an NVIDIA GPU and its driver, then: pip install --extra-index-url https://pypi.nvidia.com "
    "-e '.[tensorrt]'; until then bundles are written without engine, and `qvec-deploy compile` adds it on the device",
}


def examine() -> dict[str, Any]:
    """Packages, CPU, runtimes and lowerings, as plain values."""
    environment = capture_environment(1)
    runtimes = {}
    for name in RUNTIMES:
        missing = find_target(name).missing()
        runtimes[name] = {"works": missing is None, "missing": missing, "remedy": _REMEDIES[name] if missing else None}
    return {
        "cpu": environment.cpu,
        "cpu_flags": list(environment.cpu_flags),
        "usable_cores": environment.usable_cores,
        "memory_bytes": environment.memory_bytes,
        "operating_system": environment.operating_system,
        "python": environment.python,
        "packages": environment.packages,
        "nvidia_driver": shutil.which("nvidia-smi") is not None,
        "tensorrt_package": importlib.util.find_spec("tensorrt") is not None,
        "runtimes": runtimes,
        "lowerings": [
            {
                "runtime": runtime,
                "lowering": lowering,
                "bits": list(entry.bits),
                "granularities": list(entry.granularities),
                "summary": entry.summary,
            }
            for (runtime, lowering), entry in LOWERINGS.items()
        ],
    }


def print_examination(found: dict[str, Any]) -> None:
    """The same as text."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, 120))
    flags = ", ".join(found["cpu_flags"]) or "none that matter"
    console.print(
        f"{found['cpu']} ({flags}), {found['usable_cores']} usable cores, {found['memory_bytes'] / 2**30:.1f} GiB\n"
        f"{found['operating_system']}, Python {found['python']}",
        highlight=False,
    )
    console.print(", ".join(f"{name} {version}" for name, version in found["packages"].items()) + "\n", highlight=False)
    for name, runtime in found["runtimes"].items():
        state = "works" if runtime["works"] else f"no: {runtime['missing']}"
        console.print(f"runtime {name}: {state}", highlight=False, markup=False)
        if runtime["remedy"]:
            console.print(f"  {runtime['remedy']}", highlight=False, markup=False, soft_wrap=True)
    driver = "found" if found["nvidia_driver"] else "not found: no NVIDIA GPU can be used here"
    console.print(f"NVIDIA driver: {driver}\n", highlight=False)
    table = Table(box=None, pad_edge=False)
    for title in ("Runtime", "Lowering", "Bits", "Granularities", "What it is"):
        table.add_column(title)
    for entry in found["lowerings"]:
        bits = [str(width) for width in entry["bits"]]
        text = f"{bits[0]} to {bits[-1]}" if len(bits) > 3 else ", ".join(bits)
        table.add_row(entry["runtime"], entry["lowering"], text, ", ".join(entry["granularities"]), entry["summary"])
    console.print(table)

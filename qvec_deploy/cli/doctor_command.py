"""What this machine can do, and how to get the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qvec_deploy.bench.environment import capture_environment, installed_version
from qvec_deploy.cli.parts import PARTS, missing_modules
from qvec_deploy.cli.terminal import print_table, say
from qvec_deploy.errors import IncompatibleError
from qvec_deploy.report.page import Table
from qvec_deploy.runtimes.registry import RUNTIMES

_OF_ENVIRONMENT = ("cpu", "cpu_flags", "usable_cores", "memory_bytes", "operating_system", "python", "packages")


def examine() -> dict[str, Any]:
    """Packages, CPU, GPU, runtimes and lowerings, as plain values."""
    from qvec_deploy.runtimes.onnxruntime.ort_loading import installed_twice
    from qvec_deploy.runtimes.onnxruntime_cuda.ort_cuda_session import providers
    from qvec_deploy.runtimes.tensorrt.tensorrt_library import describe_tensorrt
    from qvec_deploy.runtimes.torch_cuda.torch_session import cuda_of_torch

    environment = capture_environment(1)
    runtimes = {}
    for name, row in RUNTIMES.items():
        missing = row.load().missing()
        builds = missing is None or row.cannot_build(row.baseline.name) is None
        remedy = None if builds else row.remedy
        runtimes[name] = {"works": missing is None, "builds": builds, "missing": missing, "remedy": remedy}
    return {
        **{name: getattr(environment, name) for name in _OF_ENVIRONMENT},
        "parts": {part: {"missing": missing_modules(part)} for part in PARTS},
        "gpu": _gpu(),
        "torch_cuda": cuda_of_torch(),
        "triton": installed_version("triton"),
        "tensorrt": describe_tensorrt(),
        "onnxruntime_providers": providers(),
        "onnxruntime_conflict": installed_twice(),
        "runtimes": runtimes,
        "lowerings": [
            {
                "runtime": row.name,
                "lowering": lowering.name,
                "bits": list(lowering.bits),
                "granularities": list(lowering.granularities),
                "summary": lowering.summary,
                "missing": runtimes[row.name]["missing"] or row.missing(lowering.name),
            }
            for row in RUNTIMES.values()
            for lowering in row.lowerings
        ],
    }


def _gpu() -> dict[str, Any]:
    """The GPU that engines would run on: what its driver says, and what NVML adds."""
    from qvec_deploy.bench.gpu_watch import watch_gpu
    from qvec_deploy.runtimes.cuda_driver import Cuda

    try:
        gpu = Cuda().gpu
    except IncompatibleError as error:
        return {"missing": error.message}
    found = {"missing": None, "name": gpu.name, "compute_capability": gpu.sm / 10, "cuda": gpu.driver}
    with watch_gpu() as watch:
        state = watch.state() if watch is not None else None
    known = (state.driver, state.memory_bytes) if state is not None else (None, None)
    return {**found, "driver": known[0], "memory_bytes": known[1]}


def print_examination(found: dict[str, Any]) -> None:
    """The same as text."""
    flags = ", ".join(found["cpu_flags"]) or "none that matter"
    say(f"{found['cpu']} ({flags}), {found['usable_cores']} usable cores, {found['memory_bytes'] / 2**30:.1f} GiB")
    say(f"{found['operating_system']}, Python {found['python']}")
    say(", ".join(f"{name} {version}" for name, version in found["packages"].items()))
    say("", *map(_part_line, found["parts"], found["parts"].values()), "", *_gpu_lines(found), "")
    for name, runtime in found["runtimes"].items():
        say(f"runtime {name}: {_state(runtime)}")
        for entry in found["lowerings"]:
            if runtime["works"] and entry["runtime"] == name and entry["missing"]:
                say(f"  but not lowering {entry['lowering']}: {entry['missing']}")
        if runtime["remedy"]:
            say(f"  {runtime['remedy']}")
    say("")
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "Runtime": lambda entry: str(entry["runtime"]),
        "Lowering": lambda entry: str(entry["lowering"]),
        "Here": lambda entry: _here(entry, found["runtimes"]),
        "Bits": lambda entry: _bits([str(width) for width in entry["bits"]]),
        "Granularities": lambda entry: ", ".join(entry["granularities"]),
        "What it is": lambda entry: str(entry["summary"]),
    }
    print_table(Table.of("", found["lowerings"], columns, words=len(columns)))


def _state(runtime: dict[str, Any]) -> str:
    if runtime["works"]:
        return "works"
    return f"{'builds, runs not here' if runtime['builds'] else 'no'}: {runtime['missing']}"


def _here(lowering: dict[str, Any], runtimes: dict[str, Any]) -> str:
    if not lowering["missing"]:
        return "yes"
    runtime = runtimes[lowering["runtime"]]
    return "builds" if runtime["builds"] and not runtime["works"] else "no"


def _part_line(name: str, part: dict[str, Any]) -> str:
    missing = ", ".join(part["missing"])
    return f"part {name}: " + (f"no: without {missing}: pip install 'qvec-deploy[{name}]'" if missing else "installed")


def _bits(widths: list[str]) -> str:
    return f"{widths[0]} to {widths[-1]}" if len(widths) > 3 else ", ".join(widths)


def _gpu_lines(found: dict[str, Any]) -> list[str]:
    """GPU, CUDA and what builds on them, a line each."""
    gpu, tensorrt = found["gpu"], found["tensorrt"]
    lines = [f"GPU: none: {gpu['missing']}"]
    if gpu["missing"] is None:
        memory = f"{gpu['memory_bytes'] / 2**30:.1f} GiB" if gpu["memory_bytes"] else "memory: NVML does not say"
        lines = [
            f"GPU: {gpu['name']}, compute capability {gpu['compute_capability']:.1f}, {memory}",
            f"NVIDIA driver: {gpu['driver'] or 'version unknown'}, for CUDA {gpu['cuda']} and earlier",
        ]
    lines.append(f"CUDA of torch: {found['torch_cuda'] or 'none'}; Triton: {found['triton'] or 'not installed'}")
    lines.append(f"ONNX Runtime is built with: {', '.join(found['onnxruntime_providers']) or 'nothing: not installed'}")
    if found["onnxruntime_conflict"]:
        lines.append(f"ONNX Runtime: {found['onnxruntime_conflict']}")
    if tensorrt["missing"] is not None:
        return [*lines, f"TensorRT: no: {tensorrt['missing']}"]
    plugins = "takes compiled plugins" if tensorrt["aot"] else "takes our plugin as a library: compile --plugin"
    return [*lines, f"TensorRT: {tensorrt['version']}, {plugins}"]

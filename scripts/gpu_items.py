"""What `scripts/gpu_check` runs, most important first. Each is given `Kept`, which outlives the limit."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from checked_items import Item, Kept, NotRun, Outcome, judge

ROOT = Path(__file__).resolve().parent.parent
MOST_SHARDS = 6
ROUNDS = 12
DEVICE, PTQ_MODEL = "cuda", "vit_small_patch16_224"
MARGIN_S = 12.0
"""A row of the kernels' table that would begin later than so long before the limit is left out."""

KERNEL_ROWS = (("B", (1, 197, 1576)), ("none", (1, 16)), ("L", (197,)), ("S", (1, 197)))
"""Models as `bench_kernels.shapes` knows them, with their values of M; `none` is the large square matrix."""

_REPORTED = re.compile(r"^(\S.*?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")
_SMI = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu,compute_cap"


def environment(_: Any = None) -> Outcome:
    """The GPU, its driver and clocks, and versions; `gpu` is missing where there is none."""
    import platform
    from importlib import metadata

    packages = "torch triton timm onnx onnxruntime nvidia-modelopt numpy pydantic tensorrt tensorrt-rtx-cu13-bindings"
    versions = {}
    for name in packages.split():
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    found: dict[str, Any] = {
        "system": platform.platform(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "packages": versions,
        "nvcc": (_said("nvcc", "--version") or "").splitlines()[-1:],
        "nvidia_smi": _smi(),
    }
    try:
        import torch
    except ImportError as error:
        return Outcome("noted", f"no GPU can be seen: torch cannot be imported: {error}", found)
    if not torch.cuda.is_available():
        return Outcome("noted", "no NVIDIA GPU is here, or torch has no CUDA", found)
    properties = torch.cuda.get_device_properties(0)
    found["gpu"] = {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "cuda_of_torch": torch.version.cuda,
    }
    return Outcome("noted", properties.name, found)


def _said(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _smi() -> dict[str, str] | None:
    said = _said("nvidia-smi", f"--query-gpu={_SMI}", "--format=csv,noheader", "--id=0")
    return dict(zip(_SMI.split(","), said.split(", "), strict=False)) if said else None


def run_tests(kept: Kept, file: str, most_shards: int, needs: Sequence[str] = ()) -> Outcome:
    """The tests of a file that are marked gpu, in processes that share them out, counted as they end.

    Args:
        needs: Modules that they import: better one line about a missing one than one of every test.
    """
    for module in ("pytest", "yaml", *needs):
        importlib.import_module(module)
    shards = max(1, min(most_shards, (os.cpu_count() or 1) // 2))
    with tempfile.TemporaryDirectory(prefix="qvec-tests.") as folder, ExitStack() as stack:
        logs = [Path(folder) / f"{index}.log" for index in range(shards)]
        command = [sys.executable, "-m", "pytest", "-v", "-m", "gpu", "--tb=short", "--color=no"]
        processes = [
            subprocess.Popen(
                [*command, "-p", "no:cacheprovider", "-p", "shard_tests", file],
                cwd=ROOT,
                env={**os.environ, "QVEC_SHARD": f"{index}/{shards}", "COLUMNS": "200"},
                stdout=stack.enter_context(log.open("wb")),
                stderr=subprocess.STDOUT,
            )
            for index, log in enumerate(logs)
        ]
        while any(process.poll() is None for process in processes):
            time.sleep(1)
            kept.keep(_counted(logs, ended=False))
        codes = [process.wait() for process in processes]
        outcome = _counted(logs, ended=True)
        if outcome.state == "passed" and not set(codes) <= {0, 5}:  # 5: a share of no tests
            outcome = Outcome("failed", f"{outcome.detail}, and pytest ended with {codes}", outcome.data)
        if outcome.state != "passed":
            print("\n".join(log.read_text(encoding="utf-8", errors="replace")[-1500:] for log in logs))
    return outcome


def _counted(logs: list[Path], *, ended: bool) -> Outcome:
    results: dict[str, str] = {}
    for log in logs:
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            found = _REPORTED.match(line)
            if found and "::" in found[1]:
                results[found[1]] = found[2].lower()
    counts = Counter(results.values())
    wrong = sorted(name.rpartition("/")[2] for name, state in results.items() if state in ("failed", "error"))
    detail = ", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "no test was run"
    if wrong:
        detail += f": {'; '.join(wrong[:3])}{' and more' if len(wrong) > 3 else ''}"
    good = ended and counts["passed"] and not wrong
    return Outcome("passed" if good else "failed", detail, {"counts": dict(counts), "wrong": wrong})


def kernel_speed(kept: Kept) -> Outcome:
    """Numerics and times of the packed Linear's kernels, as many rows of the table as there is time for."""
    import bench_kernels as bench

    data: dict[str, Any] = {"limits": bench.machine_limits(), "rounds": ROUNDS, "rows": []}
    wanted = [
        (name, (m, *size), cold)
        for models, sizes in KERNEL_ROWS
        for name, size in bench.shapes([models]).items()
        if (name == bench.LARGE) == (models == "none")
        for m in sizes
        for cold in (True, False)
    ]
    slowest = 0.0
    for name, size, cold in wanted:
        if kept.left_s() < MARGIN_S + slowest:
            break
        start = time.monotonic()
        data["rows"].append(bench.measure_row(name, size, cold, ROUNDS, data["limits"]))
        bench.print_row(data["rows"][-1])
        slowest = max(slowest, time.monotonic() - start)
        outcome = _speed(data, len(wanted))
        kept.keep(outcome)
    return _speed(data, len(wanted))


def _speed(data: dict[str, Any], wanted: int) -> Outcome:
    """Every row's numerics held, for else its measurement ends with an error; how fast it is, is noted."""
    cold = [row for row in data["rows"] if row["l2"] == "cold"]
    if not cold:
        return Outcome("failed", "no time for one row", data)
    ratios = {}
    for m in sorted({row["m"] for row in cold}):
        fastest = [max(row[way]["ratio"] for way in ("dequant", "native")) for row in cold if row["m"] == m]
        ratios[m] = min(fastest)
    told = ", ".join(f"{ratio:.2f}x at M = {m}" for m, ratio in ratios.items())
    detail = f"{len(data['rows'])} of {wanted} rows right; over cuBLAS in float16, L2 cold, slowest shape: {told}"
    return Outcome("passed", detail, {**data, "slowest_ratio": ratios})


def whole_model(kept: Kept) -> Outcome:
    """ViT-B/16 by torch-cuda at batch 1 and 8: packed against float16, both with CUDA graphs and right."""
    import bench_kernels as bench

    found: list[dict[str, Any]] = []
    outcome = Outcome("failed", "nothing was measured")
    for batch in (1, 8):
        found.append(bench.end_to_end(ROUNDS, batch))
        each = "; ".join(
            f"batch {one['batch']}: {one['host_latency_ms']['packed']:.3f} ms, {one['ratio']:.2f}x float16"
            for one in found
        )
        outcome = Outcome("passed", each, {"batches": found})
        kept.keep(outcome)
    return outcome


def modelopt_on_cuda(kept: Kept) -> Outcome:
    """ModelOpt's quantizers inside a ViT-S on the GPU: the grid of the numpy reference, and a step of training."""
    import torch

    from qvec_deploy.models import create, quantized_linears
    from qvec_deploy.quantize.modelopt import insert_fake_quantizers
    from qvec_deploy.quantize.reference import quantize
    from qvec_deploy.tensors import Scheme

    torch.manual_seed(0)
    schemes, found = (Scheme(3, "channel"), Scheme(3, "channel", method="mse")), {}
    for scheme in schemes:
        model = create(PTQ_MODEL, 1000, {}).to(DEVICE)
        insert_fake_quantizers(model, scheme, ("head",))
        other = count = 0
        for name in quantized_linears(model, ("head",)):
            module = model.get_submodule(name)
            values = module.weight_quantizer(module.weight).detach().cpu().numpy()
            expected = quantize(module.weight.detach().cpu().numpy(), scheme).dequantize()
            other, count = other + int((values != expected).sum()), count + values.size
        images = torch.randn(2, 3, 224, 224, device=DEVICE)
        loss = model(images).square().mean()
        loss.backward()
        gradients = all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)
        found[str(scheme)] = {
            "searched": scheme.searched,
            "differing": other, "weights": count, "finite": gradients, "loss": float(loss.detach()),
        }  # fmt: skip
        kept.keep(_modelopt(found))
    return _modelopt(found)


def _modelopt(found: dict[str, dict[str, Any]]) -> Outcome:
    """Rounding is exact anywhere; a search adds errors up in the GPU's own order, and near ties may end otherwise."""
    allowed = {name: 1e-3 * one["weights"] if one["searched"] else 0 for name, one in found.items()}
    right = all(one["differing"] <= allowed[name] and one["finite"] for name, one in found.items())
    each = "; ".join(f"{name}: {one['differing']} of {one['weights']:,} weights differ" for name, one in found.items())
    return Outcome("passed" if right else "failed", f"{each} from the numpy reference", found)


def engines(kept: Kept, library: str) -> Outcome:
    """What `scripts/check_tensorrt` asks, in one process, most important first: built, run, timed."""
    from tensorrt_items import ITEMS
    from tensorrt_machine import Machine

    from qvec_deploy.runtimes.registry import find_runtime

    _require_gpu_of(library)
    reason = find_runtime(library).missing("float")
    if reason is not None:
        raise NotRun(reason)
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory(prefix="qvec-engines.") as folder:
        machine = Machine(Path(folder), library)
        for item in _important_first(ITEMS[library]):
            outcomes[item.name] = judge(partial(item.check, machine))
            print(item.name, outcomes[item.name].state, outcomes[item.name].detail, flush=True)
            kept.keep(_together(outcomes))
    return _together(outcomes)


def _require_gpu_of(library: str) -> None:
    """Engines for listed GPUs run on those alone."""
    from qvec_deploy.errors import IncompatibleError
    from qvec_deploy.runtimes.cuda_driver import Cuda
    from qvec_deploy.runtimes.registry import find_runtime

    known = find_runtime(library).compute_capabilities
    try:
        here = Cuda().gpu.sm / 10
    except IncompatibleError as error:
        raise NotRun(error.message) from error
    if known and here not in known:
        listed = ", ".join(map(str, known))
        raise NotRun(f"{library} has no engines for compute capability {here}, the one of this GPU; it has {listed}")


def _important_first(items: tuple[Item, ...]) -> Iterator[Item]:
    yield from sorted(items, key=lambda item: (not item.name.startswith("vit_b"), item.name.startswith("demo")))


def _together(outcomes: dict[str, Outcome]) -> Outcome:
    states = Counter(outcome.state for outcome in outcomes.values())
    wrong = [f"{name}: {outcome.detail}" for name, outcome in outcomes.items() if outcome.state == "failed"]
    detail = ", ".join(f"{count} {state}" for state, count in states.items())
    data = {name: {"state": each.state, "detail": each.detail, **each.data} for name, each in outcomes.items()}
    if wrong:
        return Outcome("failed", f"{detail}: {wrong[0]}", data)
    return Outcome("passed" if states["passed"] else "not run", detail, data)


ITEMS: tuple[Item, ...] = (
    Item("kernel tests", "tests/gpu/test_kernels_gpu.py",
         partial(run_tests, file="tests/gpu/test_kernels_gpu.py", most_shards=MOST_SHARDS), 150),
    Item("runtime tests", "tests/gpu/test_runtimes_gpu.py",
         partial(run_tests, file="tests/gpu/test_runtimes_gpu.py", most_shards=1,
                 needs=("pydantic", "psutil")), 90),
    Item("kernel speed", "the packed Linear against cuBLAS in float16", kernel_speed, 100),
    Item("ViT-B", "packed against float16, whole model, CUDA graphs", whole_model, 75),
    Item("ModelOpt", "PTQ and a step of QAT on CUDA", modelopt_on_cuda, 60),
    Item("tensorrt-rtx", "engines of TensorRT for RTX", partial(engines, library="tensorrt-rtx"), 150),
    Item("tensorrt", "engines of TensorRT", partial(engines, library="tensorrt"), 240),
)  # fmt: skip

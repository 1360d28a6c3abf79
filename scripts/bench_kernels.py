#!/usr/bin/env python3
"""How fast the packed Linear is on the GPU at hand, against float16 cuBLAS, at the shapes of vision transformers.

Every figure of a row comes from one run: a candidate is a CUDA graph of many launches, timed by CUDA events, and the
graphs are replayed in random order, round after round. With a warm L2 every launch reads the same weights; with a cold
one each reads another copy, and the copies together are more than twice the cache. x and y stay warm in both, as they
do in a network. Ratios are fp16's time over the candidate's, with bootstrap intervals over the rounds. Columns:

    fp16     torch's float16 Linear (cuBLAS)
    dequant  our dequantize kernel, then cuBLAS
    native   `qvec::linear`, compiled and tuned for this GPU
    aot      the fastest of the tiles that engines carry: sm_80 PTX, 48 KiB of shared memory at most

Without a GPU nothing is timed: the static table (instructions per MMA in the main loop of the machine code) is printed
and called that.

    scripts/bench_kernels.py                    # everything; a record is written
    scripts/bench_kernels.py --check            # exit 3 if an aim is missed, or could not be measured
    scripts/bench_kernels.py --models B --rows 1 197
    scripts/bench_kernels.py --static           # the static table, also where there is a GPU
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from kernel_candidates import BITS, LAUNCHES, make_candidates, record_graph, replay_us
from kernel_instructions import print_static, static_table

from qvec_deploy.bench.statistics import median, speed_up

ROOT = Path(__file__).parents[1]
WIDTHS = {"S": 384, "B": 768, "L": 1024, "H": 1280}
ROWS = (1, 16, 50, 197, 394, 1576)
LARGE = "8192x8192"
MOST_COPIES = 2048
END_TO_END = "vit_base_patch16_224"
NVIDIA_SMI = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu,compute_cap"

AIMS: tuple[tuple[str, float], ...] = (
    (f"{LARGE}, M <= 16, native", 3.0),
    ("ViT shapes, M = 197, native", 1.0),
    ("ViT shapes, M = 1576, native", 0.7),
    ("end to end, batch 1", 1.0),
)
"""What is compared, and the least ratio to fp16 that it should have; kernels with a cold L2."""

MOST_BYTES = 0.21  # of fp16's weights, end to end


def main() -> int:
    """Measure or count, print, record, and say which aims were missed."""
    options = parse_options()
    import torch

    from qvec_deploy.bench.environment import capture_environment

    measured = torch.cuda.is_available() and not options.static
    document: dict[str, Any] = {
        "benchmark": "kernels",
        "kind": "measured" if measured else "static",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "environment": asdict(capture_environment(1)),
    }
    if measured:
        document |= measure(options)
    else:
        document["static"] = static_table()
        print_static(document["static"], has_gpu=torch.cuda.is_available())
    missed = missed_aims(document)
    document |= {"aims": dict(AIMS) | {"weight bytes": MOST_BYTES}, "missed": missed}
    folder = options.record or (ROOT / "tests" / "gpu" / "records" if measured else None)
    if folder is not None:
        print(f"record: {write_record(folder, document)}")
    if missed and (measured or options.check):
        print("aims missed: " + "; ".join(missed), file=sys.stderr)
    return 3 if options.check and missed else 0


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure the packed Linear against float16 on this GPU.")
    parser.add_argument("--check", action="store_true", help="exit 3, naming them, if aims are missed")
    parser.add_argument("--static", action="store_true", help="count instructions instead of measuring")
    parser.add_argument("--models", nargs="+", choices=[*WIDTHS, "none"], default=list(WIDTHS), help="ViT sizes")
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS), help="values of M")
    parser.add_argument("--rounds", type=int, default=30, help="replays of every graph, interleaved (default 30)")
    parser.add_argument("--no-end-to-end", action="store_true", help="leave out the whole ViT-B/16")
    parser.add_argument("--record", type=Path, help="folder of the record (default tests/gpu/records if measured)")
    options = parser.parse_args()
    if options.rounds < 6 or min(options.rows) < 1:
        parser.error("--rounds must be at least 6 and --rows at least 1: no interval rests on fewer")
    return options


def shapes(models: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Name to (rows, columns) of the weight."""
    found = {LARGE: (8192, 8192)}
    for model in models:
        width = WIDTHS.get(model)
        if width is not None:
            parts = {"qkv": (3, 1), "proj": (1, 1), "fc1": (4, 1), "fc2": (1, 4)}
            found |= {f"ViT-{model} {part}": (n * width, k * width) for part, (n, k) in parts.items()}
    return found


# ---- with a GPU


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every row, the machine's own limits, and the whole model."""
    import torch

    limits = machine_limits()
    print(
        f"{torch.cuda.get_device_name()}: launch floor {limits['launch_us']:.2f} us, "
        f"copy {limits['bytes_per_us'] / 1e6:.2f} TB/s, fp16 {limits['flops_per_us'] / 1e6:.0f} TFLOP/s, "
        f"L2 {limits['l2_bytes'] / 2**20:.0f} MiB\n"
        "us of one launch, and ratio to fp16 with its 95 % interval; roof: share of the roofline that native reaches\n"
    )
    header = f"{'shape':<12}{'M':>6} {'L2':<5}{'fp16':>9}" + "".join(f"{n:>30}" for n in ("dequant", "native", "aot"))
    print(f"{header}{'roof':>7}")
    rows: list[dict[str, Any]] = []
    for name, (n, k) in shapes(options.models).items():
        for m in options.rows:
            for cold in (True, False):
                rows.append(measure_row(name, (m, n, k), cold, options.rounds, limits))
                print_row(rows[-1])
    result: dict[str, Any] = {"gpu": describe_gpu(), "limits": limits, "rows": rows, "rounds": options.rounds}
    if not options.no_end_to_end:
        result["end_to_end"] = end_to_end(options.rounds)
        told = "end to end: {model} batch {batch}, {ratio:.2f}x fp16, {weight_bytes_ratio:.3f} of its weight bytes"
        print(told.format(**result["end_to_end"]))
    return result


def measure_row(
    name: str, size: tuple[int, int, int], cold: bool, rounds: int, limits: dict[str, float]
) -> dict[str, Any]:
    """One shape, one M, one state of the cache: every candidate, interleaved."""
    import torch

    m, n, k = size
    packed_bytes = n * k * BITS // 8
    copies = {
        "fp16": copies_for(2 * n * k, cold, limits["l2_bytes"]),
        "packed": copies_for(packed_bytes, cold, limits["l2_bytes"]),
    }
    candidates, chosen = make_candidates(size, copies)
    graphs = {}
    for candidate, (launch, count) in candidates.items():
        launches = max(LAUNCHES, count)
        graphs[candidate] = record_graph(lambda i, launch=launch, count=count: launch(i % count), launches), launches
    samples: dict[str, list[float]] = {candidate: [] for candidate in graphs}
    draw = random.Random(0)
    for block in range(rounds + 3):
        for candidate in draw.sample(list(graphs), len(graphs)):
            graph, launches = graphs[candidate]
            elapsed = replay_us(graph) / launches
            if block >= 3:
                samples[candidate].append(elapsed)
    fp16 = samples["fp16"]
    roof_us = max(
        limits["launch_us"],
        (packed_bytes + 2 * m * (n + k)) / limits["bytes_per_us"],
        2 * m * n * k / limits["flops_per_us"],
    )
    row: dict[str, Any] = {"shape": name, "m": m, "n": n, "k": k, "l2": "cold" if cold else "warm", "aot_tile": chosen}
    row["roofline_share_native"] = roof_us / median(samples["native"])
    for candidate, taken in samples.items():
        rounded = [round(sample, 4) for sample in taken]
        row[candidate] = {"us": median(taken), **ratio(fp16, taken), "samples_us": rounded}
    del graphs, candidates
    torch.cuda.empty_cache()
    return row


def ratio(baseline: Sequence[float], taken: Sequence[float]) -> dict[str, float]:
    """How many times faster, with the ends of its 95 % interval."""
    estimate = speed_up(baseline, taken)
    if estimate is None:
        raise SystemExit(f"{len(taken)} rounds are too few for an interval")
    return {"ratio": estimate.value, "low": estimate.low, "high": estimate.high}


def copies_for(size: int, cold: bool, l2_bytes: float) -> int:
    """Copies of a weight that together are more than twice the cache; one if it is to stay warm."""
    return min(MOST_COPIES, math.ceil(2 * l2_bytes / size) + 1) if cold else 1


def machine_limits() -> dict[str, float]:
    """What the roofline is made of, measured: an empty launch, a large copy, a large product."""
    import torch

    device = torch.device("cuda")
    tiny, launches = torch.zeros(1, device=device), 200
    empty = record_graph(lambda _: tiny.add_(1), launches)
    source = torch.empty(1 << 29, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = record_graph(lambda _: target.copy_(source), 4)
    a = torch.randn(8192, 8192, device=device, dtype=torch.float16)
    product = record_graph(lambda _: a @ a, 2)
    best = {
        key: min(replay_us(graph) for _ in range(10))
        for key, graph in (("empty", empty), ("copy", copy), ("product", product))
    }
    return {
        "launch_us": best["empty"] / launches,
        "bytes_per_us": 4 * 2 * source.nbytes / best["copy"],
        "flops_per_us": 2 * 2 * 8192**3 / best["product"],
        "l2_bytes": float(torch.cuda.get_device_properties(device).L2_cache_size),
    }


def end_to_end(rounds: int, batch: int = 1) -> dict[str, Any]:
    """A whole ViT-B/16: the packed torch-cuda engine against the float16 one, both with CUDA graphs.

    Raises:
        IncompatibleError: One of them computes something else than PyTorch does with the same weights.
    """
    from qvec_deploy.bench.latency import measure_latency
    from qvec_deploy.bench.parity import check_parity, parity_images, reference_logits
    from qvec_deploy.models import create, describe
    from qvec_deploy.packed import Entry, PackedFile, pack, write_packed
    from qvec_deploy.quantize.reference import quantize
    from qvec_deploy.runtimes.engine_files import WEIGHTS_FILE
    from qvec_deploy.runtimes.torch_cuda import TORCH_CUDA
    from qvec_deploy.runtimes.torch_cuda.torch_session import TorchCuda
    from qvec_deploy.runtimes.torch_cuda.torch_structure import write_structure
    from qvec_deploy.tensors import Scheme

    scheme, architecture = Scheme(BITS, "channel"), describe(END_TO_END, 1000, {})
    linears = {f"{name}.weight" for name in architecture.quantized(("head",))}
    state = {name: value.numpy() for name, value in create(END_TO_END, 1000, {}).state_dict().items()}
    layout = {name: Entry(value.shape, scheme if name in linears else None) for name, value in state.items()}
    tensors = ((n, pack(quantize(value, scheme)) if n in linears else value) for n, value in state.items())
    with tempfile.TemporaryDirectory(prefix="bench_kernels.") as folder:
        directory = Path(folder)
        write_packed(directory / WEIGHTS_FILE, layout, tensors)
        write_structure(directory, architecture, {})
        target, generated = TorchCuda(), parity_images(architecture.input_shape)
        weights = PackedFile.open(directory / WEIGHTS_FILE)
        reference = reference_logits(weights, END_TO_END, 1000, {}, generated)
        with target.open(directory, "packed", 1) as packed, target.open(directory, "float", 1) as half:
            sessions = {"float": half, "packed": packed}
            errors = {
                name: check_parity(session, TORCH_CUDA.name, name, reference).relative_error
                for name, session in sessions.items()
            }
            images = np.zeros((batch, *architecture.input_shape), np.float32)
            samples = measure_latency(sessions, images, blocks=10 * rounds, warmup=20, seed=0)
            sizes = {name: session.engine.weight_bytes for name, session in sessions.items()}  # type: ignore[attr-defined]
    return {
        "model": END_TO_END,
        "batch": batch,
        "relative_error": errors,
        "host_latency_ms": {name: median(taken.samples_ms) for name, taken in samples.items()},
        **ratio(samples["float"].samples_ms, samples["packed"].samples_ms),
        "weight_bytes": sizes,
        "weight_bytes_ratio": sizes["packed"] / sizes["float"],
    }


# ---- what is said about it


def describe_gpu() -> dict[str, Any]:
    """The GPU, its driver and its clocks, as far as they can be seen."""
    import torch
    import triton

    properties = torch.cuda.get_device_properties(0)
    described: dict[str, Any] = {
        "name": properties.name,
        "sm": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
    }
    command = ["nvidia-smi", f"--query-gpu={NVIDIA_SMI}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return described | {"nvidia_smi": f"not available: {error}"}
    values = [value.strip() for value in done.stdout.splitlines()[0].split(",")]
    return described | {"nvidia_smi": dict(zip(NVIDIA_SMI.split(","), values, strict=True))}


def print_row(row: dict[str, Any]) -> None:
    """A line of the table."""
    line = f"{row['shape']:<12}{row['m']:>6} {row['l2']:<5}{row['fp16']['us']:>9.2f}"
    for name in ("dequant", "native", "aot"):
        cell = row[name]
        line += f"{cell['us']:>11.2f}{cell['ratio']:>6.2f} [{cell['low']:4.2f}, {cell['high']:4.2f}]"[:30].rjust(30)
    print(f"{line}{row['roofline_share_native']:>7.0%}")


def missed_aims(document: dict[str, Any]) -> list[str]:
    """Aims that were missed or not measured, each with what was found."""
    rows = [row for row in document.get("rows", []) if row["l2"] == "cold"]
    parts = {
        AIMS[0][0]: [row for row in rows if row["shape"] == LARGE and row["m"] <= 16],
        AIMS[1][0]: [row for row in rows if row["shape"] != LARGE and row["m"] == 197],
        AIMS[2][0]: [row for row in rows if row["shape"] != LARGE and row["m"] == 1576],
    }
    missed = []
    for name, least in AIMS[:3]:
        worst = min(parts[name], key=lambda row: float(row["native"]["ratio"]), default=None)
        if worst is None:
            missed.append(f"{name}: not measured")
        elif worst["native"]["ratio"] < least:
            ratio = worst["native"]["ratio"]
            missed.append(f"{name}: {ratio:.2f}x at {worst['shape']}, M = {worst['m']}, wanted {least:g}x")
    name, least = AIMS[3]
    whole = document.get("end_to_end")
    if whole is None:
        return [*missed, f"{name}: not measured"]
    if whole["ratio"] < least:
        missed.append(f"{name}: {whole['ratio']:.2f}x, wanted {least:g}x")
    if whole["weight_bytes_ratio"] > MOST_BYTES:
        missed.append(f"{name}: {whole['weight_bytes_ratio']:.3f} of fp16's weight bytes, wanted {MOST_BYTES:g}")
    return missed


def write_record(folder: Path, document: dict[str, Any]) -> Path:
    """Keep everything that was found in a file named by day and GPU."""
    machine = document["gpu"]["name"] if "gpu" in document else "static"
    slug = re.sub(r"[^a-z0-9]+", "_", machine.lower()).strip("_")
    path = folder / f"kernels_{document['date'][:10]}_{slug}.json"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    sys.exit(main())

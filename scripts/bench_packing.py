#!/usr/bin/env python3
"""How fast packing is, and how little memory patch + quantize + pack of a ViT-L takes.

Two parts. The codec: 85 million 3-bit codes (the Linears of a ViT-B), packed and unpacked, as a ratio to a copy of
the codes in memory measured between them. The pass: receiver + lambda * vector, quantized per channel and packed, from
disk to disk, through the library and the plain torch way, each in its own process, so that memory is its own.

    scripts/bench_packing.py            # a table
    scripts/bench_packing.py --check    # exit 3 if an aim is missed
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from qvec_deploy.packed import pack, pack_codes, unpack_codes
from qvec_deploy.packed.file_layout import Entry
from qvec_deploy.packed.packed_file import FloatArray
from qvec_deploy.tensors import PackedTensor, Scheme

BITS = 3
CODES = (110_592, 768)  # 85 M, the Linears of a ViT-B
MODEL = "vit_large_patch16_224"
LAM = 1.0
AIMS = {  # figure: the most it may be
    "pack_to_copy_ratio": 5.0,
    "unpack_to_copy_ratio": 5.0,
    "library_to_torch_time_ratio": 1.0,
    "library_anonymous_peak_mb": 200.0,
}


def main() -> int:
    """Measure, print, and say which aims were missed."""
    options = parse_options()
    if options.worker:
        print(json.dumps(work(options.worker, options.directory)))
        return 0
    figures = measure_codec(options.rounds)
    if not options.codec_only:
        with tempfile.TemporaryDirectory(prefix="bench_packing.", dir=options.directory) as directory:
            figures |= measure_pass(Path(directory), options.rounds)
    missed = [name for name, most in AIMS.items() if figures.get(name, 0.0) > most]
    if options.json:
        print(json.dumps({"figures": figures, "aims": AIMS, "missed": missed}, indent=2))
    else:
        for name, value in figures.items():
            aim = f"   aim <= {AIMS[name]:g}{'   MISSED' if name in missed else ''}" if name in AIMS else ""
            print(f"{name:<34} {value:10.2f}{aim}")
    if options.check and missed:
        print(f"aims missed: {', '.join(missed)}", file=sys.stderr)
        return 3
    return 0


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure packing against a memory copy and against plain torch.")
    parser.add_argument("--check", action="store_true", help="exit 3, naming them, if aims are missed")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--rounds",
        type=int,
        default=5,
        help="rounds, interleaved, four times as many of the codec; the median counts (default 5)",
    )
    parser.add_argument("--codec-only", action="store_true", help="leave out the pass over a ViT-L")
    parser.add_argument("--directory", type=Path, help="where 5 GB of temporary files go (default: the system's)")
    parser.add_argument("--worker", choices=["library", "torch"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    return options


def measure_codec(rounds: int) -> dict[str, float]:
    """Milliseconds of copy, pack and unpack, and the ratios; each writes to memory it allocates.

    They run on one thread and are timed in its CPU time, which a busy machine stretches less than wall time.
    """
    codes = np.random.default_rng(0).integers(-(1 << BITS - 1), 1 << BITS - 1, CODES, dtype=np.int8)
    payload = pack_codes(codes, BITS)
    if not np.array_equal(unpack_codes(payload, BITS, CODES[1]), codes):
        raise SystemExit("unpacking does not give back what was packed: no speed to speak of")
    warm = np.empty_like(codes)
    candidates: dict[str, Callable[[], object]] = {
        "copy": codes.copy,
        "copy_into_warm_memory": lambda: np.copyto(warm, codes),
        "pack": lambda: pack_codes(codes, BITS),
        "unpack": lambda: unpack_codes(payload, BITS, CODES[1]),
    }
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(4 * rounds + 1):
        for name, function in candidates.items():
            start = time.thread_time()
            function()
            samples[name].append(1e3 * (time.thread_time() - start))
    median = {name: statistics.median(values[1:]) for name, values in samples.items()}  # the first round warms up
    figures = {f"{name}_ms": value for name, value in median.items()}
    figures["pack_to_copy_ratio"] = median["pack"] / median["copy"]
    figures["unpack_to_copy_ratio"] = median["unpack"] / median["copy"]
    return figures


def measure_pass(directory: Path, rounds: int) -> dict[str, float]:
    """Seconds and megabytes of both ways over the same ViT-L, in alternating processes."""
    write_inputs(directory)
    samples: dict[str, list[float]] = {}
    for round_ in range(rounds + 1):
        for way in ("library", "torch"):
            figures = run_worker(way, directory)
            for name, value in figures.items() if round_ else ():  # the first round fills the page cache
                samples.setdefault(f"{way}_{name}", []).append(value)
    medians = {name: statistics.median(values) for name, values in sorted(samples.items())}
    return medians | {"library_to_torch_time_ratio": medians["library_s"] / medians["torch_s"]}


def write_inputs(directory: Path) -> None:
    """Receiver and vector with the shapes of a timm ViT-L and seeded values, as .safetensors and as .pt.

    In a process of its own: the parent stays small, and forks fast.
    """
    code = f"""
import json, timm, torch
from pathlib import Path
from safetensors.torch import save_file
directory = Path({str(directory)!r})
with torch.device("meta"):
    model = timm.create_model({MODEL!r})
linears = [n + ".weight" for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "head"]
shapes = {{name: list(tensor.shape) for name, tensor in model.state_dict().items()}}
(directory / "model.json").write_text(json.dumps({{"linears": linears, "shapes": shapes}}))
generator = torch.Generator().manual_seed(0)
for file, spread in (("receiver", 0.02), ("vector", 0.002)):
    state = {{name: spread * torch.randn(shape, generator=generator) for name, shape in shapes.items()}}
    save_file(state, directory / f"{{file}}.safetensors")
    torch.save(state, directory / f"{{file}}.pt")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def run_worker(way: str, directory: Path) -> dict[str, float]:
    """One pass in a process of its own, its anonymous memory sampled from outside."""
    command = [sys.executable, __file__, "--worker", way, "--directory", str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        anonymous = [0.0]
        done = threading.Event()

        def sample() -> None:
            while not done.wait(0.005):
                anonymous.append(memory_mb(process.pid, "RssAnon"))

        sampler = threading.Thread(target=sample)
        sampler.start()
        output, _ = process.communicate()
        done.set()
        sampler.join()
    if process.returncode:
        raise SystemExit(f"the {way} worker failed")
    figures: dict[str, float] = json.loads(output)
    return figures | {"anonymous_peak_mb": max(anonymous)}


def memory_mb(pid: int | str, field: str) -> float:
    """A field of /proc/PID/status in MB; 0 once the process has gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    lines = [line.split() for line in status.splitlines() if line.startswith(f"{field}:")]
    return int(lines[0][1]) * 1024 / 1e6 if lines else 0.0


def work(way: str, directory: Path) -> dict[str, float]:
    """In the worker: one pass, timed without the imports."""
    model = json.loads((directory / "model.json").read_text(encoding="utf-8"))
    prepare, output = WAYS[way]
    run = prepare()
    start, imports = time.perf_counter(), memory_mb("self", "RssAnon")
    run(directory, model, directory / output)
    seconds = time.perf_counter() - start
    # VmHWM, not getrusage: the latter remembers the parent's size from before exec.
    peak = memory_mb("self", "VmHWM")
    size = (directory / output).stat().st_size / 1e6
    return {"s": seconds, "resident_peak_mb": peak, "anonymous_imports_mb": imports, "output_mb": size}


def prepare_library() -> Callable[[Path, dict[str, Any], Path], None]:
    """The library's way: headers first, then one tensor at a time."""
    from qvec_deploy.io.checkpoint import Checkpoint
    from qvec_deploy.packed import write_packed
    from qvec_deploy.quantize.reference import quantize
    from qvec_deploy.vectors.patch import add_scaled

    def run(directory: Path, model: dict[str, Any], output: Path) -> None:
        scheme = Scheme(BITS, "channel")
        receiver = Checkpoint.open(directory / "receiver.safetensors")
        vector = Checkpoint.open(directory / "vector.safetensors")
        linears = set(model["linears"])
        layout = {
            name: Entry(info.shape, scheme if name in linears else None) for name, info in receiver.tensors.items()
        }

        def weights() -> Iterator[tuple[str, PackedTensor | FloatArray]]:
            for name in receiver.tensors:
                weight = add_scaled(receiver.read(name), vector.read(name), LAM)
                yield name, pack(quantize(weight, scheme)) if name in linears else weight

        write_packed(output, layout, weights())

    return run


def prepare_torch() -> Callable[[Path, dict[str, Any], Path], None]:
    """The plain way: load both, add, quantize each Linear per channel to int8 codes, save."""
    import torch

    def run(directory: Path, model: dict[str, Any], output: Path) -> None:
        receiver = torch.load(directory / "receiver.pt", weights_only=True)
        vector = torch.load(directory / "vector.pt", weights_only=True)
        patched = {name: weight + LAM * vector[name] for name, weight in receiver.items()}
        qmin, qmax = -(1 << BITS - 1), (1 << BITS - 1) - 1
        for name in model["linears"]:
            scale = patched[name].abs().amax(dim=1, keepdim=True).clamp(min=1e-8) / qmax
            patched[name + ".scale"] = scale
            patched[name] = (patched[name] / scale).round().clamp(qmin, qmax).to(torch.int8)
        torch.save(patched, output)

    return run


WAYS: dict[str, tuple[Callable[[], Callable[[Path, dict[str, Any], Path], None]], str]] = {
    "library": (prepare_library, "weights.qvec.safetensors"),
    "torch": (prepare_torch, "weights.pt"),
}


if __name__ == "__main__":
    sys.exit(main())

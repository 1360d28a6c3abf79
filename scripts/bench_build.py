#!/usr/bin/env python3
"""A whole build at real size: ViT-B/16 at 224, from checkpoint and vector on disk to a checked engine.

Prints wall time, CPU time and peak memory of builds in fresh processes, stage by stage: the first of an architecture,
and those after it, which find in the user's cache what is the same for all its models. Then load time, memory and
latency of every lowering beside the float engine: interleaved, same process, same images. Weights are timm's initial
ones, so they say nothing about accuracy: what `int8` costs is measured on the demo's model and 5,000 generated test
images.

With --against, builds of another checkout of this repository (0.1.0, say) are timed between those, on the same files.
With --check, exits 3 when an aim is missed and names it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import yaml

MODEL, CLASSES = "vit_base_patch16_224", 1000
LOWERINGS = ("float", "packed", "int4", "int8")
VNNI = any(flag in Path("/proc/cpuinfo").read_text() for flag in ("avx512_vnni", "avx_vnni"))
AIMS = {  # name: (limit, whether the figure must not be above it)
    "first_build_s": (10.0, True),
    "first_build_peak_gb": (1.1, True),
    "build_s": (4.0, True),
    "build_peak_gb": (1.1, True),
    "output_mb": (38.9, True),
    "int8_speed_up": (3.2 if VNNI else 1.7, False),
    "int8_load_ratio": (2.0, True),
    "int8_peak_ratio": (1.3, True),
    "int4_load_ratio": (2.0, True),
    "int4_peak_ratio": (1.3, True),
    "packed_load_s": (3.0, True),
    "packed_peak_gb": (1.3, True),
    "int4_memory_ratio": (0.4, True),
    "int4_speed_up": (0.9, False),
    "int8_top1_cost": (0.5, True),
}
ROOT = Path(__file__).resolve().parent.parent


def make_inputs(folder: Path, model: str = MODEL) -> None:
    """A receiver with timm's initial weights, a vector of 1.6 % of their norm, and a recipe for both."""
    import torch
    from safetensors.torch import save_file

    from qvec_deploy.models import create
    from qvec_deploy.tensors import Scheme
    from qvec_deploy.vectors.extract import extract_vector

    torch.manual_seed(0)
    state = create(model, CLASSES, {}).state_dict()
    save_file(state, folder / "receiver.safetensors")
    generator = np.random.default_rng(0)
    fp = {name: value.numpy() for name, value in state.items()}
    qat = {
        name: value + np.float32(0.016 * float(value.std())) * generator.standard_normal(value.shape, np.float32)
        for name, value in fp.items()
    }
    scheme = Scheme(3, "channel")
    extract_vector(fp, qat, folder / "vector.safetensors", scheme=scheme, skip=("head",), task="noise", seed=0)
    recipe: dict[str, Any] = {
        "version": 1,
        "name": "vit_base",
        "receiver": {"checkpoint": "receiver.safetensors", "model": model},
        "vector": {"files": ["vector.safetensors"]},
        "lambda": 1.0,
        "quantize": {"bits": 3, "granularity": "channel"},
        "target": {"lowering": "int4"},
    }
    (folder / "vit_base.yaml").write_text(yaml.safe_dump(recipe))


def build_once(folder: Path, candidate: str) -> None:
    """In a fresh process: build one candidate and print its stages, peak memory and size as JSON."""
    from qvec_deploy.builder.context import BuildContext
    from qvec_deploy.builder.pipeline import build_candidate
    from qvec_deploy.io.cache import Cache
    from qvec_deploy.jobs import apart
    from qvec_deploy.recipe import load_recipe
    from qvec_deploy.runtimes.engine_files import MODEL_FILE, WEIGHTS_FILE

    recipe = next(r for r in load_recipe(folder / "vit_base.yaml").candidates() if r.name == candidate)
    context = BuildContext(cache=Cache(folder / f"{candidate}-{os.getpid()}"))
    apart.submit("qvec_deploy.models:load")  # as `build` does
    artifact = build_candidate(recipe, context)
    apart.end()
    pytorch = resource.getrusage(resource.RUSAGE_CHILDREN)
    directory, parity = artifact.directory, artifact.parity
    print(
        json.dumps(
            {
                "stages_s": {name: round(seconds, 2) for name, seconds in context.progress.timings_s.items()},
                "cpu_s": round(time.process_time() + pytorch.ru_utime + pytorch.ru_stime, 2),
                "peak_gb": round(max(peak_bytes(), 1024 * pytorch.ru_maxrss) / 1e9, 3),
                "own_peak_gb": round(peak_bytes() / 1e9, 3),
                "output_mb": round(
                    sum((directory / name).stat().st_size for name in (MODEL_FILE, WEIGHTS_FILE)) / 1e6, 2
                ),
                "directory": str(directory),
                "parity": parity.relative_error if parity is not None else None,
            }
        )
    )


def peak_bytes() -> int:
    """Largest resident memory of this process; `ru_maxrss` would include what its parent held when it forked."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def build_apart(folder: Path, candidate: str, *, first: bool = False, root: Path = ROOT) -> dict[str, Any]:
    """`build_once` in a process of its own; its wall time counts from nothing.

    Args:
        first: Whether nothing is known of the architecture yet.
        root: The checkout that builds.
    """
    cache = folder / "cache"
    if first:
        shutil.rmtree(cache, ignore_errors=True)
    start = time.perf_counter()
    command = [sys.executable, str(root / "scripts" / "bench_build.py"), "--folder", str(folder), "--child", candidate]
    environment = {**os.environ, "PYTHONPATH": str(root), "XDG_CACHE_HOME": str(cache)}
    child = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    seconds = time.perf_counter() - start
    if child.returncode:
        sys.exit(f"the build of {candidate} failed:\n{child.stderr}")
    return {"wall_s": round(seconds, 2), **json.loads(child.stdout.splitlines()[-1])}


def written_as(own: Path, lowering: str) -> Path:
    """A folder with the file that would ship in a lowering; its inputs calibrated on noise, which costs the same."""
    from qvec_deploy.bench.parity import parity_images
    from qvec_deploy.io.files import link_files
    from qvec_deploy.runtimes.engine_files import MODEL_FILE, WEIGHTS_FILE
    from qvec_deploy.runtimes.onnxruntime.ort_model import write_model

    place = own.parent / f"{own.name}-{lowering}"
    place.mkdir(exist_ok=True)
    link_files([own / MODEL_FILE, own / WEIGHTS_FILE], place)
    write_model(place, lowering, [parity_images((3, 224, 224))], 1)
    return place


def measure(own: Path, full: Path, threads: int, blocks: int) -> dict[str, dict[str, float]]:
    """Latency of every lowering, interleaved, and its footprint in a process of its own."""
    from qvec_deploy.bench.footprint import probe
    from qvec_deploy.bench.latency import measure_latency
    from qvec_deploy.bench.parity import parity_images
    from qvec_deploy.bench.statistics import median, speed_up
    from qvec_deploy.runtimes.registry import find_runtime

    places = {name: full if name == "float" else written_as(own, name) for name in LOWERINGS}
    images = parity_images((3, 224, 224))[:1]
    rows = {}
    with ExitStack() as stack:
        target = find_runtime("onnxruntime").load()
        sessions = {n: stack.enter_context(target.open(place, n, threads)) for n, place in places.items()}
        samples = measure_latency(sessions, images, blocks=blocks, warmup=5, seed=0)
    for name, place in places.items():
        arguments = {
            "backend": find_runtime("onnxruntime").backend,
            "directory": str(place),
            "lowering": name,
            "threads": threads,
        }
        opener = "qvec_deploy.runtimes.registry:open_engine"
        footprint = probe(opener, arguments, input_shape=(3, 224, 224), preload=["onnxruntime"])
        ratio = speed_up(samples["float"].samples_ms, samples[name].samples_ms)
        rows[name] = {
            "median_ms": round(median(samples[name].samples_ms), 2),
            "speed_up": round(ratio.value, 3) if ratio is not None else float("nan"),
            "speed_up_low": round(ratio.low, 3) if ratio is not None else float("nan"),
            "speed_up_high": round(ratio.high, 3) if ratio is not None else float("nan"),
            "load_s": round(footprint.load_s, 2),
            "rss_mb": round(footprint.rss_bytes / 1e6, 1),
            "peak_mb": round((footprint.peak_rss_bytes or 0) / 1e6, 1),
        }
    return rows


def int8_cost(folder: Path) -> dict[str, float]:
    """Top-1 of the demo's exact 3-bit engine and of `int8` on the same weights and 5,000 generated images."""
    from qvec_deploy.builder.pipeline import build
    from qvec_deploy.bundle.side_by_side import bench_bundles
    from qvec_deploy.recipe import load_recipe

    build(
        load_recipe(ROOT / "recipes" / "demo_3bit.yaml", ["variants=[]", "name=demo", "target.lowering=int8"]),
        folder / "demo",
        force=True,
    )
    report = bench_bundles([folder / "demo"], lowerings=("packed", "int8"), blocks=2)
    exact, int8 = (candidate.accuracy.correct for candidate in report.candidates if candidate.accuracy is not None)
    points = 100 / report.images
    return {"images": report.images, "exact_top1": exact * points, "int8_top1": int8 * points}


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 3 when an aim is missed")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--builds", type=int, default=3, help="builds that are timed; the median counts")
    parser.add_argument("--blocks", type=int, default=40, help="latency samples of every lowering")
    parser.add_argument("--threads", type=int, default=1, help="threads of the engines (default: 1)")
    parser.add_argument("--folder", type=Path, help="keep inputs and engines here")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="time its builds, too")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        build_once(options.folder, options.child)
        sys.stdout.flush()
        os._exit(0)  # as the command line ends
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "vit_base.yaml").is_file():
            make_inputs(folder)
        first = build_apart(folder, "vit_base", first=True)
        full = build_apart(folder, "float")
        builds, others = [], []
        for _ in range(options.builds):
            builds.append(build_apart(folder, "vit_base"))
            if options.against is not None:
                others.append(build_apart(folder, "vit_base", root=options.against.resolve()))
        builds.sort(key=lambda build: build["wall_s"])
        build = builds[len(builds) // 2]
        rows = measure(Path(builds[0]["directory"]), Path(full["directory"]), options.threads, options.blocks)
        accuracy = int8_cost(folder)
    figures = {
        "first_build_s": first["wall_s"],
        "first_build_peak_gb": first["peak_gb"],
        "build_s": build["wall_s"],
        "build_peak_gb": max(b["peak_gb"] for b in builds),
        "output_mb": build["output_mb"],
        "int8_speed_up": rows["int8"]["speed_up"],
        "int4_memory_ratio": round(rows["int4"]["rss_mb"] / rows["float"]["rss_mb"], 3),
        "int4_speed_up": rows["int4"]["speed_up"],
        **{
            f"{name}_{kind}_ratio": round(rows[name][column] / rows["float"][column], 2)
            for name in ("int4", "int8")
            for kind, column in (("load", "load_s"), ("peak", "peak_mb"))
        },
        "packed_load_s": rows["packed"]["load_s"],
        "packed_peak_gb": round(rows["packed"]["peak_mb"] / 1e3, 2),
        "int8_top1_cost": round(accuracy["exact_top1"] - accuracy["int8_top1"], 2),
    }
    missed = [
        name for name, (limit, upper) in AIMS.items() if (figures[name] > limit) == upper and figures[name] != limit
    ]
    if options.json:
        document = {
            "first": first,
            "builds": builds,
            "against": others,
            "lowerings": rows,
            "accuracy": accuracy,
            "figures": figures,
            "missed": missed,
        }
        print(json.dumps({**document, "load_average": os.getloadavg()[0]}, indent=2))
    else:
        show({"first": [first], "build": builds, "against": others}, rows, figures, options.threads)
    if missed:
        print(f"missed: {', '.join(missed)}", file=sys.stderr)
        sys.exit(3 if options.check else 0)


def show(
    builds: dict[str, list[dict[str, Any]]],
    rows: dict[str, dict[str, float]],
    figures: dict[str, float],
    threads: int,
) -> None:
    """The same as text."""
    for name, made in builds.items():
        for build in made:
            spent = f"{build['cpu_s']:6.2f} CPU s" if "cpu_s" in build else ""
            print(f"{name:7} {build['wall_s']:6.2f} s {spent:12}  peak {build['peak_gb']:.2f} GB  {build['stages_s']}")
    parity = builds["build"][0]["parity"]
    print(f"output {figures['output_mb']} MB, parity with PyTorch {parity:.1e} (relative L2)\n")
    print(f"batch 1, {threads} thread(s), load average {os.getloadavg()[0]:.1f}")
    print(f"{'lowering':8} {'median ms':>9} {'speed-up [95 %]':>22} {'load s':>7} {'RSS MB':>7} {'peak MB':>8}")
    for name, row in rows.items():
        ratio = f"{row['speed_up']:.2f} [{row['speed_up_low']:.2f}, {row['speed_up_high']:.2f}]"
        print(
            f"{name:8} {row['median_ms']:9.1f} {ratio:>22} {row['load_s']:7.2f} "
            f"{row['rss_mb']:7.0f} {row['peak_mb']:8.0f}"
        )
    print()
    for name, (limit, upper) in AIMS.items():
        print(f"{name:18} {figures[name]:8.3f}   aim {'at most' if upper else 'at least'} {limit:g}")


if __name__ == "__main__":
    main()

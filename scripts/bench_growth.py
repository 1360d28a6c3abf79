#!/usr/bin/env python3
"""How cost grows: with the model, with the number of candidates, with the number of images.

    scripts/bench_growth.py                              # all three, tiny to huge; takes half an hour and 8 GB of disk
    scripts/bench_growth.py --models tiny small base --candidates 1 5 --images 100 1000
    scripts/bench_growth.py --plot growth.svg --record

Models are timm's ViTs from tiny (5.7 M weights) to huge (632 M) with initial weights: the second build of each, when
its architecture is known, from checkpoint and vector to a checked engine. Candidates are lambdas of the demo's model,
each built, measured and shown on one page, which headless Chromium opens where it is installed. Images are the demo's
generated ones, answered by two engines. Every run is a process of its own. Cost is super-linear where a size costs more
for each unit than a smaller one did, by more than a fifth; with --check, that is an exit with 3, and so is a page of 50
candidates above 3 MB or a second.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import yaml
from bench_build import build_apart, make_inputs

ROOT = Path(__file__).resolve().parent.parent
RECORD = Path(__file__).resolve().parent / "growth.record.json"
MODELS = {
    "tiny": "vit_tiny_patch16_224",
    "small": "vit_small_patch16_224",
    "base": "vit_base_patch16_224",
    "large": "vit_large_patch16_224",
    "huge": "vit_huge_patch14_224",
}
CANDIDATES, IMAGES = (1, 10, 25, 50), (100, 1_000, 10_000, 50_000)
COSTS = {"models": ("wall_s", "cpu_s", "peak_gb"), "candidates": ("wall_s", "cpu_s"), "images": ("wall_s", "cpu_s")}
TOLERANCE = 1.2
PAGE_MB, PAGE_S = 3.0, 1.0
Row = dict[str, Any]


def run_apart(command: list[str]) -> Row:
    """Run a command in a process that has no other children: wall and CPU seconds, and its largest process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_run, command).result()


def _run(command: list[str]) -> Row:
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "wall_s": round(time.perf_counter() - start, 2),
        "cpu_s": round(used.ru_utime + used.ru_stime, 2),
        "peak_gb": round(1024 * used.ru_maxrss / 1e9, 3),
    }


def grow_model(name: str, folder: Path) -> Row:
    """The second build of an architecture."""
    make_inputs(folder, MODELS[name])
    first = build_apart(folder, "vit_base", first=True)
    second = build_apart(folder, "vit_base")
    weights = (folder / "receiver.safetensors").stat().st_size / 4e6
    kept = {key: second[key] for key in ("wall_s", "cpu_s", "peak_gb", "output_mb", "stages_s")}
    return {"model": MODELS[name], "size": round(weights, 1), "first_s": first["wall_s"], **kept}


def _demo(folder: Path, **changes: Any) -> list[str]:
    recipe = yaml.safe_load((ROOT / "recipes" / "demo_3bit.yaml").read_text())
    recipe |= {"variants": [], "measure": {"blocks": 4, "warmup": 2}, **changes}
    for place in ("receiver", "vector"):
        block = recipe[place]
        for key in {"checkpoint", "files"} & set(block):
            block[key] = _located(block[key])
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return [sys.executable, "-m", "qvec_deploy", "build", "--recipe", str(folder / "recipe.yaml"), "--quiet"]


def _located(value: Any) -> Any:
    return [_located(each) for each in value] if isinstance(value, list) else str(ROOT / "recipes" / value)


def grow_candidates(count: int, folder: Path) -> Row:
    """A build of so many candidates beside the float one, and its page."""
    variants = [{"name": f"at_{at}", "set": {"lambda": round(at / count, 4)}} for at in range(count - 1)]
    out = folder / "bundle"
    took = run_apart(
        [*_demo(folder, variants=variants, evaluate={"dataset": "tiny/symbols", "limit": 300}), "-o", str(out)]
    )
    page = out / "report.html"
    sizes = {f"{path.suffix[1:]}_mb": round(path.stat().st_size / 1e6, 3) for path in (page, out / "report.json")}
    return {"size": count, **took, **sizes, "opens_s": opening_time(page)}


def opening_time(page: Path, turns: int = 5) -> float | None:
    """Seconds that headless Chromium takes for a page more than for an empty one; None where it is not installed."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        return None
    empty = page.with_name("empty.html")
    empty.write_text("<!doctype html><title>empty</title>")
    times: dict[Path, list[float]] = {page: [], empty: []}
    for _ in range(turns):
        for each, found in times.items():
            start = time.perf_counter()
            command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", each.resolve().as_uri()]
            subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True, timeout=60)
            found.append(time.perf_counter() - start)
    empty.unlink()
    return round(max(0.0, median(times[page]) - median(times[empty])), 3)


def grow_images(count: int, folder: Path) -> Row:
    """A build that is evaluated on so many images."""
    command = _demo(folder, evaluate={"dataset": "tiny/symbols", "limit": count})
    took = run_apart([*command, "-o", str(folder / "bundle")])
    return {
        "size": count,
        **took,
        "predictions_mb": round((folder / "bundle" / "predictions.safetensors").stat().st_size / 1e6, 3),
    }


def super_linear(rows: list[Row], costs: tuple[str, ...]) -> list[str]:
    """Which costs grow faster than the size, and where."""
    found = []
    for cost in costs:
        for smaller, larger in itertools.pairwise(rows):
            before, after = smaller[cost] / smaller["size"], larger[cost] / larger["size"]
            if after > TOLERANCE * before:
                found.append(
                    f"{cost} for each unit: {before:.3g} at {smaller['size']}, {after:.3g} at {larger['size']}"
                )
    return found


def plot(found: dict[str, list[Row]], path: Path) -> None:
    """Wall and CPU time over size, one panel each."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    labels = {"models": "million weights", "candidates": "candidates", "images": "images"}
    figure, panels = plt.subplots(1, len(found), figsize=(4 * len(found), 3.2), squeeze=False, layout="constrained")
    for axes, (kind, rows) in zip(panels[0], found.items(), strict=True):
        sizes = np.array([row["size"] for row in rows])
        for cost, name in (("wall_s", "wall time"), ("cpu_s", "CPU time")):
            axes.plot(sizes, [row[cost] for row in rows], marker="o", label=name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel(labels[kind])
        axes.set_ylabel("seconds")
        axes.set_title(f"cost by {kind}")
        axes.legend()
    figure.savefig(path)


def show(found: dict[str, list[Row]]) -> None:
    """Tables."""
    for kind, rows in found.items():
        names = [name for name in rows[0] if name != "stages_s"]
        print(f"\n{kind}\n" + "  ".join(f"{name:>14}" for name in names))
        for row in rows:
            print("  ".join(f"{row[name] if row[name] is not None else '-':>14}" for name in names))


def main() -> int:
    """Run, print; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", choices=tuple(MODELS), default=list(MODELS))
    parser.add_argument("--candidates", nargs="*", type=int, default=list(CANDIDATES))
    parser.add_argument("--images", nargs="*", type=int, default=list(IMAGES))
    parser.add_argument("--plot", type=Path, help="write the curves to this file")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--check", action="store_true", help="exit 3 when an aim is missed")
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.relative_to(ROOT)}")
    asked = parser.parse_args()
    steps = {"models": grow_model, "candidates": grow_candidates, "images": grow_images}
    found: dict[str, list[Row]] = {}
    for kind, grow in steps.items():
        for size in getattr(asked, kind):
            with tempfile.TemporaryDirectory(prefix="growth.") as folder:
                row = grow(size, Path(folder))
            found.setdefault(kind, []).append(row)
            print(f"{kind} {size}: {row}", file=sys.stderr, flush=True)
    missed = [f"{kind}: {text}" for kind, rows in found.items() for text in super_linear(rows, COSTS[kind])]
    for row in found.get("candidates", []):
        if row["html_mb"] > PAGE_MB or (row["opens_s"] or 0) > PAGE_S:
            missed.append(
                f"candidates: a page of {row['size']} has {row['html_mb']} MB and opens in {row['opens_s']} s"
            )
    document = {
        "date": datetime.date.today().isoformat(),
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "load_average": round(os.getloadavg()[0], 2),
        **found,
        "missed": missed,
    }
    if asked.plot is not None:
        plot(found, asked.plot)
    if asked.record:
        RECORD.write_text(json.dumps(document, indent=1) + "\n")
    if asked.json:
        print(json.dumps(document, indent=1))
    else:
        show(found)
        print("\n".join(["", *missed]) or "nothing grows faster than its size")
    return 3 if missed and asked.check else 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""The product's CPU engines beside those that other tools make of the same model, interleaved in one run.

Every tool gets an environment of its own, made here. Its engine runs in a process of that environment; the parent asks
one after the other, in random order, for a few runs at a time. Speed-ups are medians over rounds of the ratio to float
in the same round. On the demo's model, accuracy over its generated test images stands beside the speed; ViT-B/16 has
timm's initial weights, and only its speed is told. What it took to make each file stands there, too: of the product,
one build of its `int8` from the checkpoint to the checked engine, for an architecture that it has built before; of the
others, from the float ONNX file.

    scripts/bench_peers.py                       # the demo's model
    scripts/bench_peers.py --model vit_base      # ViT-B/16 at 224
    scripts/bench_peers.py --peers ort-dynamic openvino-ptq --envs DIR
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import venv
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
WORKER = Path(__file__).resolve().parent / "peer_worker.py"
PACKAGES = {
    "ort": ["onnxruntime", "onnx"],
    "openvino": ["openvino", "nncf"],
    "olive": ["olive-ai", "onnxruntime", "requests"],
    "modelopt": ["nvidia-modelopt[onnx]"],
}
PEERS = (
    "ort-dynamic",
    "ort-dynamic-7bit",
    "ort-dynamic-u8",
    "openvino-ptq",
    "openvino-int4",
    "olive-int8",
    "olive-int4",
    "modelopt-int4",
)
OWN = ("float", "int4", "int8", "packed")
CALIBRATION = 128


@dataclass(frozen=True)
class Cost:
    """What a process took, with those that it started: wall and CPU time, and the largest one's memory."""

    seconds: float
    cpu_seconds: float
    peak_gb: float


@dataclass
class Engine:
    """An engine in its own process."""

    name: str
    model: Path
    process: subprocess.Popen[str]
    cost: Cost | None

    def ask(self, **request: Any) -> dict[str, Any]:
        """One request, one answer."""
        requests, answers = self.process.stdin, self.process.stdout
        if requests is None or answers is None:
            raise ValueError("the process was started without pipes")
        print(json.dumps(request), file=requests, flush=True)
        line = answers.readline()
        if not line:
            raise SystemExit(f"{self.name}: its process ended; look at what it printed")
        answer: dict[str, Any] = json.loads(line)
        return answer

    @property
    def size_mb(self) -> float:
        """Of the model's files."""
        parts = (self.model, self.model.with_suffix(".bin"), self.model.with_name(f"{self.model.name}.data"))
        return sum(path.stat().st_size for path in parts if path.is_file()) / 1e6


def run_apart(command: list[str]) -> tuple[subprocess.CompletedProcess[str], Cost]:
    """Run a command, and say what it took: in a process of its own, for the kernel adds up all children's."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_run, command).result()


def _run(command: list[str]) -> tuple[subprocess.CompletedProcess[str], Cost]:
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    took = Cost(time.perf_counter() - start, used.ru_utime + used.ru_stime, 1024 * used.ru_maxrss / 1e9)
    return done, took


def make_own(folder: Path, model: str) -> Cost:
    """The product's engines as files, and the float model that every other tool starts from.

    Returns:
        What a build of the quantized engine took.
    """
    from bench_build import make_inputs

    from qvec_deploy.builder.pipeline import build
    from qvec_deploy.bundle.export_bundle import export_model
    from qvec_deploy.recipe import load_recipe

    quick = ["measure.blocks=2", "measure.warmup=0", "target.threads=1", "evaluate=null"]
    if model == "demo":
        recipe, changes = ROOT / "recipes" / "demo_3bit.yaml", ["variants=[]"]
    else:
        make_inputs(folder)
        recipe, changes = folder / "recipe.yaml", []
        recipe.write_text(
            "version: 1\nname: vit\nreceiver: {checkpoint: receiver.safetensors, model: vit_base_patch16_224}\n"
            "lambda: 0\nquantize: {bits: 3, granularity: channel, method: rtn}\n"
            "target: {runtime: onnxruntime, lowering: int8}\n"
        )
    full = ["lambda=0", "vector=null", "variants=[]", "quantize={bits: 32}", "target.lowering=float"]
    settings = [*quick, *changes, "target.lowering=int8"]
    build(load_recipe(recipe, settings), folder / "quantized")
    sets = [part for setting in settings for part in ("--set", setting)]
    command = [
        sys.executable,
        "-m",
        "qvec_deploy",
        "build",
        "--recipe",
        str(recipe),
        *sets,
        "-o",
        str(folder / "again"),
    ]
    done, cost = run_apart(command)
    if done.returncode:
        raise SystemExit(done.stderr)
    build(load_recipe(recipe, [*quick, *full]), folder / "full")
    # Weights already turned: other tools quantize what a MatMul reads, and nothing behind a Transpose.
    export_model(folder / "full", folder / "float.onnx", expanded=True)
    for lowering in OWN[1:]:
        export_model(folder / "quantized", folder / f"{lowering}.onnx", lowering)
    return cost


def make_images(folder: Path, model: str, count: int) -> Any:
    """Calibration images, one image to time with, and labelled test images; their labels, or None."""
    if model == "demo":
        from qvec_deploy.datasets import DataConfig, DatasetSpec, open_dataset
        from qvec_deploy.recipe import load_recipe

        name = load_recipe(ROOT / "recipes" / "demo_3bit.yaml").evaluate.dataset
        calibration, _ = open_dataset(DatasetSpec(name, "train", limit=CALIBRATION), DataConfig()).take(
            range(CALIBRATION)
        )
        images, labels = open_dataset(DatasetSpec(name, "test", limit=count), DataConfig()).take(range(count))
    else:
        generator = np.random.default_rng(0)
        calibration = generator.standard_normal((8, 3, 224, 224), dtype=np.float32)
        images, labels = calibration[:1], None
    for name, array in (("calibration", calibration), ("one", images[:1]), ("test", images)):
        np.save(folder / f"{name}.npy", array)
    return labels


def environment(name: str, folder: Path) -> Path:
    """Python of a tool's environment, made where it is missing."""
    python = folder / name / "bin" / "python"
    if not (folder / name / ".made").exists():
        venv.create(folder / name, with_pip=True, clear=True)
        if name == "modelopt":  # this environment has it, without what its ONNX part needs
            (packages,) = (folder / name / "lib").glob("python*/site-packages")
            (packages / "own.pth").write_text(str(Path(np.__file__).parents[1]))
        subprocess.run([python, "-m", "pip", "install", "--quiet", "numpy", *PACKAGES[name]], check=True)
        (folder / name / ".made").touch()
    return python


def open_engines(folder: Path, envs: Path, peers: list[str], threads: int, cost: Cost) -> list[Engine]:
    """All engines, the product's first; a tool that fails is named and left out.

    Args:
        cost: Of the product's `int8`.
    """
    ort = environment("ort", envs)
    made = [(name, folder / f"{name}.onnx", ort, cost if name == "int8" else None) for name in OWN]
    for peer in peers:
        python = environment(peer.partition("-")[0], envs)
        out = folder / f"{peer}.{'xml' if peer.startswith('openvino') else 'onnx'}"
        files = (folder / "float.onnx", folder / "calibration.npy", out)
        done, took = run_apart([str(python), str(WORKER), "make", peer, *map(str, files)])
        if done.returncode:
            print(f"{peer} failed: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}", file=sys.stderr)
            continue
        made.append((peer, out, ort if peer == "modelopt-int4" else python, took))
    engines = []
    for name, model, python, spent in made:
        command = [str(python), str(WORKER), "serve", name, str(model), str(threads)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        engines.append(Engine(name, model, process, spent))
    return engines


def measure(engines: list[Engine], folder: Path, rounds: int, runs: int) -> dict[str, dict[str, list[float]]]:
    """Medians of every round, wall and CPU time, by engine."""
    one, order, found = str(folder / "one.npy"), random.Random(0), {e.name: {"ms": [], "cpu_ms": []} for e in engines}
    for engine in engines:
        engine.ask(images=one, runs=runs)
    for _ in range(rounds):
        for engine in order.sample(engines, len(engines)):
            answer = engine.ask(images=one, runs=runs)
            for kind, values in found[engine.name].items():
                values.append(float(np.median(answer[kind])))
    return found


def accuracy(engine: Engine, folder: Path, labels: Any) -> float:
    """Top-1 in percent, images one at a time, as they are timed."""
    out = folder / f"{engine.name}.logits.npy"
    engine.ask(images=str(folder / "test.npy"), logits=str(out))
    return 100 * float((np.load(out).argmax(1) == labels).mean())


def main() -> None:
    """Make, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("demo", "vit_base"), default="demo")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--envs", type=Path, help="Keep the tools' environments here.  [default: thrown away]")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--runs", type=int, help="Runs of an engine in a round.  [default: 20, ViT-B 1]")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        envs = options.envs or folder / "envs"
        cost = make_own(folder, options.model)
        labels = make_images(folder, options.model, options.images)
        engines = open_engines(folder, envs.resolve(), options.peers, options.threads, cost)
        times = measure(engines, folder, options.rounds, options.runs or (20 if options.model == "demo" else 1))
        rows: list[dict[str, Any]] = []
        for engine in engines:
            ratios = {kind: np.divide(times["float"][kind], values) for kind, values in times[engine.name].items()}
            rows.append(
                {
                    "engine": engine.name,
                    "median_ms": float(np.median(times[engine.name]["ms"])),
                    "speed_up": float(np.median(ratios["ms"])),
                    "speed_up_cpu": float(np.median(ratios["cpu_ms"])),
                    "top1": accuracy(engine, folder, labels) if labels is not None else None,
                    "mb": engine.size_mb,
                    "made": engine.cost,
                }
            )
        for engine in engines:
            engine.process.kill()
    if options.json:
        print(json.dumps({"load": os.getloadavg(), "threads": options.threads, "rows": rows}, indent=2, default=asdict))
        return
    print(f"{'engine':18} {'median ms':>10} {'x float':>8} {'x by CPU time':>14} {'top-1 %':>8} {'MB':>7} made in")
    for row in rows:
        top1 = f"{row['top1']:8.2f}" if row["top1"] is not None else f"{'-':>8}"
        made = (
            "{seconds:.1f} s, {cpu_seconds:.1f} CPU s, {peak_gb:.2f} GB".format(**row["made"]) if row["made"] else "-"
        )
        print(
            f"{row['engine']:18} {row['median_ms']:10.2f} {row['speed_up']:8.2f} {row['speed_up_cpu']:14.2f} {top1} "
            f"{row['mb']:7.1f} {made}"
        )
    print(f"load average {os.getloadavg()[0]:.1f}, {options.threads} threads, {options.rounds} rounds")


if __name__ == "__main__":
    main()

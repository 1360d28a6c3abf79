#!/usr/bin/env python3
"""What engines of TensorRT for RTX take in a bundle: ViT-B/16 in every lowering, as deltas to its graph and whole.

Every engine is built by the product's own code from one packed file of 3 bits, in a process of its own, so that CPU
seconds and peak memory are its own; another process, which has NVIDIA's library not in memory, makes the engine's bytes
again. The weights are timm's initial ones with noise on every tensor: norms of ones and biases of zeros would cost
nothing to store. No GPU is needed; nothing is run.

    scripts/bench_deltas.py            # a table
    scripts/bench_deltas.py --check    # exit 3 if an aim is missed
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qvec_deploy.errors import QvecError
from qvec_deploy.runtimes.engine_files import is_of_engine
from qvec_deploy.runtimes.engine_options import Batches, EngineOptions
from qvec_deploy.runtimes.session import Advance
from qvec_deploy.runtimes.tensorrt import TENSORRT_RTX
from qvec_deploy.runtimes.tensorrt.python_plugin import library_folder

MODEL = "vit_base_patch16_224"
NOISE = 0.02
AIMS = {  # figure: the most it may be, for the worst of the lowerings
    "encode_cpu_s": 10.0,
    "rebuild_cpu_s": 10.0,
    "delta_share": 0.01,
}
COLUMNS = (
    ("engine_bytes", 13), ("delta_bytes", 12), ("build_cpu_s", 12), ("encode_cpu_s", 13), ("build_peak_mib", 15),
    ("rebuild_cpu_s", 14), ("rebuild_peak_mib", 17),
)  # fmt: skip


def main() -> int:
    """Build, make again, print, and say which aims were missed."""
    options = parse_options()
    if options.worker:
        result = {"model": write_model, "build": build, "rebuild": rebuild}[options.worker](
            options.folder, options.lowering
        )
        Path(options.result).write_text(json.dumps(result), encoding="utf-8")
        return 0
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench_deltas.")))
        folder.mkdir(parents=True, exist_ok=True)
        in_a_process("model", folder)
        rows = {name: measure(folder, name) for name in options.lowering or lowering_names()}
        sizes = bundle_bytes(folder)
    built = [row for row in rows.values() if "refused" not in row]
    figures = {name: max(row[name] for row in built) for name in AIMS} if built else {}
    missed = [name for name, most in AIMS.items() if figures.get(name, most) > most]
    if options.json:
        print(json.dumps({"lowerings": rows, "bundle": sizes, "figures": figures, "missed": missed}, indent=2))
    else:
        show(rows, sizes)
    if options.check and (missed or not built):
        print(f"aims missed: {', '.join(missed) or 'no engine was built'}", file=sys.stderr)
        return 3
    return 0


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 3, naming them, if aims are missed")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--lowering", action="append", help="one of the runtime's; repeatable (default: all)")
    parser.add_argument("--folder", type=Path, help="keep model and engines here (default: a temporary folder)")
    parser.add_argument("--worker", choices=["model", "build", "rebuild"], help=argparse.SUPPRESS)
    parser.add_argument("--result", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        options.lowering = options.lowering[0] if options.lowering else None
    return options


def lowering_names() -> list[str]:
    """Every lowering of the runtime."""
    return [row.name for row in TENSORRT_RTX.lowerings]


def measure(folder: Path, lowering: str) -> dict[str, Any]:
    """One lowering: built in one process, made again in another."""
    row = in_a_process("build", folder, lowering)
    return row if "refused" in row else {**row, **in_a_process("rebuild", folder, lowering)}


def in_a_process(worker: str, folder: Path, lowering: str | None = None) -> dict[str, Any]:
    """What a worker found; its output, the builder's log, stays in the folder."""
    result, log = folder / "result.json", folder / f"{worker}.{lowering}.log"
    command = [sys.executable, __file__, "--worker", worker, "--folder", str(folder), "--result", str(result)]
    command += ["--lowering", lowering] if lowering is not None else []
    with log.open("wb") as output, library_folder() as library:  # which the parser wants for `packed`
        environment = {**os.environ, "LD_LIBRARY_PATH": str(library)}
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False, env=environment)
    if done.returncode:
        sys.exit(f"{worker} of {lowering or MODEL} failed; {log} says why")
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found


def write_model(folder: Path, _: str | None) -> dict[str, Any]:
    """The model's graph, its weights of 3 bits, activations, and PyTorch's logits, unless they are there."""
    import tensorrt_graphs
    import torch
    from safetensors.torch import save_file

    from qvec_deploy.models import create

    if not (folder / "bundle" / "model.onnx").is_file():
        torch.manual_seed(0)
        state = create(MODEL, 1000, {}).state_dict()
        checkpoint = folder / "receiver.safetensors"
        save_file({name: value + NOISE * torch.randn_like(value) for name, value in state.items()}, checkpoint)
        tensorrt_graphs.MODELS["noisy"] = {"name": MODEL, "args": {}, "checkpoint": checkpoint}
        tensorrt_graphs.write_model("noisy", folder / "bundle")
        checkpoint.unlink()
    return {}


def build(folder: Path, lowering: str) -> dict[str, Any]:
    """Build the engine as `compile` does, but in this process, which is measured."""
    from qvec_deploy.runtimes.tensorrt import engine_build, engine_delta, tensorrt_runtime

    seconds: dict[str, float] = {}
    encode = engine_delta.encode

    def timed_encode(*arguments: Any) -> bytes | None:
        start = time.process_time()
        try:
            return encode(*arguments)
        finally:
            seconds["encode"] = time.process_time() - start

    def build_here(place: Path, name: str, batches: Batches, options: EngineOptions, _: Advance) -> None:
        start = time.process_time()
        engine_build.build_job(lambda _: None, str(place), name, asdict(batches), asdict(options))
        seconds["build"] = time.process_time() - start

    engine_delta.encode, tensorrt_runtime.build_apart = timed_encode, build_here
    backend, place = tensorrt_runtime.TensorRTForRTX(), folder / "bundle"
    try:
        backend.compile(place, lowering, EngineOptions(), caches=folder)
    except QvecError as error:
        return {"refused": error.message}
    (engine,) = backend.describe(place, lowering)
    return {
        "engine_bytes": engine["plan_bytes"],
        "delta_bytes": engine["stored_bytes"],
        "delta_share": engine["stored_bytes"] / engine["plan_bytes"],
        "stored_whole": engine["stored_whole"],
        "build_cpu_s": round(seconds["build"] - seconds["encode"], 2),
        "encode_cpu_s": round(seconds["encode"], 2),
        "build_peak_mib": peak_mib(),
    }


def rebuild(folder: Path, lowering: str) -> dict[str, Any]:
    """Make the engine's bytes again from the packed file and the delta; they are compared with the sidecar's hash."""
    from qvec_deploy.runtimes.tensorrt.tensorrt_runtime import TensorRTForRTX

    place, backend = folder / "bundle", TensorRTForRTX()
    (engine,) = backend.describe(place, lowering)
    start = time.process_time()
    backend.read(place, lowering, Batches.parse(engine["batches"]))
    return {"rebuild_cpu_s": round(time.process_time() - start, 2), "rebuild_peak_mib": peak_mib()}


def peak_mib() -> int:
    """Largest resident memory of this process."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def bundle_bytes(folder: Path) -> dict[str, int]:
    """What model, weights and all engines take together, and would take if the engines were whole."""
    from qvec_deploy.runtimes.tensorrt.tensorrt_runtime import TensorRTForRTX

    place, backend = folder / "bundle", TensorRTForRTX()
    with_deltas = sum(path.stat().st_size for path in place.iterdir() if is_of_engine(path.name))
    engines = [engine for name in lowering_names() for engine in backend.describe(place, name)]
    saved = sum(engine["plan_bytes"] - engine["stored_bytes"] for engine in engines)
    return {"engines": len(engines), "with_deltas": with_deltas, "with_whole_engines": with_deltas + saved}


def show(rows: dict[str, dict[str, Any]], sizes: dict[str, int]) -> None:
    """The same as text."""
    print(f"{MODEL}, 3 bits, batch 1 to 8, CPU seconds; load average {os.getloadavg()[0]:.1f}")
    print("".join([f"{'lowering':10}", *(f"{name:>{width}}" for name, width in COLUMNS)]))
    for lowering, row in rows.items():
        if "refused" in row:
            print(f"{lowering:10}  refused: {row['refused']}")
            continue
        print("".join([f"{lowering:10}", *(f"{row[name]:>{width},}" for name, width in COLUMNS)]))
        if row["stored_whole"] is not None:
            print(f"{'':10}  stored whole: {row['stored_whole']}")
    print(
        f"bundle with {sizes['engines']} engines: {sizes['with_deltas']:,} bytes, "
        f"{sizes['with_whole_engines']:,} with whole engines"
    )


if __name__ == "__main__":
    sys.exit(main())

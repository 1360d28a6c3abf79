#!/usr/bin/env python3
"""Plan and build a small configuration of every family of timm's vision transformers, and keep what came out.

    scripts/check_families.py [--only NAME ...] [--output FILE] [--seconds N]

Weights are random: what is tried is structure, never accuracy. Every family is planned, exported, put on 3 bits and run
in every lowering of ONNX Runtime on the CPU by the product's own functions, in a process of its own with a time limit.
The exit code is 3 where something fails that `plan` had not refused.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from timm_families import FAMILIES, Family

from qvec_deploy.bench.environment import capture_environment
from qvec_deploy.builder.context import BuildContext
from qvec_deploy.builder.pipeline import build_candidate
from qvec_deploy.errors import IncompatibleError, QvecError
from qvec_deploy.io.cache import Cache
from qvec_deploy.io.files import write_bytes
from qvec_deploy.models import create
from qvec_deploy.quantize import modelopt
from qvec_deploy.recipe import load_recipe
from qvec_deploy.runtimes.graph import export
from qvec_deploy.runtimes.registry import find_runtime

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "scripts" / "families.record.json"
IMPORTED = (modelopt, export)
RUNTIME = find_runtime("onnxruntime")
CLASSES, BITS = 10, 3
PROCESSES = multiprocessing.get_context("fork")  # what takes long to import is imported once


def random_state(family: Family) -> dict[str, np.ndarray]:
    """Weights that show whatever is lost on the way: none is 0, and activations stay of order one."""
    generator = np.random.default_rng(0)
    state = {}
    for name, tensor in create(family.model, CLASSES, family.args).state_dict().items():
        value, noise = tensor.numpy(), generator.standard_normal(tensor.shape)
        if not tensor.is_floating_point():
            state[name] = value
            continue
        if name.endswith("running_var"):
            value = np.exp(0.3 * noise)
        elif value.ndim >= 2 and value[0].size > 1:
            value = noise * value[0].size ** -0.5
        else:
            value = np.nan_to_num(value, posinf=100, neginf=-100) + 0.1 * noise  # Gemma's clamps, before training
        state[name] = np.array(value, np.float32)  # not ascontiguousarray, which gives a scalar an axis
    return state


def try_family(family: Family, folder: Path) -> dict[str, Any]:
    """Plan and build a family in every lowering, with Linears alone on the grid and with convolutions too.

    Returns:
        Relative L2 error of the logits against PyTorch's with the same weights, by lowering, or why the build refused
        it; or the sentence of `plan`.
    """
    save_file(random_state(family), folder / "receiver.safetensors")
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        json.dumps(
            {
                "version": 1,
                "name": "family",
                "receiver": {
                    "checkpoint": "receiver.safetensors",
                    "model": family.model,
                    "model_args": family.args,
                    "preprocessing": {"input_size": family.side} if family.side else {},
                },
                "lambda": 0,
                "images": {"dataset": "generated/structured", "limit": 16},
            }
        )
    )
    context = BuildContext(offline=True, cache=Cache(folder / "cache"))

    def build(lowering: str, *, convolutions: bool = False) -> float | str:
        try:
            built = build_candidate(load_recipe(recipe, _settings(lowering, convolutions)), context)
        except IncompatibleError as error:  # its logits are too far off
            return error.message
        if built.parity is None:
            raise RuntimeError(built.missing)
        return float(f"{built.parity.relative_error:.1e}")

    baseline, *lowerings = (lowering.name for lowering in RUNTIME.lowerings)
    try:
        plan = context.plan(load_recipe(recipe, _settings(baseline)))
    except QvecError as error:
        return {"refused": error.message}
    operators = " ".join(sorted({node.op_type for node in context.skeleton(plan).graph.node if not node.domain}))
    row: dict[str, Any] = {"input": list(plan.architecture.input_shape), "operators": operators}
    row["float"] = build(baseline)
    for part, convolutions in (("linears", False), ("convolutions", True)):
        if convolutions and not plan.architecture.convolutions:
            continue
        try:
            quantized = context.plan(load_recipe(recipe, _settings(lowerings[0], convolutions)))
        except QvecError as error:
            row[part] = {"refused": error.message}
            continue
        share = sum(t.size for t in quantized.quantized) / sum(t.size for t in quantized.tensors)
        errors = {lowering: build(lowering, convolutions=convolutions) for lowering in lowerings}
        row[part] = {"tensors": len(quantized.quantized), "share": round(share, 3), **errors}
    return row


def _settings(lowering: str, convolutions: bool = False) -> list[str]:
    bits = RUNTIME.float_bits if lowering == RUNTIME.baseline.name else BITS
    filters = str(convolutions).lower()
    return [
        f"quantize.bits={bits}",
        f"quantize.convolutions={filters}",
        f"target.lowering={lowering}",
        "target.threads=1",
    ]


def try_apart(name: str, seconds: float) -> dict[str, Any]:
    """The same in a process of its own; what it dies of is told."""
    receive, send = PROCESSES.Pipe(duplex=False)
    child = PROCESSES.Process(target=_answer, args=(name, send), daemon=True)
    started = time.monotonic()
    child.start()
    send.close()
    try:
        row = receive.recv() if receive.poll(seconds) else {"failed": f"it took more than {seconds:g} s"}
    except EOFError:
        row = {"failed": "its process died"}
    child.kill()
    child.join()
    return {**vars(FAMILIES[name]), **row, "seconds": round(time.monotonic() - started)}


def _answer(name: str, send: Any) -> None:
    import torch

    torch.set_num_threads(1)
    try:
        with TemporaryDirectory() as folder:
            send.send(try_family(FAMILIES[name], Path(folder)))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
        send.send({"failed": f"{type(error).__name__}: {error}".splitlines()[0]})


def show(name: str, row: dict[str, Any]) -> None:
    """A line or two."""
    if "refused" in row or "failed" in row:
        print(f"{name:24} {'refused' if 'refused' in row else 'FAILED'}: {row.get('refused', row.get('failed'))}")
    else:
        print(f"{name:24} float {row['float']}, {row['seconds']} s")
        for part in ("linears", "convolutions"):
            found = row.get(part, {"refused": "there are none"})
            told = f"refused: {found['refused']}" if "refused" in found else json.dumps(found)[1:-1]
            print(f"{part:>24} {told}")
    sys.stdout.flush()


def summary(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """What a record shows, in a sentence for the README."""
    exported = [row for row in rows.values() if "float" in row]
    whole = [row for row in exported if not any(isinstance(error, str) for error in _told(row))]
    linears, filters = (
        sum(part in row and "refused" not in row[part] for row in exported) for part in ("linears", "convolutions")
    )
    return (
        f"Of {len(rows)} families of timm's vision transformers, {len(exported)} are exported, {len(whole)} of them "
        f"agree with PyTorch in every lowering of ONNX Runtime: {linears} with their Linears at {BITS} bits, {filters} "
        f"with convolutions at {BITS} bits too; {len(rows) - len(exported)} are refused by `plan` with a sentence."
    )


def _told(row: Mapping[str, Any]) -> list[float | str]:
    """What came out for every lowering of a family that was exported."""
    parts = [row[part] for part in ("linears", "convolutions") if "refused" not in row.get(part, {"refused": ""})]
    lowerings = [lowering.name for lowering in RUNTIME.lowerings]
    return [row["float"], *(part[name] for part in parts for name in lowerings if name in part)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=FAMILIES, metavar="NAME", help="a family; repeatable")
    parser.add_argument("--output", type=Path, default=RECORD, help="the record; what is not tried stays in it")
    parser.add_argument("--seconds", type=float, default=600, help="time limit of one family")
    options = parser.parse_args(arguments)
    kept = json.loads(options.output.read_text())["families"] if options.output.exists() else {}
    found: dict[str, Any] = {name: row for name, row in kept.items() if name in FAMILIES}
    for name in options.only or FAMILIES:
        found[name] = try_apart(name, options.seconds)
        show(name, found[name])
        environment = capture_environment(1)
        record = {
            "date": datetime.date.today().isoformat(),
            "cpu": environment.cpu,
            "packages": environment.packages,
            "families": {each: found[each] for each in FAMILIES if each in found},
        }
        write_bytes(options.output, (json.dumps(record, indent=1) + "\n").encode())
    if not options.only:
        print(summary(found))
    return 3 if any("failed" in row for row in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())

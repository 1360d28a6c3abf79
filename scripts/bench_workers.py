#!/usr/bin/env python3
"""Nodes a minute of a study with one worker and with several: on local processes, and on Ray.

    scripts/bench_workers.py                       # 1 and 2 workers, both executors, one round of each
    scripts/bench_workers.py --rounds 2 --check

Every run is a small study of the bundled tasks from an empty folder: float and quantization-aware fine-tunes, vectors,
cells; all runs must give the same answers, image by image. Counted is the time from the graph's being known to the last
node's end, so that starting the workers is in it. Efficiency is the nodes a minute of N workers over N times those of
one. How much longer a node takes with N at a time is printed beside it: what cores share, their memory first, no
executor can give back. With --check, exits 3 when an efficiency is below 0.9.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any, get_args

from qvec_deploy.io.files import canonical_json, sha256_bytes
from qvec_deploy.jobs.executors import ExecutorName
from qvec_deploy.research.study.study_documents import read_study
from qvec_deploy.research.study.study_node import StudyNode
from qvec_deploy.research.study.study_recipe import StudyRecipe, load_study
from qvec_deploy.research.study.study_run import NodeEnd, StudyWatcher, run_study

ROOT = Path(__file__).resolve().parent.parent
LEAST_EFFICIENCY = 0.9
SMALLER = (
    "name=bench_workers",
    "seeds=1",
    "tasks.only=[lower, upper, symbols, pairs]",
    "train.steps=100",
    "methods=[]",
    "inputs=[images]",
    "controls=[]",
)
GRIDS = 'grids=[{"bits": 3, "granularity": "tensor", "method": "mse"}]'


class Clock(StudyWatcher):
    """Notes when the graph is known and when the last node ended."""

    def __init__(self) -> None:
        self.start = self.end = 0.0
        self.seconds: list[float] = []

    def begun(self, nodes: Sequence[StudyNode]) -> None:
        """The graph is known."""
        self.start = time.perf_counter()

    def ended(self, end: NodeEnd) -> None:
        """A node is over."""
        if end.state != "made":
            sys.exit(f"{end.node.name}: {end.state}, {end.failure}")
        self.end = time.perf_counter()
        self.seconds.append(end.seconds)


def recipe(base: Path) -> StudyRecipe:
    """The bundled study with one seed and one grid, and shorter fine-tunes of a base that is there already."""
    study = ROOT / "recipes" / "study_tiny.yaml"
    model = load_study(study).models[0].model_dump(mode="json", exclude={"preset"})
    models = json.dumps([model | {"base": {"checkpoint": str(base)}}])
    return load_study(study, (*SMALLER, GRIDS, f"models={models}"))


def run(wanted: StudyRecipe, executor: ExecutorName, workers: int) -> dict[str, Any]:
    """One study from nothing."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "study"
        run_study(wanted, out, jobs=workers, executor=executor, watcher=clock)
        trials = [[asdict(trial) for trial in cell.trials] for cell in read_study(out).cells]
    wall = clock.end - clock.start
    return {
        "nodes": len(clock.seconds),
        "wall_s": round(wall, 1),
        "per_minute": 60 * len(clock.seconds) / wall,
        "mean_node_s": mean(clock.seconds),
        "answers": sha256_bytes(canonical_json(trials)),
    }


def measure(workers: Sequence[int], executors: Sequence[ExecutorName], rounds: int) -> dict[str, Any]:
    """Every executor with every number of workers, in turn."""
    wanted = recipe(ROOT / "recipes" / "demo" / "receiver_symbols.safetensors")
    runs: dict[tuple[ExecutorName, int], list[dict[str, Any]]] = {}
    for _ in range(rounds):
        for executor in executors:
            for count in workers:
                runs.setdefault((executor, count), []).append(run(wanted, executor, count))
    if len({one["answers"] for done in runs.values() for one in done}) != 1:
        sys.exit("two runs answer differently: there is a mistake in an executor")
    found = []
    for (executor, count), done in runs.items():
        rate = mean(one["per_minute"] for one in done)
        alone = mean(one["per_minute"] for one in runs[executor, workers[0]]) / workers[0]
        seconds = mean(one["mean_node_s"] for one in done)
        longer = seconds / mean(one["mean_node_s"] for one in runs[executor, workers[0]])
        found.append(
            {
                "executor": executor,
                "workers": count,
                "nodes_per_minute": round(rate, 2),
                "efficiency": round(rate / (count * alone), 3),
                "node_takes": round(longer, 3),
                "runs": done,
            }
        )
    return {"cores": len(os.sched_getaffinity(0)), "load_average": os.getloadavg()[0], "found": found}


def main() -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of workers, the first is 1")
    parser.add_argument("--executors", nargs="+", choices=get_args(ExecutorName), default=list(get_args(ExecutorName)))
    parser.add_argument("--rounds", type=int, default=1, help="runs of each")
    parser.add_argument("--check", action="store_true", help="exit 3 when an efficiency is below 0.9")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    document = measure(options.workers, options.executors, options.rounds)
    if options.json:
        print(json.dumps(document, indent=2))
    else:
        print("executor  workers  nodes a minute  efficiency  a node takes")
        for one in document["found"]:
            print(
                f"{one['executor']:8}  {one['workers']:7}  {one['nodes_per_minute']:14.2f}  {one['efficiency']:10.2f}  "
                f"{one['node_takes']:11.2f}x"
            )
    missed = [one for one in document["found"] if one["efficiency"] < LEAST_EFFICIENCY]
    if options.check and missed:
        print(f"missed: an efficiency is below {LEAST_EFFICIENCY}", file=sys.stderr)
    return 3 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())

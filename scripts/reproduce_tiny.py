#!/usr/bin/env python3
"""The method at tiny scale, with everything it must be held against: trains six tasks and prints one table a setting.

    scripts/reproduce_tiny.py [--check] [--json] [--work DIR] [--jobs N] [--seeds N] [--settings A B ...]

A base, then six float and six quantization-aware fine-tunes for every grid and seed, one thread a process; then every
task is the receiver and the five others are its donors. Everything is seeded; what is in the work directory under the
same settings is not computed again, so a run that was stopped goes on where it was. With --check the exit code is 3
where a result that the method stands on is missing.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from demo_table import MODEL, MODEL_ARGS, SKIP, open_split
from reproduce_table import print_tables, summarize, unmet
from rich.console import Console
from rich.progress import Progress
from safetensors.numpy import load_file
from tiny_training import BASE, FINETUNE, TASKS, Job, train

from qvec_deploy.datasets import batches
from qvec_deploy.recipe.recipe import Recipe, validate
from qvec_deploy.select.mixing import descend, ridge_weights
from qvec_deploy.select.score import divergences
from qvec_deploy.select.search import search
from qvec_deploy.select.student import Student
from qvec_deploy.store import atomic_path, canonical_json, sha256_bytes, write_bytes
from qvec_deploy.tensors import Float32, Scheme

ROOT = Path(__file__).resolve().parent.parent

SETTINGS = {
    "A": Scheme(2, "channel", clip=0.65),
    "B": Scheme(3, "tensor"),
    "D": Scheme(3, "channel"),
    "A on the MSE grid": Scheme(2, "channel", method="mse"),
    "B on the MSE grid": Scheme(3, "tensor", method="mse"),
    "D on the MSE grid": Scheme(3, "channel", method="mse"),
}
"""Bits and granularity of A, B and D with the grid fixed beforehand, and with the one of least squared error."""

TEST_IMAGES = 500
UNLABELLED = 400  # half of them select and calibrate
LAMBDAS = [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5]
MOMENT_IMAGES = 200
VERSION = 1  # of what a cell computes; raise it to compute cells again


def vector_path(work: Path, grid: Scheme, seed: int, task: str) -> Path:
    """Where a donor's vector is kept."""
    digest = sha256_bytes(canonical_json([Job(task, grid, FINETUNE, seed).settings, VERSION]))[:12]
    return work / f"vector_{task}_{digest}.safetensors"


def make_vector(work: Path, grid: Scheme, seed: int, task: str) -> None:
    """A donor's vector, with the second moments that its float model shows on its own images."""
    from qvec_deploy.models import create
    from qvec_deploy.quantize.calibrated import collect_moments
    from qvec_deploy.vectors.extract import extract_vector

    path = vector_path(work, grid, seed, task)
    if path.is_file():
        return
    torch = _one_thread()
    fp = load_file(Job(task, None, FINETUNE, seed).path(work))
    qat = load_file(Job(task, grid, FINETUNE, seed).path(work))
    data = open_split(task, "train", MOMENT_IMAGES)
    model = create(MODEL, data.classes, MODEL_ARGS)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in fp.items()})
    moments = collect_moments(model, [images for images, _ in batches(data, 50)], SKIP)
    extract_vector(fp, qat, path, scheme=grid, skip=SKIP, task=f"tiny/{task}", seed=seed, moments=moments)


class Cell:
    """One receiver in one setting with one seed: every candidate's right and wrong answers on the test images."""

    def __init__(self, work: Path, grid: Scheme, seed: int, receiver: str) -> None:
        from qvec_deploy.build import Workshop

        self.grid = grid
        self.donors = [task for task in TASKS if task != receiver]
        data = open_split(receiver, "test", TEST_IMAGES)
        self.test = [images for images, _ in batches(data, 125)]
        self.labels = np.concatenate([labels for _, labels in batches(data, 125)])
        self.recipe = self._recipe(work, seed, receiver)
        self.qat = str(Job(receiver, grid, FINETUNE, seed).path(work))
        self.workshop = Workshop()
        self.right: dict[str, list[int]] = {}
        self.facts: dict[str, Any] = {}

    def _recipe(self, work: Path, seed: int, receiver: str) -> Recipe:
        grid = self.grid
        values = {
            "version": 1,
            "name": "cell",
            "receiver": {
                "checkpoint": str(Job(receiver, None, FINETUNE, seed).path(work)),
                "model": MODEL,
                "model_args": MODEL_ARGS,
            },
            "vector": {"files": [str(vector_path(work, grid, seed, task)) for task in self.donors]},
            "lambda": 1.0,
            "quantize": {
                "bits": grid.bits,
                "granularity": grid.granularity,
                "method": grid.method,
                "clip": grid.clip,
                "skip": list(SKIP),
            },
            "images": {"dataset": f"tiny/{receiver}", "split": "val", "limit": UNLABELLED},
        }
        return validate(values, Path(), "cell", {})

    def student(self, changes: dict[str, Any] | None = None) -> Student:
        """The receiver under the recipe with some fields changed."""
        from qvec_deploy.candidate import calibration_images, selection_images

        recipe = self.recipe.with_overrides(changes or {}, name="cell")
        plan = self.workshop.plan(recipe)
        images = selection_images(recipe, plan.architecture)
        calibration = calibration_images(recipe, plan.architecture)
        return Student(plan, self.workshop.receiver(recipe), self.workshop.sources(recipe), images, calibration)

    def note(self, name: str, logits: Float32) -> None:
        """Keep which test images a candidate gets right."""
        self.right[name] = (logits.argmax(1) == self.labels).astype(int).tolist()

    def try_plain(self) -> None:
        """Float, the two grids, the receiver's own QAT, every donor at lambda 1, their mean, and random controls."""
        own = self.student()
        own.float_logits()
        self.note("float", own.run(self.test))
        self._at(own, "ptq", 0.0)
        self._at(own, "mean of donors", 1.0)
        for task, unit in zip(self.donors, np.eye(len(self.donors)).tolist(), strict=True):
            self._at(own, f"donor {task}", 1.0, unit)
        for seed, unit in enumerate(np.eye(len(self.donors)).tolist()):
            noise = self.student({"vector.control": {"kind": "random", "seed": seed + 1}})
            self._at(noise, f"random {self.donors[seed]}", 1.0, unit)
        for method in ("rtn", "mse"):
            changes = {"quantize.method": method, "quantize.clip": 1.0, "lambda": 0.0, "vector": None}
            self._at(self.student(changes), method, 0.0)
        self._at(self.student({"receiver.checkpoint": self.qat, "lambda": 0.0, "vector": None}), "own qat", 0.0)

    def try_label_free(self) -> None:
        """Lambda of every donor, the best donor, and mixtures, by divergence from the float receiver."""
        own = self.student()
        target = own.float_logits()
        units = np.eye(len(self.donors)).tolist()

        def score(weights: list[float], lam: float) -> float:
            return float(divergences(target, own.logits(lam, weights)).mean())

        alone = [own.logits(1.0, unit) for unit in units]
        best = int(np.argmin([float(divergences(target, logits).mean()) for logits in alone]))
        self.facts["label-free donor"] = self.donors[best]
        self.right["label-free donor"] = self.right[f"donor {self.donors[best]}"]
        for task, unit in zip(self.donors, units, strict=True):
            lam = search(partial(score, unit), LAMBDAS, "").best
            self.facts[f"lambda {task}"] = lam
            self._at(own, f"label-free lambda {task}", lam, unit)
        ridge = ridge_weights(target, own.logits(0.0), alone)
        self._at(own, "label-free mix, ridge", 1.0, ridge)
        weights = descend(own, target, ridge)
        self._at(own, "label-free mix", 1.0, weights)
        self.facts["mix"] = weights

    def try_calibrated(self) -> None:
        """AWQ, GPTQ and asymmetric GPTQ on what they may look at, without the vector and with the mean of donors."""
        inputs = {"receiver images": {"on": "images"}, "generated images": {"on": "generated"}}
        tries = [(method, what) for method in ("awq", "gptq", "gptaq") for what in inputs]
        tries.append(("gptq", "donor moments"))
        for method, what in tries:
            changes = {
                "quantize.method": method,
                "quantize.grid": self.grid.method,
                "quantize.calibration": {**inputs.get(what, {"on": "moments"}), "count": UNLABELLED // 2},
            }
            for lam, patched in ((0.0, ""), (1.0, " + mean")):
                started = time.monotonic()
                self._at(self.student(changes), f"{method}, {what}{patched}", lam)
                self.facts[f"seconds {method}, {what}{patched}"] = round(time.monotonic() - started, 2)

    def _at(self, student: Student, name: str, lam: float, weights: Iterable[float] | None = None) -> None:
        student.load(lam, None if weights is None else list(weights))
        self.note(name, student.run(self.test))


def run_cell(work: Path, setting: str, seed: int, receiver: str) -> dict[str, Any]:
    """Compute a cell, or read it."""
    grid = SETTINGS[setting]
    key = [Job(receiver, grid, FINETUNE, seed).settings, TEST_IMAGES, UNLABELLED, LAMBDAS, VERSION]
    path = work / "cells" / f"{receiver}_{sha256_bytes(canonical_json(key))[:12]}.json"
    if path.is_file():
        return dict(json.loads(path.read_text()))
    _one_thread()
    started = time.monotonic()
    cell = Cell(work, grid, seed, receiver)
    cell.try_plain()
    cell.try_label_free()
    cell.try_calibrated()
    result = {"setting": setting, "seed": seed, "receiver": receiver, "donors": cell.donors, "right": cell.right}
    result |= {"facts": cell.facts, "seconds": round(time.monotonic() - started, 1)}
    with atomic_path(path) as temporary:
        temporary.write_bytes(canonical_json(result))
    return result


def _one_thread() -> Any:
    import torch

    torch.set_num_threads(1)
    return torch


def _all(pool: concurrent.futures.Executor, what: str, calls: list[Callable[[], Any]], progress: Progress) -> list[Any]:
    """Run calls in the pool, in any order; results in the order of the calls."""
    task = progress.add_task(what, total=len(calls))
    pending = [pool.submit(call) for call in calls]
    for _ in concurrent.futures.as_completed(pending):
        progress.advance(task)
    return [future.result() for future in pending]


def compute(options: argparse.Namespace) -> tuple[list[dict[str, Any]], float]:
    """Train what is missing, then every cell; the cells, and the seconds that all of it took when it was done."""
    work, grids = options.work, [SETTINGS[name] for name in options.settings]
    seeds = range(options.seeds)
    spawn = multiprocessing.get_context("spawn")
    with (
        Progress(console=Console(stderr=True), disable=options.quiet) as progress,
        concurrent.futures.ProcessPoolExecutor(options.jobs, mp_context=spawn) as pool,
    ):
        seconds = _all(pool, "base", [partial(train, BASE, work, quiet=True)], progress)
        jobs = [Job(task, grid, FINETUNE, seed) for seed in seeds for grid in (None, *grids) for task in TASKS]
        seconds += _all(pool, "fine-tunes", [partial(train, job, work, quiet=True) for job in jobs], progress)
        triples = [(grid, seed, task) for seed in seeds for grid in grids for task in TASKS]
        _all(pool, "vectors", [partial(make_vector, work, *triple) for triple in triples], progress)
        cells = [(name, seed, task) for name in options.settings for seed in seeds for task in TASKS]
        done = _all(pool, "receivers", [partial(run_cell, work, *cell) for cell in cells], progress)
        return done, sum(seconds) + sum(cell["seconds"] for cell in done)


def main() -> int:
    """Compute, summarize, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "make_demo", help="where everything is kept")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, one thread each")
    parser.add_argument("--seeds", type=int, default=2, help="seeds of the fine-tunes")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--check", action="store_true", help="exit code 3 where a needed result is missing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the summary here too")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    options = parser.parse_args()
    (options.work / "cells").mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    cells, seconds = compute(options)
    summary = summarize(cells)
    print_tables(summary, {name: str(SETTINGS[name]) for name in options.settings})
    print(
        f"\n{time.monotonic() - started:.0f} s now; {seconds / 60:.0f} minutes of one thread in all, when it was done"
    )
    if options.json:
        write_bytes(options.json, json.dumps(summary, indent=1).encode() + b"\n")
    missing = unmet(summary)
    for line in missing:
        print(f"not met: {line}")
    return 3 if missing and options.check else 0


if __name__ == "__main__":
    sys.exit(main())

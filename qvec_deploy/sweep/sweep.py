"""Many builds at once: every recipe in a process of its own, what is equal made once, and one summary.

A sweep has a folder: bundles in FOLDER/NAME, the summary in FOLDER/sweep.json, and in FOLDER/.store what its builds
share and what is known of them, which may be deleted whenever no sweep runs.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qvec_deploy.bench.environment import available_threads
from qvec_deploy.builder.context import BuildContext
from qvec_deploy.builder.keys import made_by
from qvec_deploy.builder.pipeline import build
from qvec_deploy.bundle.bundle import Bundle
from qvec_deploy.bundle.manifest import MANIFEST_FILE
from qvec_deploy.datasets import DataConfig, DatasetSpec, open_dataset
from qvec_deploy.errors import QvecError, RecipeError
from qvec_deploy.io.build_record import BuildRecord
from qvec_deploy.io.cache import Cache
from qvec_deploy.io.files import file_lock, restore, storage_errors, write_bytes
from qvec_deploy.io.machine_lock import MachineLock
from qvec_deploy.jobs.job import Executor, Job, JobFailure, OnEvent, SendEvent
from qvec_deploy.jobs.processes import LocalProcesses
from qvec_deploy.jobs.scheduler import run_jobs
from qvec_deploy.progress import Advance, Progress
from qvec_deploy.recipe import Recipe
from qvec_deploy.recipe.recipe import validate
from qvec_deploy.sweep.sweep_summary import SweepRow, SweepSummary

STORE, SUMMARY = ".store", "sweep.json"

_PRELOAD = ("torch", "timm", "onnx", "qvec_deploy.sweep.sweep", "qvec_deploy.runtimes.graph.export")
"""Nothing that touches CUDA, as ModelOpt does: processes forked after that cannot use it."""
_EVERY_S = 0.2  # between two messages about one stage


def default_jobs(recipes: Sequence[Recipe]) -> int:
    """As many builds as the cores have room for, when each takes the threads of its engine."""
    cores = available_threads()
    return max(1, cores // max(recipe.target.threads or cores for recipe in recipes))


def sweep(
    recipes: Sequence[Recipe],
    folder: Path,
    *,
    jobs: int | None = None,
    force: bool = False,
    offline: bool = False,
    on_event: OnEvent = lambda name, event: None,
    on_end: Callable[[SweepRow], None] = lambda row: None,
    start: Callable[..., Executor] = LocalProcesses,
) -> SweepSummary:
    """Build many recipes; one that fails costs itself.

    Args:
        jobs: Builds at a time; by default as many as the cores have room for.
        on_event: Called when a build enters a `stage`, or is `done` of `total` with it.
        start: Makes the executor, called as LocalProcesses is.

    Raises:
        RecipeError: A recipe that cannot be, or two of one name; nothing is built then.
    """
    _check_names(recipes)
    rows = {recipe.name: row for recipe in recipes if (row := _refused(recipe, offline)) is not None}
    jobs = jobs or default_jobs(recipes)
    logs = folder / STORE / "logs"
    with storage_errors(logs):
        logs.mkdir(parents=True, exist_ok=True)
    for row in rows.values():
        on_end(row)
    summary = _write(recipes, rows, folder)  # a sweep that is killed leaves no older one's
    shared = {"folder": str(folder), "force": force, "offline": offline}
    shared["threads"] = max(1, available_threads() // jobs)
    with contextlib.closing(start(jobs, preload=_PRELOAD, logs=logs, on_event=on_event)) as executor:
        builds = [_job(recipe, shared, executor.gpus()) for recipe in recipes if recipe.name not in rows]
        for outcome in run_jobs(builds, executor):
            row = rows[outcome.job.name] = SweepRow.of_outcome(outcome)
            on_end(row)
            summary = _write(recipes, rows, folder)
    return summary


def _check_names(recipes: Sequence[Recipe]) -> None:
    names = [recipe.name for recipe in recipes]
    for name in names:
        if names.count(name) > 1:
            raise RecipeError(f"two recipes are called {name}", hint="their bundles need names of their own")


def _refused(recipe: Recipe, offline: bool) -> SweepRow | None:
    """A row for a recipe that its files already refuse."""
    try:
        BuildContext(offline).plans(recipe)
    except RecipeError as error:
        raise RecipeError(f"{recipe.name}: {error.message}", hint=error.hint) from error
    except QvecError as error:
        return SweepRow.failed(recipe.name, JobFailure.of(error))
    return None


def _write(recipes: Sequence[Recipe], rows: Mapping[str, SweepRow], folder: Path) -> SweepSummary:
    """Write the summary as it is now."""
    pending = {recipe.name: SweepRow(recipe.name, "pending", False, None) for recipe in recipes}
    summary = SweepSummary(tuple({**pending, **rows}.values()))
    text = json.dumps(summary.as_dict(), indent=2, allow_nan=False)
    write_bytes(folder / SUMMARY, f"{text}\n".encode())
    return summary


def _job(recipe: Recipe, shared: Mapping[str, Any], gpus: int) -> Job:
    arguments = {"values": recipe.as_dict(), "recipes": str(recipe.folder), **shared}
    gpus = 0 if recipe.target.on_cpu else min(1, gpus)
    return Job(recipe.name, "qvec_deploy.sweep.sweep:build_job", arguments, gpus=gpus, cpus=shared["threads"])


def build_job(
    send: SendEvent, *, values: dict[str, Any], recipes: str, folder: str, force: bool, offline: bool, threads: int
) -> dict[str, Any]:
    """Build one recipe of a sweep, or keep its bundle.

    Returns:
        The fields of its SweepRow.
    """
    import torch

    torch.set_num_threads(threads)
    recipe = validate(values, Path(recipes), "recipe", {})
    store, directory = Path(folder) / STORE, Path(folder) / recipe.name
    machine = MachineLock.here()
    context = BuildContext(offline, _SentProgress(send), Cache(store), machine)
    start = time.monotonic()
    with file_lock(store / "locks" / f"{recipe.name}.bundle"):  # another sweep may be building the same
        restore(directory)  # before the record is held against what is there
        record = BuildRecord(
            store / "bundles" / f"{recipe.name}.json", directory / MANIFEST_FILE, _wanted(recipe, context)
        )
        bundle = _whole(directory) if record.is_current() and not force else None
        kept = bundle is not None
        if bundle is None:
            ours = force or record.is_ours()
            mine = ours or not directory.exists()  # else `run` refuses: somebody else's must not become ours
            with record.making() if mine else contextlib.nullcontext(), machine.shared(context.progress.stage("wait")):
                bundle = build(recipe, directory, force=ours, context=context).bundle
    return asdict(SweepRow.of_bundle(bundle, kept=kept, seconds=round(time.monotonic() - start, 1)))


def _wanted(recipe: Recipe, context: BuildContext) -> dict[str, Any]:
    """Everything that a bundle is made from; of images what is seen without reading them."""
    config = DataConfig.from_mapping(context.plan(recipe).architecture.data_config)
    images = []
    for named in (recipe.evaluate, recipe.images, recipe.quantize.calibration):
        if named is not None and named.dataset is not None:
            root = recipe.data_path(named.root) if named.root is not None else None
            opened = open_dataset(DatasetSpec(named.dataset, named.split, root, labelled=False), config)
            images.append([opened.identity, opened.modified()])
    sources = context.fingerprints(recipe)
    return {"recipe": recipe.as_dict(), "sources": sources, "images": images, "made_by": made_by()}


def _whole(directory: Path) -> Bundle | None:
    """A bundle that is worth keeping."""
    try:
        bundle = Bundle.open(directory)
    except QvecError:
        return None
    here_now = bundle.manifest.engine.missing is not None and bundle.engine_missing() is None
    return None if here_now else bundle  # a runtime that came meanwhile makes it worth building again


class _SentProgress(Progress):
    """Sends the stages of a build as events."""

    def __init__(self, send: SendEvent) -> None:
        super().__init__()
        self._send = send

    @contextlib.contextmanager
    def show(self, name: str, detail: str) -> Iterator[Advance]:
        """Send the stage, and now and then how far it is."""
        self._send({"stage": name, "detail": detail})
        sent = 0.0

        def advance(done: int, total: int) -> None:
            nonlocal sent
            if time.monotonic() - sent >= _EVERY_S or done == total:
                sent = time.monotonic()
                self._send({"done": done, "total": total})

        yield advance

"""Many builds at once: every recipe in a process of its own, what is equal made once, and one summary.

A sweep has a folder: bundles in FOLDER/NAME, the summary in FOLDER/sweep.json, and in FOLDER/.store what its builds
share and what is known of them, which may be deleted whenever no sweep runs.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from qvec_deploy.bench.statistics import Estimate, median, speed_up
from qvec_deploy.build.context import Workshop, made_by
from qvec_deploy.build.pipeline import run
from qvec_deploy.bundle.bundle import Bundle, available_threads
from qvec_deploy.bundle.manifest import MANIFEST_FILE
from qvec_deploy.bundle.write import require_engine, require_gates
from qvec_deploy.datasets import DataConfig, DatasetSpec, open_dataset
from qvec_deploy.errors import QvecError, RecipeError, worst
from qvec_deploy.io.cache import Machine, Record, Shelf
from qvec_deploy.io.files import file_lock, restore, storage_errors, write_bytes
from qvec_deploy.jobs.processes import Executor, Failure, Job, LocalProcesses, Outcome, Tell
from qvec_deploy.progress import Advance, Progress
from qvec_deploy.recipe import Recipe
from qvec_deploy.recipe.recipe import validate
from qvec_deploy.report.report_json import from_json

STORE, SUMMARY = ".store", "sweep.json"
SCHEMA_VERSION = 1

_PRELOAD = ("torch", "timm", "onnx", "qvec_deploy.sweep", "qvec_deploy.runtimes.graph.export")
"""Nothing that touches CUDA, as ModelOpt does: processes forked after that cannot use it."""
_EVERY_S = 0.2  # between two messages about one stage


@dataclass(frozen=True)
class Latency:
    """Of the shipped engine at its smallest batch size.

    Attributes:
        batch_size: Images in a run.
        samples: That the median is of.
        median_ms: Host latency.
        speed_up: How many times faster than the float engine of the same build; None where the samples support no
            interval, and for the float engine itself.
    """

    batch_size: int
    samples: int
    median_ms: float
    speed_up: Estimate | None


@dataclass(frozen=True)
class Row:
    """How one build ended.

    Attributes:
        name: The recipe's.
        verdict: `built`, `gate missed`, `no engine`, `failed`, or `pending` while it is not over.
        kept: Whether it is a bundle of an earlier run of the sweep.
        exit_code: What `build` alone would have given; None while it is not over.
        reason: Why it is not just `built`; else empty.
        hint: What to do about it.
        bundle: Its directory; None where there is none.
        shipped: The candidate in the bundle.
        correct: Right answers of the shipped engine; None where accuracy was not measured.
        images: Of how many.
        stored_bytes: Of graph and weights.
        latency: None where it was not measured.
        gates: Gates passed.
        gates_asked: Of how many.
        seconds: That the build took.
        details: The traceback of a bug.
    """

    name: str
    verdict: str
    kept: bool
    exit_code: int | None
    reason: str = ""
    hint: str = ""
    bundle: str | None = None
    shipped: str | None = None
    correct: int | None = None
    images: int = 0
    stored_bytes: int | None = None
    latency: Latency | None = None
    gates: int = 0
    gates_asked: int = 0
    seconds: float = 0.0
    details: str = ""


@dataclass(frozen=True)
class Summary:
    """A sweep's outcome: a row for every recipe, in their order."""

    rows: tuple[Row, ...]

    @property
    def exit_code(self) -> int:
        """That of the worst outcome so far."""
        return worst(row.exit_code for row in self.rows if row.exit_code is not None)

    def as_dict(self) -> dict[str, Any]:
        """As plain values; without an exit code while anything is pending."""
        over = all(row.exit_code is not None for row in self.rows)
        return {
            "schema_version": SCHEMA_VERSION,
            "exit_code": self.exit_code if over else None,
            "builds": [asdict(row) for row in self.rows],
        }


class Watcher:
    """Told what happens in a sweep; shows nothing itself."""

    def event(self, name: str, event: Any) -> None:
        """A build entered a `stage`, or is `done` of `total` with it."""

    def ended(self, row: Row) -> None:
        """A build is over."""


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
    watcher: Watcher | None = None,
    start: Callable[..., Executor] = LocalProcesses,
) -> Summary:
    """Build many recipes; one that fails costs itself.

    Args:
        recipes: What is wanted.
        folder: Of the sweep.
        jobs: Builds at a time.
        force: Build again what is there.
        offline: Use the Hub's local cache only.
        watcher: Told what happens.
        start: Makes the executor, called as LocalProcesses is.

    Returns:
        A row for every recipe.

    Raises:
        RecipeError: A recipe that cannot be, or two of one name; nothing is built then.
        StorageError: The folder cannot be written.
    """
    watcher = watcher or Watcher()
    _check_names(recipes)
    rows = {recipe.name: row for recipe in recipes if (row := _refused(recipe, offline)) is not None}
    jobs = jobs or default_jobs(recipes)
    logs = folder / STORE / "logs"
    with storage_errors(logs):
        logs.mkdir(parents=True, exist_ok=True)
    for row in rows.values():
        watcher.ended(row)
    summary = _write(recipes, rows, folder)  # a sweep that is killed leaves no older one's
    with contextlib.closing(start(jobs, preload=_PRELOAD, logs=logs, on_event=watcher.event)) as processes:
        for recipe in recipes:
            if recipe.name not in rows:
                gpus = 0 if recipe.target.runtime == "onnxruntime" else min(1, processes.gpus())
                job = _job(recipe, folder, force=force, offline=offline, threads=max(1, available_threads() // jobs))
                processes.submit(replace(job, gpus=gpus))
        for outcome in processes.outcomes():
            row = rows[outcome.job.name] = _row(outcome)
            watcher.ended(row)
            summary = _write(recipes, rows, folder)
    return summary


def _check_names(recipes: Sequence[Recipe]) -> None:
    names = [recipe.name for recipe in recipes]
    for name in names:
        if names.count(name) > 1:
            raise RecipeError(f"two recipes are called {name}", hint="their bundles need names of their own")


def _refused(recipe: Recipe, offline: bool) -> Row | None:
    """A row for a recipe that its files already refuse.

    Raises:
        RecipeError: It cannot be, whatever the files.
    """
    try:
        Workshop(offline).plans(recipe)
    except RecipeError as error:
        raise RecipeError(f"{recipe.name}: {error.message}", hint=error.hint) from error
    except QvecError as error:
        return _failed(recipe.name, Failure.of(error))
    return None


def _write(recipes: Sequence[Recipe], rows: Mapping[str, Row], folder: Path) -> Summary:
    """Write the summary as it is now."""
    summary = Summary(tuple(rows.get(recipe.name) or Row(recipe.name, "pending", False, None) for recipe in recipes))
    text = json.dumps(summary.as_dict(), indent=2, allow_nan=False)
    write_bytes(folder / SUMMARY, f"{text}\n".encode())
    return summary


def _job(recipe: Recipe, folder: Path, *, force: bool, offline: bool, threads: int) -> Job:
    arguments = {
        "values": recipe.as_dict(),
        "recipes": str(recipe.folder),
        "folder": str(folder),
        "force": force,
        "offline": offline,
        "threads": threads,
    }
    return Job(recipe.name, "qvec_deploy.sweep:build_job", arguments, cpus=threads)


def _row(outcome: Outcome) -> Row:
    if outcome.failure is not None:
        return _failed(outcome.job.name, outcome.failure)
    values = outcome.result
    if values["latency"] is not None:
        ratio = values["latency"]["speed_up"]
        values["latency"] = Latency(**{**values["latency"], "speed_up": Estimate(**ratio) if ratio else None})
    return Row(**values)


def _failed(name: str, failure: Failure) -> Row:
    reason = " ".join(failure.message.split())
    return Row(name, "failed", False, failure.exit_code, reason, failure.hint, details=failure.details)


def build_job(
    tell: Tell, *, values: dict[str, Any], recipes: str, folder: str, force: bool, offline: bool, threads: int
) -> dict[str, Any]:
    """Build one recipe of a sweep, or keep its bundle.

    Args:
        tell: Takes the stages.
        values: The recipe's fields.
        recipes: Which its relative paths start from.
        folder: Of the sweep.
        force: Build again what is there.
        offline: Use the Hub's local cache only.
        threads: Of PyTorch.

    Returns:
        The fields of its Row.

    Raises:
        QvecError: As `build`.
    """
    import torch

    torch.set_num_threads(threads)
    recipe = validate(values, Path(recipes), "recipe", {})
    store, directory = Path(folder) / STORE, Path(folder) / recipe.name
    machine = Machine.here()
    workshop = Workshop(offline, _Told(tell), Shelf(store), machine)
    start = time.monotonic()
    with file_lock(store / "locks" / f"{recipe.name}.bundle"):  # another sweep may be building the same
        restore(directory)  # before the record is held against what is there
        record = Record(store / "bundles" / f"{recipe.name}.json", directory / MANIFEST_FILE, _wanted(recipe, workshop))
        bundle = _whole(directory) if record.is_current() and not force else None
        kept = bundle is not None
        if bundle is None:
            ours = force or record.is_ours()
            mine = ours or not directory.exists()  # else `run` refuses: somebody else's must not become ours
            with record.making() if mine else contextlib.nullcontext(), machine.shared(workshop.progress.stage("wait")):
                bundle = run(recipe, directory, force=ours, workshop=workshop)
    return asdict(_row_of(bundle, kept, round(time.monotonic() - start, 1)))


def _wanted(recipe: Recipe, workshop: Workshop) -> dict[str, Any]:
    """Everything that a bundle is made from; of images what is seen without reading them."""
    config = DataConfig.from_mapping(workshop.plan(recipe).architecture.data_config)
    images = []
    for named in (recipe.evaluate, recipe.images, recipe.quantize.calibration):
        if named is not None and named.dataset is not None:
            root = recipe.data_path(named.root) if named.root is not None else None
            opened = open_dataset(DatasetSpec(named.dataset, named.split, root), config)
            images.append([opened.identity, opened.modified()])
    sources = workshop.fingerprints(recipe)
    return {"recipe": recipe.as_dict(), "sources": sources, "images": images, "made_by": made_by()}


def _whole(directory: Path) -> Bundle | None:
    """A bundle that is worth keeping."""
    try:
        bundle = Bundle.open(directory)
    except QvecError:
        return None
    here_now = bundle.manifest.engine.missing is not None and bundle.engine_missing() is None
    return None if here_now else bundle  # a runtime that came meanwhile makes it worth building again


def _row_of(bundle: Bundle, kept: bool, seconds: float) -> Row:
    manifest = bundle.manifest
    row: dict[str, Any] = {"verdict": "built", "exit_code": 0}
    try:
        require_engine(bundle)
        require_gates(bundle)
    except QvecError as error:
        verdict = "gate missed" if bundle.engine_missing() is None else "no engine"
        row = {"verdict": verdict, "exit_code": error.exit_code, "reason": error.message, "hint": error.hint}
    return Row(
        name=manifest.name,
        kept=kept,
        bundle=str(bundle.directory),
        stored_bytes=manifest.stored_bytes,
        gates=sum(gate.passed for gate in manifest.gates),
        gates_asked=len(manifest.gates),
        seconds=seconds,
        **row,
        **_measured(bundle.directory / "report.json"),
    )


def _measured(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    report = from_json(path.read_bytes())
    shipped = report[report.selected or report.baseline]
    found: dict[str, Any] = {"shipped": shipped.name}
    if shipped.accuracy is not None:
        found |= {"correct": shipped.accuracy.correct, "images": shipped.accuracy.count}
    if shipped.latency:
        own, baseline = shipped.latency[0], report[report.baseline].latency[0]
        ratio = speed_up(baseline.samples_ms, own.samples_ms) if shipped.name != report.baseline else None
        found["latency"] = Latency(own.batch_size, len(own.samples_ms), median(own.samples_ms), ratio)
    return found


class _Told(Progress):
    """Tells the sweep what a build does."""

    def __init__(self, tell: Tell) -> None:
        super().__init__()
        self._tell = tell

    @contextlib.contextmanager
    def show(self, name: str, detail: str) -> Iterator[Advance]:
        """Tell the stage, and now and then how far it is."""
        self._tell({"stage": name, "detail": detail})
        told = 0.0

        def advance(done: int, total: int) -> None:
            nonlocal told
            if time.monotonic() - told >= _EVERY_S or done == total:
                told = time.monotonic()
                self._tell({"done": done, "total": total})

        yield advance

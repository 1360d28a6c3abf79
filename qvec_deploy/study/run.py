"""A study from its recipe: nodes in order, what is missing made, what fails named, and the documents at the end."""

from __future__ import annotations

import contextlib
import json
import platform
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from qvec_deploy.bundle.bundle import available_threads
from qvec_deploy.jobs import Executor, Failure
from qvec_deploy.store import storage_errors, write_bytes
from qvec_deploy.study.documents import RUN_VERSION
from qvec_deploy.study.executors import ExecutorName, start_executor
from qvec_deploy.study.graph import build_graph
from qvec_deploy.study.nodes import KINDS, Node, package_versions
from qvec_deploy.study.recipe import StudyRecipe
from qvec_deploy.study.store import CELLS, COSTS_FILE, RUN_FILE, STUDY_FILE, Store
from qvec_deploy.sweep import SEVERITY

PRELOAD = ("torch", "timm", "qvec_deploy.study.work", "qvec_deploy.study.cell")
"""Nothing that touches CUDA, as ModelOpt does: processes forked after that cannot use it."""

State = Literal["kept", "made", "failed"]


@dataclass(frozen=True)
class Ended:
    """How a node ended.

    Attributes:
        node: Which.
        state: `kept` from an earlier run, `made` now, or `failed`.
        seconds: That making it took, whenever that was.
        failure: Why it failed.
        because: Name of the node whose failure it shares; None for its own.
    """

    node: Node
    state: State
    seconds: float = 0.0
    failure: Failure | None = None
    because: str | None = None


class Watcher:
    """Told what happens in a study; shows nothing itself."""

    def begun(self, nodes: Sequence[Node]) -> None:
        """All nodes are known."""

    def event(self, name: str, event: Any) -> None:
        """A node, by its id, is `done` of `total` with its steps."""

    def ended(self, ended: Ended) -> None:
        """A node is over."""


@dataclass(frozen=True)
class Outcome:
    """A study's outcome.

    Attributes:
        run: As run.json.
        exit_code: That of the worst failure; 0 without one.
    """

    run: dict[str, Any]
    exit_code: int


@dataclass
class _Runner:
    """Orders the nodes: each is submitted once its parents are there."""

    store: Store
    executor: Executor
    watcher: Watcher
    over: dict[str, Ended] = field(default_factory=dict)

    def run(self, nodes: Sequence[Node]) -> None:
        """Do a group of nodes, parents before children in it."""
        self._advance(nodes)
        waiting = [node for node in nodes if node.id not in self.over]
        by_id = {node.id: node for node in waiting}
        submitted: set[str] = set()
        self._submit(waiting, submitted)
        for outcome in self.executor.outcomes():
            node = by_id[outcome.job.name]
            if outcome.failure is not None:
                self._end(Ended(node, "failed", failure=outcome.failure))
            else:
                self._end(Ended(node, "made", outcome.result["seconds"]))
            waiting = [node for node in waiting if node.id not in self.over]
            self._submit(waiting, submitted)

    def _advance(self, nodes: Iterable[Node]) -> None:
        """What an earlier run has done."""
        for node in nodes:
            found = self.store.record(node.id)
            if found is not None:
                self._end(Ended(node, "kept", found["record"]["seconds"]))

    def _submit(self, nodes: Iterable[Node], submitted: set[str]) -> None:
        """Start what can start; what needs a failed node fails with it."""
        for node in nodes:
            if node.id in submitted or node.id in self.over:
                continue
            parents = [self.over.get(parent) for parent in node.parents]
            failed = next((parent for parent in parents if parent is not None and parent.state == "failed"), None)
            if failed is not None:
                self._end(Ended(node, "failed", failure=failed.failure, because=failed.because or failed.node.name))
            elif all(parents):
                submitted.add(node.id)
                self.executor.submit(node.job(str(self.store.out)))

    def _end(self, ended: Ended) -> None:
        self.over[ended.node.id] = ended
        self.watcher.ended(ended)


def run_study(
    recipe: StudyRecipe,
    out: Path,
    *,
    jobs: int | None = None,
    executor: ExecutorName = "local",
    address: str | None = None,
    offline: bool = False,
    watcher: Watcher | None = None,
) -> Outcome:
    """Do a study, or what is missing of it. A node that fails costs itself and what is made from it.

    Args:
        recipe: What is wanted.
        out: The study's folder.
        jobs: Nodes at a time, of one thread each; all cores by default.
        executor: `local` or `ray`.
        address: Of a Ray cluster.
        offline: Use the Hub's local cache only.
        watcher: Told what happens.

    Raises:
        RecipeError, StorageError, IncompatibleError: A model, a task or a folder that cannot be; nothing is begun then.
    """
    watcher = watcher or Watcher()
    start = time.monotonic()
    store = Store.open(out)
    groups = build_graph(recipe, store, offline=offline)
    nodes = [node for group in groups for node in group]
    watcher.begun(nodes)
    jobs = jobs or available_threads()
    logs = store.out / "logs"
    with storage_errors(logs):
        logs.mkdir(exist_ok=True)
    write_bytes(store.out / STUDY_FILE, _yaml(recipe).encode())
    runs_on = start_executor(executor, jobs, address=address, preload=PRELOAD, logs=logs, on_event=watcher.event)
    with contextlib.closing(runs_on):
        runner = _Runner(store, runs_on, watcher)
        for group in groups:
            runner.run(group)
    ended = [runner.over[node.id] for node in nodes]
    _write_cells(store, ended)
    _write_costs(store, ended)
    code = min((one.failure.exit_code for one in ended if one.failure), key=SEVERITY.index, default=0)
    run = _document(recipe, ended, time.monotonic() - start, executor, jobs, code)
    write_bytes(store.out / RUN_FILE, json.dumps(run, indent=1, allow_nan=False).encode() + b"\n")
    return Outcome(run, code)


def plan_study(
    recipe: StudyRecipe, out: Path | None, *, jobs: int | None = None, offline: bool = False
) -> dict[str, Any]:
    """What a study is made of, how much of it is there, and how long the rest takes, as far as is known.

    Args:
        recipe: What is wanted.
        out: Its folder; None where there is none yet.
        jobs: Nodes at a time; all cores by default.
        offline: Use the Hub's local cache only.

    Returns:
        `kinds`: by kind `total`, `done`, `mean_seconds` of those done (None without one); `pairs`; `seconds_left`
        (None while a kind that is missing has none done).

    Raises:
        RecipeError, StorageError, IncompatibleError: As `run_study`.
    """
    begun = out is not None and out.exists() and any(out.iterdir())
    store = Store.existing(out) if begun and out is not None else Store(out or Path())
    nodes = [node for group in build_graph(recipe, store, offline=offline) for node in group]
    kinds: dict[str, Any] = {}
    left: float | None = 0.0
    for kind in KINDS:
        mine = [node for node in nodes if node.kind == kind]
        records = [store.record(node.id) for node in mine] if begun else []
        seconds = [found["record"]["seconds"] for found in records if found is not None]
        mean = sum(seconds) / len(seconds) if seconds else None
        kinds[kind] = {"total": len(mine), "done": len(seconds), "mean_seconds": mean}
        missing = len(mine) - len(seconds)
        if missing:
            left = None if left is None or mean is None else left + missing * mean
    workers = jobs or available_threads()
    return {
        "study": recipe.name,
        "kinds": kinds,
        "pairs": kinds["cell"]["total"] * (len(recipe.tasks.all()) - 1),
        "seconds_left": None if left is None else round(left / workers, 1),
        "jobs": workers,
    }


def cell_file(node: Node) -> str:
    """The name of a cell's document."""
    about = node.about
    return f"{about['model']}-{about['grid']}-seed{about['seed']}-{about['task']}.json"


def _write_cells(store: Store, ended: Sequence[Ended]) -> None:
    """The study's cells and no others: those of an earlier recipe stay in the store."""
    folder = store.out / CELLS
    wanted = {cell_file(one.node): one.node for one in ended if one.node.kind == "cell" and one.state != "failed"}
    with storage_errors(folder):
        folder.mkdir(exist_ok=True)
        for path in folder.glob("*.json"):
            if path.name not in wanted:
                path.unlink(missing_ok=True)
    for name, node in wanted.items():
        source = store.folder(node.id) / "cell.json"
        with storage_errors(source):
            write_bytes(folder / name, source.read_bytes())


def _write_costs(store: Store, ended: Sequence[Ended]) -> None:
    """The seconds of what was trained here."""
    costs = []
    for one in ended:
        node = one.node
        if node.kind not in ("base", "fp", "qat") or one.state == "failed" or not _trained(node):
            continue
        grid = node.settings["recipe"]["scheme"] if node.kind == "qat" else None
        scheme = None if grid is None else {key: value for key, value in grid.items() if key != "clip_every"}
        costs.append(
            {
                "kind": node.kind,
                "model": node.decides["model"],
                "task": node.about.get("task"),
                "grid": scheme,
                "seed": node.about.get("seed"),
                "seconds": one.seconds,
            }
        )
    write_bytes(store.out / COSTS_FILE, json.dumps({"fine_tunes": costs}, indent=1).encode() + b"\n")


def _trained(node: Node) -> bool:
    return "recipe" in node.settings or "training" in node.settings


def _document(
    recipe: StudyRecipe, ended: Sequence[Ended], wall: float, executor: str, jobs: int, code: int
) -> dict[str, Any]:
    from importlib.metadata import version

    counts = {kind: Counter(one.state for one in ended if one.node.kind == kind) for kind in KINDS}
    return {
        "version": RUN_VERSION,
        "name": recipe.name,
        "exit_code": code,
        "made_by": f"qvec-deploy {version('qvec-deploy')}",
        "versions": {"python": platform.python_version(), **package_versions()},
        "machine": f"{platform.machine()}, {available_threads()} cores",
        "executor": executor,
        "jobs": jobs,
        "wall_seconds": round(wall, 1),
        "summed_seconds": round(sum(one.seconds for one in ended), 1),
        "summed_seconds_of_this_run": round(sum(one.seconds for one in ended if one.state == "made"), 1),
        "counts": {kind: {"total": count.total(), **count} for kind, count in counts.items()},
        "failures": [
            {"node": one.node.name, "because": one.because, **asdict(one.failure)} for one in ended if one.failure
        ],
    }


def _yaml(recipe: StudyRecipe) -> str:
    import yaml

    text: str = yaml.safe_dump(recipe.as_dict(), sort_keys=False, width=120)
    return text

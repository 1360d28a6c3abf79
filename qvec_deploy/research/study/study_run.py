"""A study from its recipe: nodes in order, what is missing made, what fails named, and the documents at the end."""

from __future__ import annotations

import contextlib
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from qvec_deploy.bundle.bundle import available_threads
from qvec_deploy.errors import StorageError, worst
from qvec_deploy.io.files import storage_errors
from qvec_deploy.jobs.processes import Executor, Failure
from qvec_deploy.jobs.ray import ExecutorName, check_address, start_executor
from qvec_deploy.research.study.nodes import KINDS, Node, package_versions
from qvec_deploy.research.study.study_documents import documents_of, write_documents
from qvec_deploy.research.study.study_graph import build_graph
from qvec_deploy.research.study.study_recipe import StudyRecipe
from qvec_deploy.research.study.study_store import RUN_VERSION, Store

PRELOAD = ("torch", "timm", "qvec_deploy.research.study.tasks", "qvec_deploy.research.study.cell")
"""Nothing that touches CUDA, as ModelOpt does: processes forked after that cannot use it."""

State = Literal["kept", "made", "failed"]


@dataclass(frozen=True)
class Ended:
    """How a node ended.

    Attributes:
        node: Which.
        state: `made` by this run, `failed`, or `kept`: of another run, or needed by nothing that is missing.
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
    missing: set[str]
    over: dict[str, Ended] = field(default_factory=dict)

    def run(self, nodes: Sequence[Node]) -> None:
        """Do a group of nodes, parents before children in it."""
        self._keep(nodes)
        waiting = [node for node in nodes if node.id not in self.over]
        by_id = {node.id: node for node in waiting}
        submitted: set[str] = set()
        self._submit(waiting, submitted)
        for outcome in self.executor.outcomes():
            node = by_id[outcome.job.name]
            if outcome.failure is not None:
                self._end(Ended(node, "failed", failure=outcome.failure))
            else:
                made = outcome.result["made"]  # else another run has made it meanwhile
                self._end(Ended(node, "made" if made else "kept", outcome.result["seconds"]))
            waiting = [node for node in waiting if node.id not in self.over]
            self._submit(waiting, submitted)

    def _keep(self, nodes: Iterable[Node]) -> None:
        """What need not be made."""
        for node in nodes:
            if node.id not in self.missing:
                if self.store.record(node.id) is not None:  # a worker that was killed could not
                    self.store.forget_work(node.id)
                self._end(Ended(node, "kept", self.store.seconds(node)))

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
    check_address(executor, address)
    watcher = watcher or Watcher()
    start = time.monotonic()
    _require_same(recipe, Store.at(out))  # another's folder is refused before anything else
    groups = build_graph(recipe, offline=offline)
    nodes = [node for group in groups for node in group]
    store = Store.open(out)
    watcher.begun(nodes)
    jobs = jobs or available_threads()
    logs = store.out / "logs"
    with storage_errors(logs):
        logs.mkdir(exist_ok=True)
    runs_on = start_executor(executor, jobs, address=address, preload=PRELOAD, logs=logs, on_event=watcher.event)
    with contextlib.closing(runs_on):
        runner = _Runner(store, runs_on, watcher, _missing(nodes, store.find))
        for group in groups:
            runner.run(group)
    ended = [runner.over[node.id] for node in nodes]
    run = _document(recipe, ended, time.monotonic() - start, executor, jobs)
    cells = [one.node for one in ended if one.node.kind == "cell" and one.state != "failed"]
    files = {cell_file(node): (store.folder(node.id) / "cell.json", str(node.about["model"])) for node in cells}
    write_documents(store, recipe=_yaml(recipe), cells=files, costs=_costs(ended), run=run)
    return Outcome(run, run["exit_code"])


def _require_same(recipe: StudyRecipe, store: Store) -> None:
    """Refuse a folder with another study's documents: this one's would replace them."""
    name = documents_of(store.out)
    if name not in (None, recipe.name):
        raise StorageError(
            f"{store.out} holds the study `{name}`, and this one is `{recipe.name}`",
            hint="choose another directory, or keep the name",
        )


def _missing(nodes: Sequence[Node], is_there: Callable[[Node], bool]) -> set[str]:
    """What must be made: cells that are not there, and what they are made from as far as that is not there."""
    missing, needed = set(), {node.id for node in nodes if node.kind == "cell"}
    for node in reversed(nodes):  # children before parents
        if node.id in needed and not is_there(node):
            missing.add(node.id)
            needed.update(node.parents)
    return missing


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
        `kinds`: by kind `total`, `done` (needed by nothing that is missing, if it is not there), `mean_seconds` of
        those (None where that is not known); `pairs`; `seconds_left` (None while it is not known of a kind that is
        missing).

    Raises:
        RecipeError, StorageError, IncompatibleError: As `run_study`.
    """
    store = Store.at(out) if out is not None else Store(Path())
    if out is not None:
        _require_same(recipe, store)
    nodes = [node for group in build_graph(recipe, offline=offline) for node in group]
    missing = _missing(nodes, store.knows) if out is not None else {node.id for node in nodes}
    kinds: dict[str, Any] = {}
    left: float | None = 0.0
    for kind in KINDS:
        mine = [node for node in nodes if node.kind == kind]
        done = [node for node in mine if node.id not in missing]
        seconds = [known for node in done if (known := store.seconds(node))]
        mean = sum(seconds) / len(seconds) if seconds else None
        kinds[kind] = {"total": len(mine), "done": len(done), "mean_seconds": mean}
        if len(done) < len(mine):
            left = None if left is None or mean is None else left + (len(mine) - len(done)) * mean
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


def _costs(ended: Sequence[Ended]) -> list[dict[str, Any]]:
    """The seconds of what was trained here, where they are known."""
    costs = []
    for one in ended:
        node = one.node
        if node.kind not in ("base", "fp", "qat") or not one.seconds or not _trained(node):
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
    return costs


def _trained(node: Node) -> bool:
    return "recipe" in node.settings or "training" in node.settings


def _document(recipe: StudyRecipe, ended: Sequence[Ended], wall: float, executor: str, jobs: int) -> dict[str, Any]:
    from importlib.metadata import version

    counts = {kind: Counter(one.state for one in ended if one.node.kind == kind) for kind in KINDS}
    return {
        "version": RUN_VERSION,
        "name": recipe.name,
        "exit_code": worst(one.failure.exit_code for one in ended if one.failure),
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

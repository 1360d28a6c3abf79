"""A study from its recipe: what is missing made, what fails named, and the documents at the end."""

from __future__ import annotations

import contextlib
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from qvec_deploy.bench.environment import available_threads
from qvec_deploy.errors import StorageError, worst
from qvec_deploy.io.files import storage_errors
from qvec_deploy.io.yaml import dump_yaml
from qvec_deploy.jobs.executors import ExecutorName, check_address, start_executor
from qvec_deploy.jobs.job import Executor, JobFailure
from qvec_deploy.jobs.scheduler import missing_jobs, run_jobs
from qvec_deploy.research.study.study_documents import RUN_VERSION, documents_of, write_documents
from qvec_deploy.research.study.study_graph import build_graph
from qvec_deploy.research.study.study_node import KINDS, StudyNode, package_versions
from qvec_deploy.research.study.study_recipe import StudyRecipe
from qvec_deploy.research.study.study_store import StudyStore
from qvec_deploy.research.study.study_tasks import BaseTask, FineTuneTask

PRELOAD = ("torch", "timm", "qvec_deploy.research.study.study_node", "qvec_deploy.research.study.cell")
"""Nothing that touches CUDA, as ModelOpt does: processes forked after that cannot use it."""


@dataclass(frozen=True)
class NodeEnd:
    """How a node ended.

    Attributes:
        state: `made` by this run, `failed`, or `kept`: of another run, or needed by nothing that is missing.
        because: Name of the node whose failure it shares; None for its own.
    """

    node: StudyNode
    state: Literal["kept", "made", "failed"]
    seconds: float = 0.0
    failure: JobFailure | None = None
    because: str | None = None


class StudyWatcher:
    """Hears what happens in a study; shows nothing itself."""

    def begun(self, nodes: Sequence[StudyNode]) -> None:
        """All nodes are known."""

    def event(self, name: str, event: Any) -> None:
        """A node, by its id, is `done` of `total` with its steps."""

    def ended(self, end: NodeEnd) -> None:
        """A node is over."""


def run_study(
    recipe: StudyRecipe,
    out: Path,
    *,
    jobs: int | None = None,
    executor: ExecutorName = "local",
    address: str | None = None,
    offline: bool = False,
    watcher: StudyWatcher | None = None,
) -> dict[str, Any]:
    """Do a study, or what is missing of it. A node that fails costs itself and what is made from it.

    Args:
        jobs: Nodes at a time, of one thread each; all cores by default.
        address: Address of a running Ray cluster; None starts or finds one here.

    Returns:
        run.json; its `exit_code` is that of the worst failure.

    Raises:
        RecipeError, StorageError, IncompatibleError: A model, a task or a folder that cannot be; nothing is begun then.
    """
    check_address(executor, address)
    watcher = watcher or StudyWatcher()
    start = time.monotonic()
    _require_same(recipe, StudyStore.at(out))  # another's folder is refused before anything else
    groups = build_graph(recipe, offline=offline)
    nodes = [node for group in groups for node in group]
    store = StudyStore.open(out)
    watcher.begun(nodes)
    jobs = jobs or available_threads()
    logs = store.out / "logs"
    with storage_errors(logs):
        logs.mkdir(exist_ok=True)
    runs_on = start_executor(executor, jobs, address=address, preload=PRELOAD, logs=logs, on_event=watcher.event)
    by_id: dict[str, NodeEnd] = {}
    with contextlib.closing(runs_on):
        for end in _ends(groups, store, runs_on):
            by_id[end.node.id] = end
            watcher.ended(end)
    ends = [by_id[node.id] for node in nodes]
    document = _document(recipe, ends, time.monotonic() - start, executor, jobs)
    cells = [end.node for end in ends if end.node.kind == "cell" and end.state != "failed"]
    files = {cell_file(node): (store.folder(node.id) / "cell.json", str(node.about["model"])) for node in cells}
    write_documents(store, recipe=dump_yaml(recipe.as_dict()), cells=files, costs=_costs(ends), run=document)
    return document


def _require_same(recipe: StudyRecipe, store: StudyStore) -> None:
    """Refuse a folder with another study's documents: this one's would replace them."""
    name = documents_of(store.out)
    if name not in (None, recipe.name):
        raise StorageError(
            f"{store.out} holds the study `{name}`, and this one is `{recipe.name}`",
            hint="choose another directory, or keep the name",
        )


def _ends(groups: Sequence[Sequence[StudyNode]], store: StudyStore, executor: Executor) -> Iterator[NodeEnd]:
    """Every node as it ends, one group after another: what need not be made, then what is missing."""
    by_id = {node.id: node for group in groups for node in group}
    missing = _missing([*by_id.values()], store.find)
    for group in groups:
        for node in group:
            if node.id not in missing:
                if store.knows(node):  # a worker that was killed could not
                    store.forget_work(node.id)
                yield NodeEnd(node, "kept", _seconds(store, node))
        for outcome in run_jobs([node.job(store.out) for node in group if node.id in missing], executor):
            node = by_id[outcome.job.name]
            if outcome.failure is not None:
                because = by_id[outcome.because].name if outcome.because else None
                yield NodeEnd(node, "failed", failure=outcome.failure, because=because)
            else:
                made = outcome.result["made"]  # else another run has made it meanwhile
                yield NodeEnd(node, "made" if made else "kept", outcome.result["seconds"])


def _missing(nodes: Sequence[StudyNode], is_there: Callable[[StudyNode], bool]) -> set[str]:
    """What must be made: cells that are not there, and what they are made from as far as that is not there."""
    by_id = {node.id: node for node in nodes}
    cells = [node.id for node in nodes if node.kind == "cell"]
    return missing_jobs({node.id: node.task.parents for node in nodes}, cells, lambda name: is_there(by_id[name]))


def _seconds(store: StudyStore, node: StudyNode) -> float:
    """What making a node took, be its files still there or not; 0 where that is not known."""
    return float((store.record(node) or {}).get("seconds", 0.0))


def plan_study(
    recipe: StudyRecipe, out: Path | None, *, jobs: int | None = None, offline: bool = False
) -> dict[str, Any]:
    """What a study is made of, how much of it is there, and how long the rest takes, as far as is known.

    Returns:
        `kinds`: by kind `total`, `done` (needed by nothing that is missing, if it is not there), `mean_seconds` of
        those (None where that is not known); `pairs`; `seconds_left` (None while it is not known of a kind that is
        missing).
    """
    store = StudyStore.at(out) if out is not None else None
    if store is not None:
        _require_same(recipe, store)
    nodes = [node for group in build_graph(recipe, offline=offline) for node in group]
    missing = {node.id for node in nodes} if store is None else _missing(nodes, store.knows)
    kinds: dict[str, Any] = {}
    left: float | None = 0.0
    for kind in KINDS:
        mine = [node for node in nodes if node.kind == kind]
        done = [node for node in mine if node.id not in missing]
        seconds = [known for node in done if store is not None and (known := _seconds(store, node))]
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


def cell_file(node: StudyNode) -> str:
    """The name of a cell's document."""
    about = node.about
    return f"{about['model']}-{about['grid']}-seed{about['seed']}-{about['task']}.json"


def _costs(ends: Sequence[NodeEnd]) -> list[dict[str, Any]]:
    """The seconds of what was trained here, where they are known."""
    costs = []
    for end in ends:
        node, task, grid = end.node, end.node.task, None
        if not end.seconds or not isinstance(task, BaseTask | FineTuneTask):
            continue
        if isinstance(task, BaseTask) and task.training is None:
            continue
        if isinstance(task, FineTuneTask) and task.kind == "qat":
            grid = task.recipe.scheme.model_dump(exclude={"clip_every"})
        about = {"kind": node.kind, "model": task.model, "task": node.about.get("task"), "grid": grid}
        costs.append({**about, "seed": node.about.get("seed"), "seconds": end.seconds})
    return costs


def _document(recipe: StudyRecipe, ends: Sequence[NodeEnd], wall: float, executor: str, jobs: int) -> dict[str, Any]:
    counts = {kind: Counter(end.state for end in ends if end.node.kind == kind) for kind in KINDS}
    return {
        "version": RUN_VERSION,
        "name": recipe.name,
        "exit_code": worst(end.failure.exit_code for end in ends if end.failure),
        "made_by": f"qvec-deploy {version('qvec-deploy')}",
        "versions": {"python": platform.python_version(), **package_versions()},
        "machine": f"{platform.machine()}, {available_threads()} cores",
        "executor": executor,
        "jobs": jobs,
        "wall_seconds": round(wall, 1),
        "summed_seconds": round(sum(end.seconds for end in ends), 1),
        "summed_seconds_of_this_run": round(sum(end.seconds for end in ends if end.state == "made"), 1),
        "counts": {kind: {"total": count.total(), **count} for kind, count in counts.items()},
        "failures": [
            {"node": end.node.name, "because": end.because, **asdict(end.failure)} for end in ends if end.failure
        ],
    }

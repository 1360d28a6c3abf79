"""A study from its recipe: nodes in order, what is missing made, what fails named, and the documents at the end."""

from __future__ import annotations

import contextlib
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from qvec_deploy.bench.environment import available_threads
from qvec_deploy.errors import StorageError, worst
from qvec_deploy.io.files import storage_errors
from qvec_deploy.jobs.executors import ExecutorName, check_address, start_executor
from qvec_deploy.jobs.job import Executor, JobFailure
from qvec_deploy.jobs.scheduler import missing_jobs, run_jobs
from qvec_deploy.research.study.nodes import KINDS, Node, package_versions
from qvec_deploy.research.study.study_documents import documents_of, write_documents
from qvec_deploy.research.study.study_graph import build_graph
from qvec_deploy.research.study.study_recipe import StudyRecipe
from qvec_deploy.research.study.study_store import RUN_VERSION, Store

PRELOAD = ("torch", "timm", "qvec_deploy.research.study.tasks", "qvec_deploy.research.study.cell")
"""Nothing that touches CUDA, as ModelOpt does: processes forked after that cannot use it."""


@dataclass(frozen=True)
class NodeEnd:
    """How a node ended.

    Attributes:
        state: `made` by this run, `failed`, or `kept`: of another run, or needed by nothing that is missing.
        seconds: That making it took, whenever that was.
        because: Name of the node whose failure it shares; None for its own.
    """

    node: Node
    state: Literal["kept", "made", "failed"]
    seconds: float = 0.0
    failure: JobFailure | None = None
    because: str | None = None


class StudyWatcher:
    """Hears what happens in a study; shows nothing itself."""

    def begun(self, nodes: Sequence[Node]) -> None:
        """All nodes are known."""

    def event(self, name: str, event: Any) -> None:
        """A node, by its id, is `done` of `total` with its steps."""

    def ended(self, end: NodeEnd) -> None:
        """A node is over."""


@dataclass(frozen=True)
class StudyRun:
    """A study's run as run.json has it, and the exit code of its worst failure; 0 without one."""

    document: dict[str, Any]
    exit_code: int


def run_study(
    recipe: StudyRecipe,
    out: Path,
    *,
    jobs: int | None = None,
    executor: ExecutorName = "local",
    address: str | None = None,
    offline: bool = False,
    watcher: StudyWatcher | None = None,
) -> StudyRun:
    """Do a study, or what is missing of it. A node that fails costs itself and what is made from it.

    Args:
        recipe: What is wanted.
        out: The study's folder.
        jobs: Nodes at a time, of one thread each; all cores by default.
        executor: `local` or `ray`.
        address: Of a Ray cluster.
        offline: Use the Hub's local cache only.
        watcher: Hears what happens.

    Raises:
        RecipeError, StorageError, IncompatibleError: A model, a task or a folder that cannot be; nothing is begun then.
    """
    check_address(executor, address)
    watcher = watcher or StudyWatcher()
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
        ends: dict[str, NodeEnd] = {}
        for end in _ends(groups, store, runs_on):
            ends[end.node.id] = end
            watcher.ended(end)
    ended = [ends[node.id] for node in nodes]
    run = _document(recipe, ended, time.monotonic() - start, executor, jobs)
    cells = [one.node for one in ended if one.node.kind == "cell" and one.state != "failed"]
    files = {cell_file(node): (store.folder(node.id) / "cell.json", str(node.about["model"])) for node in cells}
    write_documents(store, recipe=_yaml(recipe), cells=files, costs=_costs(ended), run=run)
    return StudyRun(run, run["exit_code"])


def _require_same(recipe: StudyRecipe, store: Store) -> None:
    """Refuse a folder with another study's documents: this one's would replace them."""
    name = documents_of(store.out)
    if name not in (None, recipe.name):
        raise StorageError(
            f"{store.out} holds the study `{name}`, and this one is `{recipe.name}`",
            hint="choose another directory, or keep the name",
        )


def _ends(groups: Sequence[Sequence[Node]], store: Store, executor: Executor) -> Iterator[NodeEnd]:
    """Every node as it ends, one group after another: what need not be made, then what is missing."""
    by_id = {node.id: node for group in groups for node in group}
    missing = _missing(by_id.values(), store.find)
    for group in groups:
        for node in group:
            if node.id not in missing:
                if store.record(node.id) is not None:  # a worker that was killed could not
                    store.forget_work(node.id)
                yield NodeEnd(node, "kept", store.seconds(node))
        jobs = [node.job(str(store.out)) for node in group if node.id in missing]
        for outcome in run_jobs(jobs, executor):
            node = by_id[outcome.job.name]
            if outcome.failure is not None:
                because = by_id[outcome.because].name if outcome.because else None
                yield NodeEnd(node, "failed", failure=outcome.failure, because=because)
            else:
                made = outcome.result["made"]  # else another run has made it meanwhile
                yield NodeEnd(node, "made" if made else "kept", outcome.result["seconds"])


def _missing(nodes: Iterable[Node], is_there: Callable[[Node], bool]) -> set[str]:
    """What must be made: cells that are not there, and what they are made from as far as that is not there."""
    by_id = {node.id: node for node in nodes}
    cells = [node.id for node in by_id.values() if node.kind == "cell"]
    needs = {name: node.parents for name, node in by_id.items()}
    return missing_jobs(needs, cells, lambda name: is_there(by_id[name]))


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


def _costs(ended: Sequence[NodeEnd]) -> list[dict[str, Any]]:
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


def _document(recipe: StudyRecipe, ended: Sequence[NodeEnd], wall: float, executor: str, jobs: int) -> dict[str, Any]:
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

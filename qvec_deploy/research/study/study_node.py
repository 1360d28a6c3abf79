"""A node of a study: one task, its key, and the job that makes it."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import Field

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.io.files import canonical_json, sha256_bytes
from qvec_deploy.io.untrusted import adapter
from qvec_deploy.jobs.job import Job, SendEvent
from qvec_deploy.research.study.study_store import StudyStore, TaskContext
from qvec_deploy.research.study.study_tasks import (
    BaseTask,
    CellTask,
    FineTuneTask,
    NodeKind,
    ReleasedTask,
    VectorTask,
)

Task = Annotated[BaseTask | FineTuneTask | ReleasedTask | VectorTask | CellTask, Field(discriminator="type")]
KINDS: tuple[NodeKind, ...] = get_args(NodeKind)

WORK_VERSION = 1
"""Of what bases, fine-tunes and vectors are: raise it when the code that makes them makes other numbers.

Its text is not part of a node's key: a comment must not cost a day of training.
"""

_PACKAGES = ("torch", "timm", "nvidia-modelopt", "numpy")


@functools.cache
def package_versions() -> dict[str, str]:
    """Versions of the packages whose arithmetic a study's numbers come from."""
    return {package: version(package) for package in _PACKAGES}


@dataclass(frozen=True)
class StudyNode:
    """One piece of work.

    Attributes:
        about: `model`, and where they apply `task`, `grid`, `seed`: what it is, for people.
    """

    task: Task
    about: dict[str, str | int]
    gpus: int = 0
    offline: bool = False
    versions: dict[str, str] = field(default_factory=package_versions)

    @property
    def kind(self) -> NodeKind:
        """`base`, `fp` and `qat` are weights, `vector` their difference, `cell` everything tried on a receiver."""
        return self.task.kind

    @functools.cached_property
    def key(self) -> str:
        """SHA-256 of what decides its result, with the versions of the packages that make the numbers."""
        return sha256_bytes(canonical_json(self.keyed))

    @functools.cached_property
    def keyed(self) -> Mapping[str, Any]:
        """What its key is of."""
        return {"kind": self.kind, "work": WORK_VERSION, "versions": self.versions, **self.task.decides()}

    @property
    def name(self) -> str:
        """What people call it."""
        return " ".join([self.kind, *map(str, self.about.values())])

    @functools.cached_property
    def id(self) -> str:
        """Its name as a file's, with the beginning of its key."""
        words = (f"seed{value}" if key == "seed" else str(value) for key, value in self.about.items())
        return "-".join([self.kind, *words, self.key[:12]])

    def job(self, out: Path) -> Job:
        """The node as a job that makes it in the study's folder."""
        arguments = {"out": str(out), "node": adapter(StudyNode).dump_python(self, mode="json")}
        return Job(self.id, "qvec_deploy.research.study.study_node:make_node", arguments, self.task.parents, self.gpus)


def make_node(send: SendEvent, *, out: str, node: dict[str, Any]) -> dict[str, Any]:
    """Make a node, given as plain values, or find it made: the function of its job.

    Returns:
        Its record: `seconds`, whether it was `made` now, and what else is known of it.
    """
    import torch
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    from qvec_deploy.datasets.hub_datasets import offline_hub

    torch.set_num_threads(1)
    wanted, store = adapter(StudyNode).validate_json(json.dumps(node)), StudyStore.existing(Path(out))
    differ = {name: own for name, own in package_versions().items() if wanted.versions.get(name) != own}
    if differ:
        raise IncompatibleError(
            f"this worker has {differ}, and the study was started with other versions",
            hint="install the same packages on every machine",
        )

    def make(folder: Path) -> dict[str, Any]:
        start = time.monotonic()
        work = store.work(wanted.id)
        context = TaskContext(store, folder, work, wanted.keyed, wanted.key, send, wanted.offline)
        record = wanted.task.make(context)
        return {"seconds": round(time.monotonic() - start, 3), **record}

    # one thread for numpy too: sums over two threads are other sums, and the cores are taken
    with threadpool_limits(1), offline_hub(wanted.offline):
        record = store.obtain(wanted, make)
    store.forget_work(wanted.id)
    return record

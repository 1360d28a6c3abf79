"""Studies of tests in this process: nodes one after another on one thread, and cells that nobody computes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from qvec_deploy.datasets import tiny
from qvec_deploy.jobs.job import Job, JobOutcome, perform
from qvec_deploy.research.study import cell as cell_module
from qvec_deploy.research.study import study_run as run_module
from qvec_deploy.research.study.cell_values import Cell, CellRequest, Relation, Trial
from qvec_deploy.research.study.study_run import NodeEnd, StudyWatcher


class Here:
    """Jobs in this process, one after another, last come first served.

    Attributes:
        did: Their names.
        before: Called with each before it is done.
    """

    def __init__(self) -> None:
        self.waiting: list[Job] = []
        self.did: list[str] = []
        self.before: Callable[[Job], None] = lambda job: None

    def submit(self, job: Job) -> None:
        self.waiting.append(job)

    def outcomes(self) -> Iterator[JobOutcome]:
        while self.waiting:
            job = self.waiting.pop()
            self.before(job)
            self.did.append(job.name)
            answer = perform(job.function, json.loads(json.dumps(job.arguments)), lambda value: None)
            yield JobOutcome.of(job, answer)

    def close(self) -> None:
        self.waiting.clear()


class Ends(StudyWatcher):
    """Keeps how nodes ended."""

    def __init__(self) -> None:
        self.all: list[NodeEnd] = []

    def ended(self, end: NodeEnd) -> None:
        self.all.append(end)


@contextlib.contextmanager
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    """For a fixture."""
    threads = torch.get_num_threads()
    executor = Here()
    monkeypatch.setattr(run_module, "start_executor", lambda *args, **kwargs: executor)
    monkeypatch.setattr(cell_module, "compute_cell", _fake)
    for sizes in (tiny._SIZES, tiny._DIGIT_SIZES):  # drawing is all that takes time here
        monkeypatch.setitem(sizes, "train", 250)
    yield executor
    torch.set_num_threads(threads)


def _fake(request: CellRequest, **_: Any) -> Cell:
    for path in (request.fp, request.own_qat, *(file for d in request.donors for file in (d.vector, d.fp))):
        assert path is None or Path(path).is_file()
    return Cell(request, 8, (Trial("float", "float", 0.0, right="f0"),), {"x": Relation(0.5)}, seconds={"all": 1.0})

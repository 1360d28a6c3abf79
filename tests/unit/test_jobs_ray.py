"""What is asked of Ray, with a Ray that only takes notes; real ones are in test_study_ray.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qvec_deploy.errors import RecipeError
from qvec_deploy.jobs import ray as executors
from qvec_deploy.jobs.executors import start_executor
from qvec_deploy.jobs.job import Executor, Job, JobOutcome
from qvec_deploy.jobs.ray import RayTasks
from qvec_deploy.recipe import load_recipes
from qvec_deploy.sweep import sweep

ADD = {"left": 1, "right": 2}


@dataclass
class Notes:
    """As much of the module `ray` as is used: two machines, one of them with GPUs."""

    asked: dict[str, dict[str, Any]] = field(default_factory=dict)
    where: dict[str, Any] = field(default_factory=dict)
    exceptions: Any = field(default_factory=lambda: SimpleNamespace(RayError=RuntimeError))

    def init(self, **where: Any) -> None:
        self.where = where

    def shutdown(self) -> None:
        pass

    def nodes(self) -> list[dict[str, Any]]:
        small, large = {"Resources": {"CPU": 4.0}}, {"Resources": {"CPU": 8.0, "GPU": 2.0}}
        return [small | {"Alive": True}, large | {"Alive": True}, {"Alive": False, "Resources": {"CPU": 99.0}}]

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 12.0, "GPU": 2.0}

    def remote(self, function: Callable[..., str]) -> Any:
        def options(name: str, **asked: Any) -> Any:
            self.asked[name] = asked
            return SimpleNamespace(remote=lambda *arguments: (name, function(*arguments)))

        return SimpleNamespace(options=options)

    def wait(self, references: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        return references[:num_returns], references[num_returns:]

    def get(self, reference: tuple[str, str]) -> str:
        return reference[1]


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> Notes:
    found = Notes()
    monkeypatch.setattr(executors, "_import_ray", lambda: found)
    return found


def _run(tasks: RayTasks, *jobs: Job) -> dict[str, JobOutcome]:
    for job in jobs:
        tasks.submit(job)
    return {outcome.job.name: outcome for outcome in tasks.outcomes()}


def test_a_cluster_is_asked_for_the_cores_and_gpus_of_a_job(notes: Notes) -> None:
    tasks = RayTasks(2, address="auto")
    assert tasks.gpus() == 2
    outcomes = _run(
        tasks,
        Job("wide", "job_functions:add", ADD, cpus=8, gpus=1),
        Job("narrow", "job_functions:add", ADD),
        Job("wider", "job_functions:add", ADD, cpus=9),
        Job("gpus", "job_functions:add", ADD, gpus=3),
    )
    assert outcomes["wide"].result == outcomes["narrow"].result == 3
    assert notes.asked == {
        "wide": {"num_cpus": 8, "num_gpus": 1, "max_retries": 0},
        "narrow": {"num_cpus": 1, "num_gpus": 0, "max_retries": 0},
    }
    failures = {name: outcome.failure for name, outcome in outcomes.items() if outcome.failure is not None}
    assert {failure.exit_code for failure in failures.values()} == {4}  # they would wait for ever
    assert failures["wider"].message == "it uses 9 cores and no machine of the cluster has more than 8"
    assert failures["gpus"].message == "it needs 3 GPU and Ray has 2"


def test_ray_that_is_started_here_runs_so_many_jobs_whatever_cores_they_use(notes: Notes) -> None:
    outcomes = _run(RayTasks(2), Job("wide", "job_functions:add", ADD, cpus=16))
    assert outcomes["wide"].result == 3
    assert notes.where["num_cpus"] == 2 and notes.asked["wide"]["num_cpus"] == 1


def test_a_worker_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    failure = json.loads(executors._perform(str(folder), "job_functions:add", json.dumps(ADD)))["failure"]
    assert failure["exit_code"] == 4 and f"has no {folder}: No such file" in failure["message"]
    assert "under the same path" in failure["hint"]


def test_an_address_without_ray_is_refused() -> None:
    with pytest.raises(RecipeError, match="--address is that of a Ray cluster"):
        start_executor("local", 1, address="auto")


class Keeper(Executor):
    """Keeps what it is given."""

    def __init__(self, gpus: int) -> None:
        self.jobs: list[Job] = []
        self._count = gpus

    def gpus(self) -> int:
        return self._count

    def submit(self, job: Job) -> None:
        self.jobs.append(job)

    def outcomes(self) -> Iterator[JobOutcome]:
        return iter(())

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("gpus", "asked"), [(2, [0, 1]), (0, [0, 0])])
def test_builds_ask_for_what_they_use(
    gpus: int, asked: list[int], tmp_path: Path, pico_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no GPU at all, a build for one leaves a bundle without an engine, as it does alone."""
    monkeypatch.setattr(sweep, "available_threads", lambda: 8)
    changes: list[dict[str, Any]] = [{}, {"target": {"runtime": "torch-cuda", "lowering": "packed"}}]
    recipes = [load_recipes(pico_recipe(name=f"r{n}", **change))[0] for n, change in enumerate(changes)]
    keeper = Keeper(gpus)
    sweep.sweep(recipes, tmp_path / "sweep", jobs=2, start=lambda *_, **__: keeper)
    assert [(job.name, job.cpus, job.gpus) for job in keeper.jobs] == [("r0", 4, asked[0]), ("r1", 4, asked[1])]
    assert keeper.jobs[0].arguments["threads"] == 4

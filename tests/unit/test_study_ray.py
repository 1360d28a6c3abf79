"""Ray: outcomes as those of local processes, and a study that is the same bit for bit."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from study_recipes import write_study

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.jobs.job import Job
from qvec_deploy.jobs.ray import RayTasks
from qvec_deploy.research.study.study_recipe import load_study
from qvec_deploy.research.study.study_run import run_study

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")]


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> Iterator[RayTasks]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))  # its workers take the environment, not sys.path
    executor = RayTasks(2)
    yield executor
    executor.close()


def test_outcomes_are_those_of_processes(tasks: RayTasks) -> None:
    jobs = [
        Job("add", "job_functions:add", {"left": 1, "right": 2}),
        Job("refuse", "job_functions:refuse"),
        Job("die", "job_functions:die", {"by": "SIGKILL"}),
        Job("leave", "job_functions:leave"),
        Job("exhaust", "job_functions:exhaust"),
        Job("not_json", "job_functions:not_json"),
        Job("gpu", "job_functions:add", {"left": 1, "right": 1}, gpus=1),
    ]
    for job in jobs:
        tasks.submit(job)
    outcomes = {}
    for outcome in tasks.outcomes():
        outcomes[outcome.job.name] = outcome
        if outcome.job.name == "add":
            tasks.submit(Job("more", "job_functions:add", {"left": outcome.result, "right": 1}))
    assert (outcomes["add"].result, outcomes["more"].result) == (3, 4)
    failures = {name: outcome.failure for name, outcome in outcomes.items() if outcome.failure is not None}
    assert {name: failure.exit_code for name, failure in failures.items()} == {
        "refuse": 7, "die": 4, "leave": 4, "exhaust": 4, "not_json": 1, "gpu": 4,
    }  # fmt: skip
    assert (failures["refuse"].message, failures["refuse"].hint) == ("nothing there", "look elsewhere")
    assert "its worker died" in failures["die"].message and "out of memory" in failures["die"].hint
    assert "not JSON serializable" in failures["not_json"].message
    assert failures["gpu"].message == "it needs 1 GPU and Ray has none"


@pytest.mark.slow
def test_a_study_on_ray_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    recipe = load_study(write_study(tmp_path))
    for executor in ("local", "ray"):
        outcome = run_study(recipe, tmp_path / executor, executor=executor, jobs=2)
        assert outcome["exit_code"] == 0, outcome["failures"]
    local, ray = (_results(tmp_path / executor) for executor in ("local", "ray"))
    assert len(local) == 7 + 2
    assert local == ray


def _results(out: Path) -> dict[str, Any]:
    """Every weight file's bytes, and the cells without their seconds."""
    found: dict[str, Any] = {path.parent.name: path.read_bytes() for path in out.glob("files/*/*.safetensors")}
    for path in out.glob("cells/*.json"):
        found[path.name] = {name: value for name, value in json.loads(path.read_bytes()).items() if name != "seconds"}
    return found


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(IncompatibleError, match="Ray is not installed") as caught:
        RayTasks(1)
    assert "qvec-deploy[ray]" in caught.value.hint

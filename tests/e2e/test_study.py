"""`qvec-deploy study`: killed, doubled and gone on with; released fine-tunes; refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from study_recipes import hub_study, write_hub, write_study

from qvec_deploy.research.study.study_documents import read_study

Run = Callable[..., tuple[int, str, str]]

pytestmark = pytest.mark.usefixtures("warm_jobs")


def _start(program: list[object], recipe: Path, out: Path) -> subprocess.Popen[str]:
    command = [*map(str, program), "study", "run", str(recipe), "-o", str(out), "--json"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env={**os.environ}
    )


@pytest.mark.slow
def test_killed_and_then_run_twice_at_once(tmp_path: Path, run: Run, command: Path) -> None:
    recipe, out = write_study(tmp_path), tmp_path / "out"
    killed = _start([sys.executable, "-m", "qvec_deploy"], recipe, out)
    try:
        deadline = time.monotonic() + 400
        while not list(out.glob("files/fp-*/node.json")) and killed.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
    finally:
        killed.kill()
        killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    code, text, _ = run("study", "plan", recipe, "-o", out, "--json")
    planned = json.loads(text)
    assert code == 0 and planned["kinds"]["base"]["done"] == 1 and planned["kinds"]["cell"]["done"] == 0
    assert planned["pairs"] == 2 and planned["seconds_left"] is None
    finished = {path: path.stat().st_mtime_ns for path in out.glob("files/*/*.safetensors")}
    missing = sum(kind["total"] - kind["done"] for kind in planned["kinds"].values())

    both = [_start([command], recipe, out) for _ in range(2)]
    answers = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    made = [count.get("made", 0) for text in answers for count in json.loads(text)["counts"].values()]
    assert sum(made) == missing  # each by one of the two
    assert len(read_study(out).cells) == 2
    assert {path: path.stat().st_mtime_ns for path in finished} == finished  # nothing was made again
    assert not list(out.glob("files/.*"))  # and nothing is left half written

    code, text, _ = run("study", "run", recipe, "-o", out)
    assert code == 0 and "receivers" in text and "of one thread in all" in text
    code, text, _ = run("study", "plan", recipe, "-o", out)
    assert code == 0 and "2 pairs" in text and "about 0 s" in text

    code, text, log = run("study", "run", recipe, "-o", out, "--quiet")
    assert code == 0 and "receivers" in text and log == ""
    code, text, log = run("study", "run", recipe, "-o", out, "--json", "--set", "testing=40")
    assert code == 0 and json.loads(text)["counts"]["cell"] == {"total": 2, "made": 2} and log == ""
    changed = tmp_path / "changed"
    code, text, log = run("study", "run", recipe, "-o", changed, "--quiet", "--set", "train.lr=1e9")
    assert code == 2 and "exit code 2: the loss is" in text and log == ""


@pytest.mark.slow
def test_released_fine_tunes_from_the_command_line(tmp_path: Path, run: Run) -> None:
    hub = write_hub(tmp_path / "hub", {"lower": 26, "realdigits": 10})
    code, text, log = run("study", "run", hub_study(tmp_path, hub), "-o", tmp_path / "out", "--json")
    assert code == 0, log + text
    document = json.loads(text)
    assert document["counts"]["fp"] == {"total": 2, "made": 2} and not document["failures"]
    cell = read_study(tmp_path / "out").cells[0]
    assert cell.request.base is None and cell.request.seed == 2038
    kinds = {trial.kind for trial in cell.trials}
    assert {"float", "own_qat", "plain", "pair", "control"} <= kinds
    with_base = hub_study(tmp_path, hub, controls=["task_vector"])
    code, _, log = run("study", "run", with_base, "-o", tmp_path / "out")
    assert code == 2 and "needs the base of pico" in log


def test_a_missing_checkpoint_is_named_and_costs_itself(tmp_path: Path, run: Run) -> None:
    hub = write_hub(tmp_path / "hub", {"lower": 26, "realdigits": 10})
    recipe = hub_study(tmp_path, hub, tasks={"preset": "tiny", "only": ["lower", "realdigits", "upper"]}, seeds=[1])
    code, text, log = run("study", "run", recipe, "-o", tmp_path / "out")
    assert code == 7
    assert "fp pico lower 1 failed" in log and "has 0 files" in text
    assert "more nodes need what failed" in text
    failures = json.loads((tmp_path / "out" / "run.json").read_text())["failures"]
    assert {failure["because"] for failure in failures} > {None}


@pytest.mark.parametrize(
    ("changes", "options", "code", "message"),
    [
        ({"tasks": [{"name": "a", "dataset": "tiny/lowre"}, {"name": "b", "dataset": "tiny/upper"}]}, [], 2, "task a:"),
        ({}, ["--set", "seeds=0"], 2, "seeds"),
        ({}, ["--address", "auto"], 2, "--executor ray"),
        ({"lambdsa": [1]}, [], 2, "did you mean `lambdas`?"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_refusals(
    tmp_path: Path, run: Run, changes: dict[str, Any], options: list[str], code: int, message: str
) -> None:
    found, _, log = run("study", "run", write_study(tmp_path, **changes), "-o", tmp_path / "out", *options)
    assert found == code and message in log
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_version(tmp_path: Path, run: Run) -> None:
    store = tmp_path / "out" / "store"
    store.mkdir(parents=True)
    (store / "version.json").write_text('{"qvec-study-store": 7}')
    for command in ("run", "plan"):
        code, _, log = run("study", command, write_study(tmp_path), "-o", tmp_path / "out")
        assert code == 4 and "of version 7, and this is version 1" in log
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["store", "version.json"]


@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_file_in_the_folders_place(command: str, tmp_path: Path, run: Run) -> None:
    (tmp_path / "out").write_text("mine")
    code, _, log = run("study", command, write_study(tmp_path), "-o", tmp_path / "out")
    assert code == 6 and "is not a study's folder" in log
    assert (tmp_path / "out").read_text() == "mine"


def test_the_schema_is_printed(run: Run) -> None:
    code, text, _ = run("schema", "--of", "study")
    assert code == 0 and json.loads(text)["title"] == "qvec-deploy study"


def test_an_executor_for_one_build_is_refused(pico_recipe: Callable[..., Path], tmp_path: Path, run: Run) -> None:
    code, _, log = run("build", "--recipe", pico_recipe(), "-o", tmp_path / "b", "--executor", "ray")
    assert code == 2 and "--executor is for several builds" in log


def test_an_address_without_ray_is_refused(pico_recipe: Callable[..., Path], tmp_path: Path, run: Run) -> None:
    code, _, log = run("build", "--recipe", pico_recipe(), "-o", tmp_path / "b", "--address", "auto")
    assert code == 2 and "add --executor ray" in log and not (tmp_path / "b").exists()

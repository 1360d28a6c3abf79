"""Many builds at once, through the command line: shared, kept, killed, resumed."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from qvec_deploy.bundle.bundle import Bundle
from qvec_deploy.recipe import load_recipes
from qvec_deploy.sweep.sweep import sweep

MATRIX = {"lambda": [0, 1], "target.lowering": ["int4", "int8"]}
NAMES = [f"pico-lambda{lam}-{lowering}" for lam in (0, 1) for lowering in ("int4", "int8")]
WEIGHTS = "weights.qvec.safetensors"

pytestmark = pytest.mark.usefixtures("warm_jobs")


def _verdicts(text: str) -> dict[str, tuple[str, bool, int]]:
    return {row["name"]: (row["verdict"], row["kept"], row["exit_code"]) for row in json.loads(text)["builds"]}


def _manifests(folder: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/manifest.json")}


def test_a_matrix_is_built_shared_and_kept(
    tmp_path: Path, pico_recipe: Callable[..., Path], run: Callable[..., Any]
) -> None:
    out, recipe = tmp_path / "sweep", pico_recipe(matrix=MATRIX)
    code, text, log = run("build", "--recipe", recipe, "-o", out)
    assert code == 0, log
    assert all(name in text for name in NAMES) and "sweep.json" in text
    assert "4/4" in log
    summary = (out / "sweep.json").read_text()
    assert list(_verdicts(summary)) == NAMES
    assert set(_verdicts(summary).values()) == {("built", False, 0)}

    # Three kinds of weights (float, lambda 0, lambda 1) and five engines serve eight candidates and more.
    kinds = [path.name.partition("-")[0] for path in (out / ".store").iterdir() if (path / "entry.json").exists()]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "weights": 3,
        "engine": 5,
        "coordinates": 1,
    }
    weights = [(out / name / WEIGHTS).read_bytes() for name in NAMES]
    assert weights[0] == weights[1] != weights[2] == weights[3]
    for name in NAMES:
        assert (out / name / WEIGHTS).stat().st_nlink == 1  # onnx refuses it otherwise, as an attack
        Bundle.open(out / name).verify()

    # A bundle of a sweep is the bundle of its recipe.
    code, _, log = run("build", "--recipe", recipe, "--set", "matrix={}", "--set", "lambda=1", "-o", tmp_path / "one")
    assert code == 0, log
    for name in (WEIGHTS, "model.onnx", "parity.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (out / NAMES[2] / name).read_bytes(), name

    # Again: everything is there, but for what was damaged since.
    before = _manifests(out)
    (out / NAMES[1] / "model.onnx").unlink()
    code, text, _ = run("build", "--recipe", recipe, "-o", out, "--json")
    assert code == 0 and [name for name, row in _verdicts(text).items() if not row[1]] == [NAMES[1]]
    assert {name for name, at in _manifests(out).items() if at != before[name]} == {NAMES[1]}

    # Another recipe under the same name is built again; --force builds everything again.
    other = (
        "build",
        "--recipe",
        recipe,
        "-o",
        out,
        "--json",
        "--set",
        "matrix={lambda: [0], target.lowering: [int4, int8]}",
    )
    code, text, _ = run(*other, "--set", "measure.blocks=3")
    assert code == 0 and set(_verdicts(text).values()) == {("built", False, 0)}
    code, text, _ = run(*other, "--set", "measure.blocks=3", "--force")
    assert code == 0 and set(_verdicts(text).values()) == {("built", False, 0)}


def test_a_build_that_fails_costs_itself(
    tmp_path: Path, pico_recipe: Callable[..., Path], run: Callable[..., Any], bundle: Path
) -> None:
    """A vector of another grid, a bundle that is not the sweep's, a gate that is missed: 6 is the worst of them."""
    gates = {"max_stored_bits": 3.5}
    recipe = pico_recipe(matrix={"quantize.bits": [3, 2]}, gates=gates)
    other = tmp_path / "other.yaml"
    values = {**yaml.safe_load(recipe.read_text()), "vector": None, "lambda": 0}
    other.write_text(yaml.safe_dump({**values, "matrix": {"quantize.clip": [1.0, 0.9]}, "gates": {}}))
    out = tmp_path / "sweep"
    out.mkdir()
    bundle.rename(out / "pico-clip0.9")
    theirs = _manifests(out)
    code, text, log = run("build", "--recipe", recipe, "--recipe", other, "-o", out, "--quiet")
    assert code == 6, log
    assert "trained for 3 bits" in text and "exists" in text and "max_stored_bits" in text
    assert _verdicts((out / "sweep.json").read_text()) == {
        "pico-bits3": ("gate missed", False, 3),
        "pico-bits2": ("failed", False, 4),
        "pico-clip1": ("built", False, 0),
        "pico-clip0.9": ("failed", False, 6),
    }
    code, text, _ = run("build", "--recipe", recipe, "--recipe", other, "-o", out, "--json")
    assert code == 6 and _verdicts(text)["pico-bits3"] == ("gate missed", True, 3)
    assert _manifests(out)["pico-clip0.9"] == theirs["pico-clip0.9"]  # not on the second try either


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ({"quantize.bits": [3, 9]}, "quantize.bits=9"),
        ({"receiver.model": ["vit_tiny_patch16_224", "vit_teeny"]}, "no model `vit_teeny`"),
    ],
)
def test_a_recipe_that_cannot_be_stops_all(
    tmp_path: Path, pico_recipe: Callable[..., Path], run: Callable[..., Any], matrix: dict[str, Any], message: str
) -> None:
    code, _, log = run("build", "--recipe", pico_recipe(matrix=matrix), "-o", tmp_path / "sweep")
    assert code == 2 and message in log and not (tmp_path / "sweep").exists()


def test_plan_lists_the_builds(pico_recipe: Callable[..., Path], run: Callable[..., Any]) -> None:
    recipe = pico_recipe(matrix={"quantize.bits": [3, 2], "target.lowering": ["int4", "int8"]})
    code, text, _ = run("plan", "--recipe", recipe)
    assert code == 0 and "4 builds" in text and text.count("trained for 3 bits") == 2
    code, text, _ = run("plan", "--recipe", recipe, "--json")
    builds = json.loads(text)["builds"]
    assert [build["refused"] is None for build in builds] == [True, True, False, False]
    assert builds[1]["candidates"] == ["float", "ptq", "pico-bits3-int8"]
    assert run("plan", "--recipe", recipe, "--roofline")[0] == 2


class _Killer:
    """Kills the process of one build in the middle of its work, as a machine out of memory would."""

    def __init__(self, name: str) -> None:
        self.name, self.killed = name, 0

    def event(self, name: str, event: Any) -> None:
        if name == self.name and event.get("stage") == "quantize" and not self.killed:
            (process,) = [each for each in multiprocessing.active_children() if each.name == name]
            process.kill()
            self.killed += 1


def test_a_killed_process_costs_its_build(tmp_path: Path, pico_recipe: Callable[..., Path]) -> None:
    recipes = load_recipes(pico_recipe(matrix={"lambda": [0, 1]}))
    killer = _Killer("pico-lambda1")
    summary = sweep(recipes, tmp_path, jobs=2, on_event=killer.event)
    assert killer.killed == 1
    assert [(row.verdict, row.exit_code) for row in summary.rows] == [("built", 0), ("failed", 4)]
    assert "SIGKILL" in summary.rows[1].reason and "out of memory" in summary.rows[1].hint
    again = sweep(recipes, tmp_path, jobs=2)
    assert [(row.verdict, row.kept) for row in again.rows] == [("built", True), ("built", False)]
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith((".tmp", ".old"))] == []


def test_a_killed_sweep_goes_on(
    tmp_path: Path, pico_recipe: Callable[..., Path], run: Callable[..., tuple[int, str, str]]
) -> None:
    recipe, out = pico_recipe(matrix={"lambda": [0, 0.5, 1], "target.lowering": ["int4", "int8"]}), tmp_path / "sweep"
    command = ["build", "--recipe", str(recipe), "-o", str(out), "--jobs", "2"]
    process = [sys.executable, "-m", "qvec_deploy", *command, "--quiet"]
    parent = subprocess.Popen(process, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 400
        while len(_manifests(out)) < 2:  # some are done, others in hand
            assert time.monotonic() < deadline and parent.poll() is None
            time.sleep(0.02)
        family = psutil.Process(parent.pid).children(recursive=True)
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    _, alive = psutil.wait_procs(family, timeout=120)
    assert alive == []  # nobody goes on building for nobody
    done = _manifests(out)
    made = {path.name: path.stat().st_mtime_ns for path in (out / ".store").iterdir() if (path / "entry.json").exists()}
    assert 2 <= len(done) < 6
    code, text, log = run(*command, "--json")
    assert code == 0, log
    verdicts = _verdicts(text)
    assert {name for name, row in verdicts.items() if row[1]} == set(done)
    assert {name: _manifests(out)[name] for name in done} == done
    for name, at in made.items():  # what was whole was not made again
        assert (out / ".store" / name).stat().st_mtime_ns == at
    assert [path.name for path in out.iterdir() if path.name.endswith((".tmp", ".old"))] == []
    assert [path.name for path in (out / ".store").iterdir() if path.name.endswith((".tmp", ".old"))] == []
    for name in verdicts:
        Bundle.open(out / name).verify()


def test_two_sweeps_at_once_do_no_harm(tmp_path: Path, pico_recipe: Callable[..., Path], command: Path) -> None:
    recipe, out = pico_recipe(matrix={"lambda": [0, 1]}), tmp_path / "sweep"
    words = [str(command), "build", "--recipe", str(recipe), "-o", str(out), "--json"]
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    texts = [process.communicate(timeout=900)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], texts
    one, two = map(_verdicts, texts)
    for name in one:  # each was built by one of them, and the other waited for it
        assert sorted(row[1] for row in (one[name], two[name])) == [False, True]

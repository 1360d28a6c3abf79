"""A build that is killed goes on where it was, and nobody takes parts that are not his."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qvec_deploy.builder import pipeline
from qvec_deploy.bundle.bundle import Bundle

Run = Callable[..., tuple[int, str, str]]
Write = Callable[..., Path]

SELECTING = {
    "lambda": None,
    "select": {"lambdas": [0.0, 1.0]},
    "images": {"dataset": "tiny/realdigits", "split": "val", "limit": 40},
    "measure": {"blocks": 400, "warmup": 0},
}


def _whole(parts: Path) -> dict[str, int]:
    """Entries that are whole, and when they were made."""
    if not parts.is_dir():
        return {}
    found = [path for path in parts.iterdir() if path.name[0] != "." and (path / "entry.json").is_file()]
    return {path.name: (path / "entry.json").stat().st_mtime_ns for path in found}


def _kill_when(command: list[str], parts: Path, ready: Callable[[dict[str, int]], bool]) -> dict[str, int]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 400
        while not ready(_whole(parts)):
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.005)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    return _whole(parts)


def test_a_killed_build_goes_on(tmp_path: Path, pico_recipe: Write, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, out, parts = pico_recipe(**SELECTING), tmp_path / "out" / "pico", tmp_path / "out" / ".pico.parts"
    command = [sys.executable, "-m", "qvec_deploy", "build", "--recipe", str(recipe), "-o", str(out), "--quiet"]
    made = _kill_when(command, parts, lambda whole: any(name.startswith("engine-") for name in whole))
    assert not out.exists() and {name.split("-")[0] for name in made} >= {"selection", "weights", "engine"}

    kept: dict[str, int] = {}
    finish = pipeline.write_bundle
    monkeypatch.setattr(pipeline, "write_bundle", lambda *given: (kept.update(_whole(parts)), finish(*given))[-1])
    code, _, log = run("build", "--recipe", recipe, "-o", out, "--quiet")
    assert code == 0, log
    assert {name: kept[name] for name in made} == made  # what was whole was not made again
    assert len(kept) > len(made)
    assert [path.name for path in out.parent.iterdir()] == ["pico"]
    Bundle.open(out).verify()

    code, _, log = run("build", "--recipe", recipe, "-o", tmp_path / "whole", "--quiet")
    assert code == 0, log
    for name in ("model.onnx", "weights.qvec.safetensors"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_another_recipe_takes_no_wrong_parts(tmp_path: Path, pico_recipe: Write, run: Run) -> None:
    recipe, out, parts = pico_recipe(), tmp_path / "out" / "pico", tmp_path / "out" / ".pico.parts"
    command = [sys.executable, "-m", "qvec_deploy", "build", "--recipe", str(recipe), "-o", str(out), "--quiet"]
    _kill_when(command, parts, lambda whole: any(name.startswith("engine-") for name in whole))
    other = pico_recipe(quantize={"bits": 2, "granularity": "channel"}, vector=None, **{"lambda": None})
    for directory in (out, tmp_path / "whole"):
        code, _, log = run("build", "--recipe", other, "-o", directory, "--quiet", "--force")
        assert code == 0, log
    assert (out / "model.onnx").read_bytes() == (tmp_path / "whole" / "model.onnx").read_bytes()
    assert [path.name for path in out.parent.iterdir()] == ["pico"]


def test_a_refused_build_leaves_nothing(tmp_path: Path, pico_recipe: Write, run: Run) -> None:
    evaluate = {"dataset": "folder", "root": "nowhere"}
    code, _, _ = run("build", "--recipe", pico_recipe(evaluate=evaluate), "-o", tmp_path / "out" / "pico", "--quiet")
    assert code == 6
    assert list((tmp_path / "out").iterdir()) == []


def test_two_builds_of_one_bundle_do_no_harm(tmp_path: Path, pico_recipe: Write, command: Path) -> None:
    recipe, out = pico_recipe(), tmp_path / "out" / "pico"
    words = [str(command), "build", "--recipe", str(recipe), "-o", str(out), "--quiet", "--force"]
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    texts = [process.communicate(timeout=900)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], texts
    assert [path.name for path in out.parent.iterdir()] == ["pico"]
    Bundle.open(out).verify()

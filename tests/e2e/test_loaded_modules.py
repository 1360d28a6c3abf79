"""Commands load what they use: PyTorch takes seconds, and none of these needs it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "tests" / "golden" / "v0.1.0" / "bundle"
SLOW = ("torch", "timm", "modelopt", "onnxscript", "scipy", "sklearn", "datasets", "ray")
PROGRAM = f"""
import atexit, sys
from qvec_deploy.cli.commands import main

atexit.register(lambda: print("loaded:", [name for name in {SLOW!r} if name in sys.modules]))
main()
"""


def loaded(*arguments: object, cache: Path) -> str:
    """Which of the slow packages a command has loaded when it ends."""
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "arguments",
    [
        ("doctor",),
        ("inspect", BUNDLE),
        ("verify", BUNDLE),
        ("compare", BUNDLE, BUNDLE),
        ("report", BUNDLE, "-o", "report"),
        ("schema",),
    ],
    ids=lambda arguments: arguments[0],
)
def test_of_a_bundle(arguments: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert loaded(*arguments, cache=tmp_path) == "loaded: []"


def test_a_plan_looks_at_models_in_another_process(tmp_path: Path, pico_recipe: Callable[..., Path]) -> None:
    recipe = pico_recipe()
    for _ in range(2):
        assert loaded("plan", "--recipe", recipe, cache=tmp_path) == "loaded: []"

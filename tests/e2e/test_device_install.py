"""`pip install qvec-deploy` without extras, from the registries: it is small, and does what a device has to do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from shared import make_once
from without_build import write_pictures

from qvec_deploy.cli.parts import PARTS

ROOT = Path(__file__).parents[2]
MOST_BYTES = 350e6
PLAIN = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

Run = Callable[..., tuple[int, str, str]]


def _call(*command: object, folder: Path) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=folder, env=PLAIN, capture_output=True, text=True, check=False)


def _install(folder: Path) -> None:
    """A virtual environment with this project, installed from a copy, so that nothing is written beside the sources."""
    source = folder.with_name("device_source")
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    shutil.copytree(ROOT / "qvec_deploy", source / "qvec_deploy", ignore=shutil.ignore_patterns("__pycache__"))
    assert _call(sys.executable, "-m", "venv", folder, folder=source).returncode == 0
    done = _call(folder / "bin" / "python", "-m", "pip", "install", "-q", source, folder=source)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment; do not write to it."""
    scratch = tmp_path_factory.mktemp("registry")
    if _call(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "click", folder=scratch).returncode != 0:
        pytest.skip("no package registry can be reached")
    return make_once("device", _install)


@pytest.fixture
def demo(run: Run) -> Path:
    """The demo's bundle without its baselines, judged on a bundled task; do not write to it."""

    def make(folder: Path) -> None:
        changes = ("variants=[]", "evaluate.limit=100", "measure.blocks=2")
        settings = [word for change in changes for word in ("--set", change)]
        code, _, log = run("build", "--recipe", ROOT / "recipes/demo_3bit.yaml", *settings, "-o", folder, "--quiet")
        assert code == 0, log

    return make_once("bundles/demo_of_device", make)


def test_it_is_small_and_has_nothing_that_builds(device: Path) -> None:
    (packages,) = device.glob("lib/python*/site-packages")
    size = sum(path.lstat().st_size for path in packages.rglob("*"))
    assert size <= MOST_BYTES, f"{size / 1e6:.0f} MB"
    there = {path.name for path in packages.iterdir()}
    assert not there & {"torch", "torchvision", "timm", "modelopt", "matplotlib", "sklearn", "scipy", "datasets", "ray"}
    assert _call(device / "bin" / "python", "-m", "pip", "check", folder=device).returncode == 0


def test_it_does_what_a_device_has_to_do(device: Path, demo: Path, tmp_path: Path) -> None:
    picture = write_pictures(tmp_path / "pictures") / "0" / "0.png"
    for arguments in (
        ["verify", demo],
        ["bench", demo, "--lowering", "int4", "--lowering", "int8", "--blocks", "6", "--quiet", "-o", "bench"],
        ["predict", demo, picture],
        ["compare", demo, demo, "--stored", "-o", "compared", "--quiet"],
        ["report", demo, "-o", "report"],
        ["inspect", demo],
        ["export", demo, "--lowering", "int8", "-o", "int8.onnx"],
        ["export", demo, "--expanded", "-o", "expanded.onnx"],
        ["release", demo, "--to", "released", "--quiet"],
        ["verify", "released", "--release"],
        ["doctor"],
        ["plan", "--help"],
        ["schema", "--of", "study"],
    ):
        done = _call(device / "bin" / "qvec-deploy", *arguments, folder=tmp_path)
        assert done.returncode == 0, f"{arguments}\n{done.stderr}"
    run_py = tmp_path / "released" / "run.py"
    assert _call(device / "bin" / "python", run_py, picture, folder=tmp_path).returncode == 0


def test_what_builds_is_named(device: Path, tmp_path: Path) -> None:
    recipe = ROOT / "recipes" / "demo_3bit.yaml"
    done = _call(device / "bin" / "qvec-deploy", "build", "--recipe", recipe, "-o", "built", folder=tmp_path)
    assert done.returncode == 4
    assert done.stderr.splitlines()[-1] == "hint: pip install 'qvec-deploy[build]'"
    done = _call(device / "bin" / "qvec-deploy", "doctor", folder=tmp_path)
    assert f"part build: no: without {', '.join(PARTS['build'])}" in done.stdout

"""A bundle's recipe finds its files from anywhere, a release names no folder of the machine it was built on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pico import PICO_CLASSES
from PIL import Image

from qvec_deploy.bundle.bundle import Bundle

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def built(run: Run, pico_recipe: Callable[..., Path], pico_folder: Path, tmp_path: Path) -> Path:
    """A bundle of a recipe whose paths are all relative to its own folder."""
    shutil.copy(pico_folder / "receiver.safetensors", tmp_path / "mine.safetensors")
    generator = np.random.default_rng(0)
    for number in range(PICO_CLASSES):
        folder = tmp_path / "data" / "test" / f"class_{number}"
        folder.mkdir(parents=True)
        for image in range(2):
            pixels = generator.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{image}.png")
    recipe = pico_recipe(
        receiver__checkpoint="mine.safetensors",
        vector=None,
        **{"lambda": None},
        evaluate={"dataset": "folder", "root": "data"},
    )
    code, _, log = run("build", "--recipe", recipe, "-o", tmp_path / "out" / "deep" / "pico", "--quiet")
    assert code == 0, log
    return tmp_path / "out" / "deep" / "pico"


def test_a_bundles_recipe_runs_from_anywhere(
    built: Path, run: Run, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    code, out, log = run("bench", built, "--blocks", 2, "--quiet", "--json")
    assert code == 0, log
    report = json.loads(out)
    assert (report["images"], report["images_folder"]) == (20, "data")
    assert len(report["images_sha256"]) == 64
    moved = Path(shutil.move(built, tmp_path / "moved"))
    assert Bundle.open(moved).recipe.folder == tmp_path
    assert run("plan", "--recipe", moved / "recipe.yaml")[0] == 0

    Path(tmp_path / "data").rename(tmp_path / "photos")
    code, _, err = run("bench", moved, "--blocks", 2, "--quiet")
    assert code == 6 and f"{tmp_path / 'data'}: no such folder" in err and "--data" in err
    code, out, _ = run("bench", moved, "--blocks", 2, "--quiet", "--data", tmp_path / "photos", "--json")
    assert code == 0 and json.loads(out)["images_folder"] == "photos"

    code, out, _ = run("bench", moved, "--blocks", 2, "--quiet", "--no-accuracy", "--json")
    report = json.loads(out)
    assert code == 0 and report["images"] == 0
    assert all(entry["accuracy"] is None and entry["latency"] for entry in report["candidates"])
    code, _, err = run("bench", moved, "--no-accuracy", "--data", tmp_path / "photos")
    assert code == 2 and "leave one of them out" in err

    code, _, log = run("release", moved, "--to", tmp_path / "release", "--quiet")
    assert code == 0, log
    for path in (tmp_path / "release").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path.name
    assert Bundle.open(tmp_path / "release").manifest.recipe_folder is None

"""Processes in which the extras of pyproject.toml cannot be imported, as on a device, and a bundle to run there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from qvec_deploy.cli.parts import PARTS

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden" / "v0.1.0" / "bundle"
CLASSES = 10

_SITE = """
from importlib.machinery import PathFinder
_find, _blocked = PathFinder.find_spec, {blocked!r}
PathFinder.find_spec = lambda name, *rest: None if name.partition(".")[0] in _blocked else _find(name, *rest)
"""


def device_environment(folder: Path) -> dict[str, str]:
    """The environment of such processes and of their children."""
    blocked = {name for modules in PARTS.values() for name in modules} | {"triton", "datasets"}
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(_SITE.format(blocked=blocked))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (folder / "site", ROOT)))}


def write_pictures(folder: Path) -> Path:
    """Two pictures for each of ten classes, none of them of the model's size."""
    draw = np.random.default_rng(0)
    for label in range(CLASSES):
        (folder / str(label)).mkdir(parents=True)
        for number in range(2):
            pixels = draw.integers(0, 256, (40, 50, 3), np.uint8)
            Image.fromarray(pixels).save(folder / str(label) / f"{number}.png")
    return folder


def bundle_on_pictures(folder: Path) -> Path:
    """The golden bundle, as if it had been built to be judged on pictures."""
    bundle = Path(shutil.copytree(GOLDEN, folder / "bundle"))
    recipe = bundle / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8")
    changed = text.replace("dataset: tiny/realdigits\n  root: null", f"dataset: folder\n  root: {folder / 'pictures'}")
    assert changed != text
    recipe.write_text(changed, encoding="utf-8")
    write_pictures(folder / "pictures")
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    digest = hashlib.sha256(changed.encode()).hexdigest()
    manifest["recipe_sha256"] = manifest["files"]["recipe.yaml"]["sha256"] = digest
    manifest["files"]["recipe.yaml"]["size"] = len(changed.encode())
    (bundle / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return bundle

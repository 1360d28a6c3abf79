"""`plan` works on what is there, says what is missing, and puts first what matters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qvec_deploy.builder.preview import preview
from qvec_deploy.cli.plan_text import plan_lines
from qvec_deploy.errors import IncompatibleError
from qvec_deploy.recipe import load_recipe

DEMO = Path(__file__).resolve().parents[2] / "recipes" / "demo_best.yaml"


def _folder(root: Path, classes: int, images: int = 2) -> Path:
    for label in range(classes):
        for number in range(images):
            path = root / "test" / f"class_{label}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8, 3), label, np.uint8)).save(path)
    return root


def test_what_matters_comes_first() -> None:
    found = preview(load_recipe(DEMO))
    lines = dict(plan_lines(found))
    assert len(list(plan_lines(found))) <= 15 and found.missing == found.doubts == ()
    assert lines["receiver"].startswith("demo/receiver_symbols.safetensors: timm's vit_tiny_patch16_224, 21 classes")
    assert "crop_pct 1 (the recipe)" in lines["images"] and "lambda chosen by the build" in lines["patch"]
    assert "the best of methods mse, gptq, gptaq on images" in lines["weights"]
    assert "5,000 images, 21 classes: 0 = !" in lines["accuracy"]
    assert "400 images, labels aside" in lines["looks at"]
    assert lines["size"].startswith("2.77 MB in float32, 0.389 MB")


def test_missing_vectors_leave_the_receiver_checked(pico_recipe: Callable[..., Path]) -> None:
    found = preview(load_recipe(pico_recipe(vector={"files": ["v1.st"]})))
    assert found.missing == ("vector: v1.st",) and found.plan.architecture.classes == 10
    with pytest.raises(IncompatibleError, match="is not a"):
        preview(load_recipe(pico_recipe(vector={"files": ["v1.st"]}, receiver__model_args={"depth": 3})))


def test_images_are_counted_and_wrong_ones_are_doubts(pico_recipe: Callable[..., Path], tmp_path: Path) -> None:
    right = pico_recipe(evaluate={"dataset": "folder", "root": str(_folder(tmp_path / "right", 10))})
    assert (
        "20 images, 10 classes: 0 = class_0, 1 = class_1" in dict(plan_lines(preview(load_recipe(right))))["accuracy"]
    )
    wrong = pico_recipe(evaluate={"dataset": "folder", "root": str(_folder(tmp_path / "wrong", 3))})
    (doubt,) = preview(load_recipe(wrong)).doubts
    assert "3 classes" in doubt and "10" in doubt

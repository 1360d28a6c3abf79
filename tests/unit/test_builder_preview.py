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
    assert "5,000 images, 21 classes" in lines["accuracy"] and lines["classes"].startswith("0 = !, ")
    assert "400 images, labels aside" in lines["looks at"]
    assert lines["size"].startswith("2.77 MB in float32, 0.389 MB")


def test_missing_vectors_leave_the_receiver_checked(pico_recipe: Callable[..., Path]) -> None:
    found = preview(load_recipe(pico_recipe(vector={"files": ["v1.st"]})))
    assert found.missing == ("vector: v1.st",) and found.plan.architecture.classes == 10
    with pytest.raises(IncompatibleError, match="is not a"):
        preview(load_recipe(pico_recipe(vector={"files": ["v1.st"]}, receiver__model_args={"depth": 3})))


def test_a_missing_file_of_names_is_one_of_those_that_are_missing(
    pico_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    data = {"dataset": "folder", "root": str(_folder(tmp_path / "right", 10))}
    found = preview(load_recipe(pico_recipe(receiver__classes="names.txt", vector={"files": ["v1.st"]}, evaluate=data)))
    assert found.missing == ("receiver.classes: names.txt", "vector: v1.st") and found.doubts == ()
    assert found.recipe.receiver.classes == "names.txt"
    assert preview(load_recipe(pico_recipe(receiver__classes="names.txt", evaluate=data))).files_missing == 1


def test_images_are_counted_and_wrong_ones_are_doubts(pico_recipe: Callable[..., Path], tmp_path: Path) -> None:
    right = pico_recipe(evaluate={"dataset": "folder", "root": str(_folder(tmp_path / "right", 10))})
    lines = dict(plan_lines(preview(load_recipe(right))))
    assert "20 images, 10 classes" in lines["accuracy"]
    assert lines["classes"].startswith("0 = class_0, 1 = class_1")
    assert lines["classes"].endswith("not named, numbered in the order of the folders")
    wrong = pico_recipe(evaluate={"dataset": "folder", "root": str(_folder(tmp_path / "wrong", 3))})
    (doubt,) = preview(load_recipe(wrong)).doubts
    assert "3 classes" in doubt and "10" in doubt


def test_names_of_classes_and_who_says_them(pico_recipe: Callable[..., Path], tmp_path: Path) -> None:
    names = [f"class_{label}" for label in reversed(range(10))]
    root = _folder(tmp_path / "some", 3)
    (root / "test" / "notes.txt").touch()
    found = preview(
        load_recipe(pico_recipe(evaluate={"dataset": "folder", "root": str(root)}, receiver__classes=names))
    )
    lines = dict(plan_lines(found))
    assert lines["classes"].startswith("0 = class_9, 1 = class_8") and lines["classes"].endswith("from the recipe")
    assert "10 classes, 7 of them without an image (class_9" in lines["accuracy"]
    assert found.doubts == ("evaluate: 1 file is left aside (1 .txt), such as notes.txt.",)


def test_an_order_that_the_recipe_says_is_told(pico_recipe: Callable[..., Path], tmp_path: Path) -> None:
    for label in range(9, 19):
        _picture(tmp_path / "test" / str(label) / "0.png")
    block = {"dataset": "folder", "root": str(tmp_path)}
    (doubt,) = preview(load_recipe(pico_recipe(evaluate=block))).doubts
    assert "class 0 is `9` as timm orders the folders, and `10`" in doubt
    lines = dict(plan_lines(preview(load_recipe(pico_recipe(evaluate={**block, "class_order": "plain"})))))
    assert lines["classes"].startswith("0 = 10") and lines["classes"].endswith("in torchvision's order of the folders")


def test_unlabelled_pictures_may_lie_anywhere(pico_recipe: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("0.png", "1.png", "deep/er/2.png"):
        _picture(tmp_path / name)
    found = preview(load_recipe(pico_recipe(images={"dataset": "folder", "root": str(tmp_path)})))
    assert "3 images, labels aside" in dict(plan_lines(found))["looks at"]


def _picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)

"""A first recipe is one that `plan` accepts, for whatever there is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.numpy import load_file
from timm.data import create_transform, resolve_model_data_config

from qvec_deploy.builder.preview import preview
from qvec_deploy.builder.starter import Wanted, first_recipe
from qvec_deploy.datasets import DataConfig, DatasetSpec
from qvec_deploy.datasets.tiny import open_tiny
from qvec_deploy.errors import RecipeError
from qvec_deploy.recipe import load_recipe
from tests.pico import PICO_ARGS, PICO_MODEL

CLASSES = [f"c{label}" for label in range(10)]


@pytest.fixture
def checkpoint(pico_folder: Path, tmp_path: Path) -> Path:
    state = {name: torch.from_numpy(value) for name, value in load_file(pico_folder / "receiver.safetensors").items()}
    path = tmp_path / "work" / "flowers" / "model_best.pth.tar"
    path.parent.mkdir(parents=True)
    arguments = {"model": PICO_MODEL, "model_kwargs": PICO_ARGS}
    torch.save({"arch": PICO_MODEL, "args": arguments, "state_dict": state}, path)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Callable[[Sequence[str], Sequence[str]], Path]:
    def write(splits: Sequence[str], classes: Sequence[str]) -> Path:
        root = tmp_path / "work" / "images"
        for split in splits:
            for name in classes:
                for number in range(2):
                    path = root / split / name / f"{number}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(path)
        return root

    return write


def test_without_images(checkpoint: Path) -> None:
    recipe, text = first_recipe(Wanted(str(checkpoint), checkpoint.parent))
    assert recipe.name == "flowers_3bit" and recipe.receiver.checkpoint == "model_best.pth.tar"
    assert recipe.quantize.method == "gptaq" and recipe.images is None and recipe.evaluate is None
    assert "images that the tool draws" in text and "# vector:" in text and "# evaluate:" in text
    assert max(len(line) for line in text.splitlines() if "model_args" not in line) <= 120


@pytest.mark.parametrize(
    ("splits", "judge", "looked_at"),
    [
        (["train", "val", "test"], "test", "val"),
        (["Training", "Testing"], "test", "train"),
        (["train", "validation"], "val", "train"),
        ([""], "test", None),
    ],
    ids=str,
)
def test_with_images(
    checkpoint: Path,
    pictures: Callable[..., Path],
    tmp_path: Path,
    splits: list[str],
    judge: str,
    looked_at: str | None,
) -> None:
    folder = tmp_path / "work" / "recipes"
    folder.mkdir()
    recipe, text = first_recipe(Wanted(str(checkpoint), folder, images=pictures(splits, CLASSES)))
    assert recipe.evaluate is not None and (recipe.evaluate.root, recipe.evaluate.split) == ("../images", judge)
    assert recipe.receiver.checkpoint == "../flowers/model_best.pth.tar"
    assert (recipe.images.split if recipe.images is not None else None) == looked_at
    assert (recipe.select is not None) == (looked_at is not None)
    (folder / "a.yaml").write_text(text)
    found = preview(load_recipe(folder / "a.yaml"))
    assert found.missing == found.doubts == () and found.candidates[0] == "float"


def test_an_order_that_matters_is_said_to_be_assumed(checkpoint: Path, pictures: Callable[..., Path]) -> None:
    root = pictures(["test"], [str(label) for label in range(9)] + ["10"])
    recipe, text = first_recipe(Wanted(str(checkpoint), checkpoint.parent, images=root))
    assert recipe.evaluate is not None and recipe.evaluate.class_order == "natural" and "ASSUMED" in text
    with pytest.raises(RecipeError, match="classes") as caught:
        first_recipe(Wanted(str(checkpoint), checkpoint.parent, images=pictures(["test"], ["one_more"])))
    assert "init without --images" in caught.value.hint, "there is no recipe yet that could name the classes"


def test_raw_and_averaged_weights_are_chosen_by_the_user(checkpoint: Path) -> None:
    saved = torch.load(checkpoint)
    torch.save({**saved, "state_dict_ema": saved["state_dict"]}, checkpoint)
    with pytest.raises(RecipeError, match="raw and averaged"):
        first_recipe(Wanted(str(checkpoint), checkpoint.parent))
    recipe, text = first_recipe(Wanted(str(checkpoint), checkpoint.parent, weights="ema"))
    assert recipe.receiver.weights == "ema" and "  weights: ema" in text


def test_pictures_without_labels_are_looked_at(checkpoint: Path, pictures: Callable[..., Path]) -> None:
    root = pictures(["cats"], [""]) / "cats"
    recipe, text = first_recipe(Wanted(str(checkpoint), checkpoint.parent, images=root))
    assert recipe.images is not None and recipe.evaluate is None and "# evaluate:" in text
    found = preview(recipe)
    assert found.doubts == () and [data.block for data in found.data] == ["images"]


@pytest.mark.parametrize(("crop", "found"), [(1.0, {"crop_pct": 1.0}), (0.9, {})])
def test_a_preprocessing_that_nobody_says_is_tried(
    checkpoint: Path, tmp_path: Path, crop: float, found: dict[str, float]
) -> None:
    """Pictures are labelled by the model itself, prepared with this crop; timm's is 0.9."""
    saved = torch.load(checkpoint)
    names = [f"c{label}" for label in range(10)]
    torch.save({**saved, "class_names": names}, checkpoint)
    model = timm.create_model(PICO_MODEL, num_classes=10, **PICO_ARGS).eval()
    model.load_state_dict(saved["state_dict"])
    side = model.patch_embed.img_size[0]
    transform = create_transform(
        **{**resolve_model_data_config(model), "input_size": (3, side, side), "crop_pct": crop}
    )
    pixels, _ = open_tiny(DatasetSpec("tiny/realdigits", limit=120), DataConfig()).pixels
    for row, image in enumerate(map(Image.fromarray, pixels)):
        label = int(model(transform(image)[None]).argmax())
        path = tmp_path / "work" / "images" / ("val", "test")[row % 2] / names[label] / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    recipe, text = first_recipe(Wanted(str(checkpoint), checkpoint.parent, images=tmp_path / "work" / "images"))
    assert recipe.receiver.preprocessing.model_dump(exclude_none=True) == found
    assert ("# tried: 60 of 60 images right" in text) == bool(found)


@pytest.mark.parametrize(("name", "convolutional"), [("efficientvit_m0", True), ("mobilevit_xxs", False)])
def test_hybrids_have_their_convolutions_on_the_grid(
    tmp_path: Path, pictures: Callable[..., Path], name: str, convolutional: bool
) -> None:
    torch.save(timm.create_model(name, num_classes=10).state_dict(), tmp_path / "work.pth")
    recipe, text = first_recipe(Wanted(str(tmp_path / "work.pth"), tmp_path, images=pictures(["test", "val"], CLASSES)))
    assert recipe.receiver.model == name and recipe.quantize.convolutions == convolutional
    assert (recipe.quantize.method, recipe.select is None) == (("mse", True) if convolutional else ("gptaq", False))
    assert ("# vector:" in text) != convolutional
    assert preview(recipe).doubts == ()

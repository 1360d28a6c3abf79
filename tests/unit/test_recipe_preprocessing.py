"""Who says how images are prepared: the recipe, the checkpoint, the config.json beside it, or timm."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from timm.data import create_transform

from qvec_deploy.datasets.standalone_run import ImagePreprocessor
from qvec_deploy.errors import RecipeError
from qvec_deploy.formatting import preprocessing
from qvec_deploy.io.checkpoint import Checkpoint
from qvec_deploy.models import describe
from qvec_deploy.planner import Plan, make_plan
from qvec_deploy.recipe import load_recipe
from qvec_deploy.recipe.preprocessing import prepare_images
from tests.pico import PICO_ARGS, PICO_MODEL

CONFIG = {
    "architecture": PICO_MODEL,
    "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "crop_pct": 0.8, "input_size": [3, 9, 9]},
}
DYNAMIC = "resnet18"  # takes images of several sizes


@pytest.fixture
def planned(pico_recipe: Callable[..., Path], pico_folder: Path, tmp_path: Path) -> Callable[..., Plan]:
    """The plan of the pico receiver, with a config.json beside it and notes inside."""

    def plan(config: Mapping[str, Any] | None = None, notes: Mapping[str, Any] | None = None, **fields: Any) -> Plan:
        state = {
            name: torch.from_numpy(value) for name, value in load_file(pico_folder / "receiver.safetensors").items()
        }
        torch.save({"state_dict": state, **(notes or {})}, tmp_path / "last.pth.tar")
        if config is not None:
            (tmp_path / "config.json").write_text(json.dumps(config))
        overrides = {"vector": None, "lambda": 0.0, "receiver__checkpoint": str(tmp_path / "last.pth.tar")}
        recipe = load_recipe(pico_recipe(**overrides, receiver__preprocessing=fields))
        return make_plan(recipe, Checkpoint.open(tmp_path / "last.pth.tar"))

    return plan


def test_each_field_is_of_the_first_who_says_it(planned: Callable[..., Plan]) -> None:
    notes = {"arch": PICO_MODEL, "args": {"model": PICO_MODEL, "mean": [0.4, 0.4, 0.4], "std": [0.25, 0.25, 0.25]}}
    plan = planned(CONFIG, notes, std=[0.3])
    config, origins = plan.architecture.data_config, plan.images.origins
    assert config["mean"] == (0.4, 0.4, 0.4) and origins["mean"] == "last.pth.tar"
    assert config["std"] == (0.3, 0.3, 0.3) and origins["std"] == "the recipe"
    assert config["crop_pct"] == 0.8 and origins["crop_pct"] == "config.json"
    assert config["interpolation"] == "bicubic" and origins["interpolation"] == f"timm's {PICO_MODEL}"
    assert origins["input_size"] == "the model" and config["input_size"] == plan.architecture.input_shape
    assert plan.images.doubts == ()
    text = preprocessing(config, origins)
    assert "std 0.3 0.3 0.3 (the recipe)" in text and "crop_pct 0.8 (config.json)" in text


def test_the_config_of_another_model_is_not_used(planned: Callable[..., Plan]) -> None:
    plan = planned({**CONFIG, "architecture": "vit_small_patch16_224"})
    assert plan.images.origins["mean"] == f"timm's {PICO_MODEL}"
    (doubt,) = plan.images.doubts
    assert doubt == (
        f"config.json is of timm's `vit_small_patch16_224`, the recipe names `{PICO_MODEL}`: it is not used"
    )
    (doubt,) = planned({**CONFIG, "num_classes": 77}).images.doubts
    assert "77 classes" in doubt and doubt.endswith("it is not used")


def test_a_training_of_another_name_is_doubtful(planned: Callable[..., Plan]) -> None:
    plan = planned(None, {"arch": f"{PICO_MODEL}.augreg_in21k", "args": {"std": [0.2, 0.2, 0.2]}})
    assert plan.images.origins["std"] == "last.pth.tar"
    assert f"`{PICO_MODEL}.augreg_in21k`" in plan.images.doubts[0]


def test_a_model_of_other_arguments_is_doubtful(planned: Callable[..., Plan]) -> None:
    """How many heads there are, or which activation, no tensor tells."""
    kwargs = {**PICO_ARGS, "num_heads": 4, "qk_norm": False, "drop_path_rate": 0.1}
    heads, norm = planned(None, {"arch": PICO_MODEL, "args": {"model_kwargs": kwargs}}).images.doubts
    assert "num_heads: 4, receiver.model_args says 2" in heads and "qk_norm: False" in norm and "not say" in norm
    full = {**PICO_ARGS, "img_size": [32, 32], "in_chans": 3, "num_classes": 10}
    assert planned({**CONFIG, "model_args": full}).images.doubts == ()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"input_size": 9}, "9 x 9, and"),
        ({"resize": 7}, "cannot be cropped"),
        ({"resize": [9, 10]}, "cannot be cropped"),
        ({"resize": 12, "crop_pct": 0.9}, "one or the other"),
        ({"resize": [12, 12, 12]}, r"\[height, width\]"),
        ({"resize": 0}, "a number of pixels"),
        ({"input_size": "9"}, "a number of pixels"),
        ({"mean": [123.7, 116.3, 103.5]}, "divide by 255"),
        ({"mean": [0.5, 0.5]}, "one a channel"),
        ({"std": 0}, "above 0"),
        ({"std": [0.5, True, 0.5]}, "one a channel"),
    ],
)
def test_values_that_cannot_be(planned: Callable[..., Plan], fields: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        planned(**fields)
    assert words.replace("\\", "") in f"{caught.value.message} {caught.value.hint}"


def test_one_number_stands_for_every_channel(planned: Callable[..., Plan]) -> None:
    config = planned(mean=0.5, std=[0.25]).images.config
    assert (config["mean"], config["std"]) == ((0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize("resize", [224, 225, 233, 248, 256, 288, 341, [224, 224], [256, 256], [299, 299]])
def test_resize_is_a_share_that_timm_takes_too(resize: Any, pico_recipe: Callable[..., Path]) -> None:
    """A number is the shorter side, two are height and width, as timm resizes with the crop_pct that is found."""
    fields = {"resize": resize, "input_size": 224}
    recipe = load_recipe(pico_recipe(receiver__preprocessing=fields, receiver__model=DYNAMIC, receiver__model_args={}))
    config = prepare_images(recipe, describe(DYNAMIC, 3, {}), ()).config
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8))
    transform = create_transform(**{name: value for name, value in config.items() if name != "interpolation_random"})
    wanted = resize if isinstance(resize, list) else [resize, int(resize * 400 / 300)]
    resized = transform.transforms[0](image)
    assert [resized.height, resized.width] == wanted
    prepared = ImagePreprocessor(config)
    np.testing.assert_allclose(prepared.normalised(prepared.pixels(image)), transform(image).numpy(), atol=1e-6)


def test_a_model_of_any_size_takes_the_size_that_is_said(pico_recipe: Callable[..., Path]) -> None:
    recipe = load_recipe(pico_recipe(receiver__preprocessing={"input_size": [64, 96]}, receiver__model=DYNAMIC))
    found = prepare_images(recipe, describe(DYNAMIC, 3, {}), ())
    assert found.config["input_size"] == (3, 64, 96) and found.origins["input_size"] == "the recipe"

"""Donor recipes: what they say, what they default to, and what is refused with its line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from qvec_deploy.donors.donor_recipe import DonorRecipe, load_donor_recipe
from qvec_deploy.donors.train_config import TrainConfig
from qvec_deploy.errors import RecipeError, StorageError
from qvec_deploy.tensors import Scheme

RECIPES = Path(__file__).parents[2] / "recipes"
MINIMAL = {
    "version": 1,
    "name": "one",
    "base": {"model": "vit_base_patch16_224", "checkpoint": "base.safetensors"},
    "task": {"dataset": "folder", "root": "images"},
}

Load = Callable[..., DonorRecipe]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Write the minimal recipe with changed blocks and load it."""

    def call(*overrides: str, **blocks: Any) -> DonorRecipe:
        path = tmp_path / "donor.yaml"
        path.write_text(yaml.safe_dump({**MINIMAL, **blocks}, sort_keys=False), encoding="utf-8")
        return load_donor_recipe(path, overrides)

    return call


def test_the_defaults_are_the_papers_on_the_grid_of_least_error(load: Load):
    recipe = load()
    assert recipe.scheme.scheme() == Scheme(3, "channel", method="mse")
    assert recipe.skip == ("head",)
    assert recipe.hyper(50_000) == TrainConfig(
        steps=2000,
        batch_size=128,
        lr=1e-5,
        head_lr=1e-5,
        weight_decay=0.1,
        warmup=0.25,
        clip_norm=1.0,
        clip_every=50,
        decay_all=True,
    )
    assert recipe.train.augment == "timm"


@pytest.mark.parametrize("steps", [501, 2000, 9971, 12347])
def test_the_warm_up_lasts_as_many_steps_as_it_says(load: Load, steps: int):
    hyper = load(train={"steps": steps}).hyper(1000)
    assert round(hyper.steps * hyper.warmup) == 500


def test_epochs_count_whole_batches(load: Load):
    assert load(train={"epochs": 3, "batch_size": 10, "warmup_steps": 0}).hyper(48).steps == 12


def test_paths_are_relative_to_the_recipe(load: Load, tmp_path: Path):
    assert load().locate("images") == str(tmp_path / "images")
    assert load().locate("hf://org/repo/base.safetensors") == "hf://org/repo/base.safetensors"


def test_a_field_is_changed_from_the_command_line(load: Load):
    recipe = load("train.lr=2.0e-4", "scheme.granularity=tensor", "task.val=null")
    assert (recipe.train.lr, recipe.scheme.granularity, recipe.task.val) == (2e-4, "tensor", None)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("donor_*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_that_come_with_it(path: Path):
    recipe = load_donor_recipe(path)
    assert recipe.name == path.stem
    assert recipe.scheme.method == "mse"
    assert recipe.hyper(4000).steps in (600, 2000)


def test_the_tiny_recipe_trains_as_the_demos_donors_did():
    recipe = load_donor_recipe(RECIPES / "donor_tiny.yaml")
    assert recipe.hyper(4000) == TrainConfig()


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"base": {"model": "vit"}}, "base: give `checkpoint`, or `pretrained: true`"),
        ({"base": {"model": "vit", "checkpoint": "x", "pretrained": True}}, "one of the two"),
        ({"task": {"dataset": "folder", "train": "val"}}, "`train` and `val` are both `val`"),
        ({"scheme": {"bits": 9}}, "scheme.bits"),
        ({"scheme": {"granularity": "group"}}, "granularity `group` with group_size 0"),
        ({"scheme": {"clip": 0.9}}, "method `mse` searches the clip ratio itself"),
        ({"train": {"epochs": 2, "steps": 2}}, "give `epochs` or `steps`, not both"),
        ({"train": {"batch_size": 10, "accumulate": 3}}, "accumulate 3 does not divide batch_size 10"),
        ({"train": {"precision": "bf16"}}, "precision `bf16` is for `device: cuda`"),
        ({"train": {"lr": 0.0}}, "train.lr"),
        ({"train": {"lr": -1e-4}}, "train.lr"),
        ({"train": {"head_lr": 0.0}}, "train.head_lr"),
        ({"train": {"clip_norm": 0.0}}, "train.clip_norm"),
        ({"train": {"steps": 0}}, "train.steps"),
        ({"train": {"batch_size": 0}}, "train.batch_size"),
        ({"train": {"weight_decay": -0.1}}, "train.weight_decay"),
        ({"train": {"label_smoothing": 1.0}}, "train.label_smoothing"),
        ({"train": {"warmup_steps": -1}}, "train.warmup_steps"),
        ({"scheme": {"clip_every": 0}}, "scheme.clip_every"),
        ({"train": {"lr": "fast"}}, "train.lr"),
        ({"version": 2}, "version"),
        ({"name": "a/b"}, "name"),
    ],
)
def test_values_that_cannot_be(load: Load, blocks: dict[str, Any], message: str):
    with pytest.raises(RecipeError) as caught:
        load(**blocks)
    assert message in caught.value.message


def test_an_unknown_field_is_named_with_its_line_and_the_nearest(load: Load):
    with pytest.raises(RecipeError) as caught:
        load(train={"stesp": 5})
    assert caught.value.message.endswith("donor.yaml:10: train.stesp: no such field")
    assert caught.value.hint == "did you mean `steps`?"


def test_a_missing_block_is_named(load: Load, tmp_path: Path):
    path = tmp_path / "short.yaml"
    path.write_text("version: 1\nname: x\ntask: {dataset: tiny/lower}\n")
    with pytest.raises(RecipeError, match="base: this field is needed"):
        load_donor_recipe(path)


@pytest.mark.parametrize(
    ("override", "message"),
    [("train.lr", "has no value"), ("train.lr=[", "not valid YAML"), ("train.learning=1", "--set train.learning=1: ")],
)
def test_overrides_that_cannot_be(load: Load, override: str, message: str):
    with pytest.raises(RecipeError) as caught:
        load(override)
    assert message in caught.value.message


def test_a_warm_up_longer_than_the_training(load: Load):
    with pytest.raises(RecipeError, match="400 steps with 500 steps of warm-up"):
        load(train={"steps": 400}).hyper(1000)


def test_too_few_images_for_a_batch(load: Load):
    with pytest.raises(RecipeError, match="folder has 127 images and a batch is 128"):
        load().hyper(127)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\xfe\x00", "not UTF-8"), (b"[1]", "is not a recipe"), (b"a: 1\n" * 300_000, "too large")],
)
def test_files_that_are_no_recipe(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "donor.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=message):
        load_donor_recipe(path)


def test_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(StorageError, match="does not exist"):
        load_donor_recipe(tmp_path / "none.yaml")


def test_a_date_is_no_plain_value(load: Load):
    with pytest.raises(RecipeError, match="not plain YAML"):
        load("name=2024-01-01")

"""Whose names the classes of a head have: the recipe's, the checkpoint's, or those of the config.json beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qvec_deploy.errors import RecipeError, StorageError
from qvec_deploy.io.model_config import ModelConfig
from qvec_deploy.recipe import load_recipe
from qvec_deploy.recipe.class_names import ClassNames, name_classes, read_names

Write = Callable[..., Path]
ABC = ("a", "b", "c")


def names(pico_recipe: Write, classes: Any, *configs: ModelConfig, count: int = 3) -> ClassNames:
    path = pico_recipe()
    recipe = load_recipe(path, [f"receiver.classes={json.dumps(classes)}"] if classes is not None else [])
    return name_classes(recipe, count, configs)


def test_a_list_in_the_recipe(pico_recipe: Write) -> None:
    assert names(pico_recipe, ["a", "b", "c"]) == ClassNames(ABC, "the recipe")
    assert names(pico_recipe, [0, 7, "03"]).names == ("0", "7", "03")


def test_the_recipe_goes_before_the_checkpoint_and_that_before_its_config(pico_recipe: Write) -> None:
    configs = [ModelConfig("best.pt", class_names=("x", "y", "z")), ModelConfig("config.json", class_names=ABC)]
    assert names(pico_recipe, ["d", "e", "f"], *configs).source == "the recipe"
    assert names(pico_recipe, None, *configs) == ClassNames(("x", "y", "z"), "best.pt")
    assert names(pico_recipe, None, configs[1]) == ClassNames(ABC, "config.json")
    assert names(pico_recipe, None) == ClassNames()


def test_names_that_do_not_fit_the_head_are_not_taken_from_a_checkpoint(pico_recipe: Write) -> None:
    configs = [ModelConfig("best.pt", class_names=("x", "y")), ModelConfig("config.json", class_names=("a", "b", "a"))]
    found = names(pico_recipe, None, *configs)
    assert found.names == () and found.doubts == (
        "best.pt has 2 names, the head 3 outputs: its names are not used",
        "config.json has the name `a` 2 times: its names are not used",
    )
    placeholders = ModelConfig("config.json", class_names=("LABEL_0", "LABEL_1", "LABEL_2"))
    assert names(pico_recipe, None, placeholders) == ClassNames()


def test_what_a_checkpoint_says_in_vain_is_told(pico_recipe: Write) -> None:
    (doubt,) = names(pico_recipe, None, ModelConfig("best.pt", unread="has class_to_idx without label 0")).doubts
    assert doubt.startswith("best.pt has class_to_idx without label 0") and "receiver.classes" in doubt


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["a", "b"], "receiver.classes has 2 names, the head 3 outputs"),
        (["a", "b", "a"], "receiver.classes has the name `a` 2 times"),
        (["a", " ", "c"], "receiver.classes has an empty name for class 1"),
        (["a", True, "c"], "True is no name: put it in quotes"),
        ([1.5, "b", "c"], "1.5 is no name"),
        ([], "give a list of names, or a file of them"),
        ({"0": "a"}, "give a list of names, or a file of them"),
    ],
)
def test_lists_that_are_no_names_are_refused(pico_recipe: Write, classes: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        names(pico_recipe, classes)


FILES = {
    "a\nb\nc\n": "lines",
    "\ufeffa\r\nb \r\nc": "lines of Windows",
    "c 2\na 0\nb 1\n": "timm's class map with labels",
    "a\t0\nb,1\nc 2": "other separators",
    "1 b\n0,a\n2: c\n": "labels first",
    '["a", "b", "c"]': "a list",
    '{"0": "a", "2": "c", "1": "b"}': "names by label",
    '{"c": 2, "a": 0, "b": 1}': "labels by name",
    '{"model_type": "vit", "id2label": {"0": "a", "1": "b", "2": "c"}}': "a config of Transformers",
    '{"architecture": "vit_tiny_patch16_224", "label_names": ["a", "b", "c"]}': "a config of timm",
}


@pytest.mark.parametrize("text", FILES, ids=FILES.values())
def test_files_of_names(pico_recipe: Write, text: str) -> None:
    path = pico_recipe()
    (path.parent / "names.txt").write_text(text, encoding="utf-8")
    assert names(pico_recipe, "names.txt") == ClassNames(ABC, "names.txt")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("class 0\nclass 1\n", ("class 0", "class 1")),  # names that end with a number
        ("n01 tench, Tinca\nn02 goldfish\n", ("n01 tench, Tinca", "n02 goldfish")),
        ('{"10": 2, "0": 0, "9": 1}', ("0", "9", "10")),  # names that are numbers, as torchvision's class_to_idx
        ("0\n1\n10\n2\n", ("0", "1", "10", "2")),
        ("a\n\nc\n", ("a", "", "c")),
    ],
)
def test_what_could_be_read_in_two_ways(tmp_path: Path, text: str, expected: tuple[str, ...]) -> None:
    (tmp_path / "names.txt").write_text(text)
    assert read_names(tmp_path / "names.txt") == expected


@pytest.mark.parametrize(
    "text", ['{"0": "a", "2": "b"}', "[1, 2]", '["a"', "{}", "[]", '{"a": {"b": 1}}', '{"0": ["n01", "tench"]}']
)
def test_json_that_names_no_classes_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "names.json").write_text(text)
    with pytest.raises(RecipeError, match=r"names\.json (names no classes|is damaged: not JSON)"):
        read_names(tmp_path / "names.json")


def test_other_files_are_refused(pico_recipe: Write, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nowhere"):
        names(pico_recipe, "nowhere.txt")
    (tmp_path / "names.txt").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(RecipeError, match="is not UTF-8 text"):
        read_names(tmp_path / "names.txt")
    (tmp_path / "names.txt").write_text("")
    with pytest.raises(RecipeError, match="has 0 names, the head 3 outputs"):
        names(pico_recipe, str(tmp_path / "names.txt"))


def test_a_file_that_is_too_long_is_refused_and_not_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("name\n" * (4 << 20))
    with pytest.raises(RecipeError, match=r"classes\.txt is damaged: it has more than"):
        read_names(path)

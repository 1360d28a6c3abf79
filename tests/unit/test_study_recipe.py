"""Study recipes: what is written short, what presets mean, what is refused, and that every field is documented."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
import yaml
from pydantic import BaseModel
from study_recipes import VALUES, hub_study, write_study

from qvec_deploy.errors import RecipeError, StorageError
from qvec_deploy.research.study.presets import BACKBONES, PAPER_TASKS
from qvec_deploy.research.study.study_recipe import StudyRecipe, grid_name, load_study, study_schema
from qvec_deploy.tensors import Scheme

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"


def test_the_bundled_study_is_what_it_says() -> None:
    path = RECIPES / "study_tiny.yaml"
    recipe = load_study(path)
    jsonschema.validate(yaml.safe_load(path.read_text(encoding="utf-8")), study_schema())
    assert recipe.name == path.stem and f"`{path.name}`" in (RECIPES / "STUDY.md").read_text(encoding="utf-8")
    assert len(recipe.tasks.all()) == 6 and recipe.seeds == (1, 2, 3, 4, 5)
    assert [grid_name(grid) for grid in recipe.grids] == ["3bit_tensor_mse", "2bit_channel_mse"]
    assert len(recipe.controls) == 4


def test_what_is_written_short(tmp_path: Path) -> None:
    tasks = [{"name": "a", "dataset": "tiny/lower"}, {"name": "b", "dataset": "tiny/upper"}]
    recipe = load_study(write_study(tmp_path, tasks=tasks, seeds=3), ["lambdas=[0.5]"])
    assert [task.name for task in recipe.tasks.all()] == ["a", "b"]
    assert recipe.seeds == (1, 2, 3)
    assert recipe.all_lambdas == (0.0, 0.5, 1.0)
    assert load_study(write_study(tmp_path, seeds=[7, 9])).seeds == (7, 9)


def test_models_by_preset_and_by_name(tmp_path: Path) -> None:
    models: list[Any] = [{"preset": name} for name in BACKBONES]
    recipe = load_study(write_study(tmp_path, models=[*models, {"timm": "vit_small_patch16_224.augreg_in21k"}]))
    assert [model.timm for model in recipe.models[:7]] == list(BACKBONES.values())
    assert recipe.models[0].name == "vit_b" and recipe.models[7].name == "vit_small_patch16_224.augreg_in21k"
    base = recipe.base_of(recipe.models[0])
    assert base is not None and base.pretrained


def test_the_papers_tasks(tmp_path: Path) -> None:
    folder = load_study(write_study(tmp_path, tasks={"preset": "paper22", "root": "images"})).tasks.all()
    assert [task.name for task in folder] == list(PAPER_TASKS) and len(folder) == 22
    assert folder[0].root == "images/Cars" and (folder[0].classes, folder[0].epochs) == (196, 35)
    assert {task.dataset for task in folder} == {"folder"}
    hub = load_study(write_study(tmp_path, tasks={"preset": "paper22", "only": ["DTD", "Food101"]})).tasks.all()
    assert [(task.dataset, task.selecting_split, task.testing_split) for task in hub] == [
        ("hfds/tanganke/dtd", "train", "test"),
        ("hfds/ethz/food101", "train", "val"),
    ]


def test_a_presets_epochs_are_for_those_who_say_nothing(tmp_path: Path) -> None:
    paper = {"preset": "paper22", "only": ["DTD", "Food101"]}
    own = [{"name": name, "dataset": "tiny/lower", "epochs": 7} for name in "ab"]

    def trained(tasks: Any, **changes: Any) -> list[tuple[Any, Any]]:
        recipe = load_study(write_study(tmp_path, tasks=tasks, train=changes))
        assert load_study(_written(tmp_path / "again.yaml", recipe)).as_dict() == recipe.as_dict()
        return [(train["epochs"], train["steps"]) for train in map(recipe.train_of, recipe.tasks.all())]

    assert trained(paper) == [(76, None), (4, None)]
    assert trained(paper, steps=9) == [(None, 9)] * 2
    assert trained(paper, epochs=3) == [(3, None)] * 2
    assert trained(own, steps=9) == [(7, None)] * 2  # a task's own word is nearer than that of all


def _written(path: Path, recipe: StudyRecipe) -> Path:
    path.write_text(yaml.safe_dump(recipe.as_dict()), encoding="utf-8")
    return path


def test_released_fine_tunes_have_their_seed_and_no_base_unless_it_is_given(tmp_path: Path) -> None:
    recipe = load_study(hub_study(tmp_path, tmp_path / "hub"))
    assert recipe.seeds == (2038,)
    assert recipe.base_of(recipe.models[0]) is None


def test_the_resolved_recipe_reads_back_from_anywhere(tmp_path: Path) -> None:
    tasks = {"list": [{"name": name, "dataset": "folder", "root": f"images/{name}"} for name in "ab"]}
    models = [{**VALUES["models"][0], "base": {"checkpoint": "base.safetensors"}}]
    recipe = load_study(write_study(tmp_path / "one", tasks=tasks, models=models, seeds=2))
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(recipe.as_dict()), encoding="utf-8")
    again = load_study(other)
    assert again.as_dict() == recipe.as_dict()
    assert again.tasks.all()[0].root == str(tmp_path / "one" / "images" / "a")
    assert again.models[0].base is not None
    assert again.models[0].base.checkpoint == str(tmp_path / "one" / "base.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": [{"name": "x"}]}, "give `timm`"),
        ({"models": [{"preset": "vit_b", "timm": "vit_small_patch16_224"}]}, "give `preset` or `timm`"),
        ({"models": [VALUES["models"][0]] * 2}, "two models have one name"),
        ({"models": [{"timm": "vit_small_patch16_224", "base": {"pretrained": True, "train": {}}}]}, "give one of"),
        ({"tasks": {"preset": "tiny", "only": ["lowre", "upper"]}}, "has no task `lowre`"),
        ({"tasks": {"preset": "tiny", "only": ["upper"]}}, "at least two tasks"),
        ({"tasks": {"preset": "tiny", "root": "images"}}, "`root` is where"),
        ({"tasks": {"only": ["upper"]}}, "give `preset` or `list`"),
        (
            {"tasks": {"preset": "paper22", "only": ["DTD", "SVHN"]}},
            "SVHN cannot be taken from hfds/ufldl-stanford/svhn",
        ),
        ({"tasks": {"preset": "paper22", "only": ["DTD", "EMNIST"]}}, "the paper turned its images by -90 degrees"),
        ({"tasks": [{"name": "a", "dataset": "x", "selecting_split": "test"}] * 2}, "both chooses and judges"),
        ({"tasks": [{"name": name, "dataset": "x"} for name in "aba"]}, "two tasks have the name `a`"),
        ({"tasks": {"preset": "tiny", "only": ["upper", "lower", "upper"]}}, "two tasks have the name `upper`"),
        ({"seeds": 0}, "seeds: give a number from 1 to 1,000, or a list"),
        ({"seeds": 1 << 64}, "seeds: give a number from 1 to 1,000, or a list"),
        ({"seeds": True}, "seeds: give a number from 1 to 1,000, or a list"),
        ({"seeds": []}, "seeds: give a number from 1 to 1,000, or a list"),
        ({"lambdas": ["a"]}, "lambdas.0: Input should be a valid number"),
        ({"lambdas": []}, "lambdas: at least one is needed"),
        ({"models": []}, "models: at least one is needed"),
        ({"seeds": [1, 1]}, "named twice"),
        ({"grids": [{"bits": 3}, {"bits": 3}]}, "grids: the grid `3bit_channel_mse` is named twice"),
        ({"grids": [{"bits": 9}]}, "grids.0.bits"),
        ({"methods": ["gtpq"]}, "methods.0"),
        ({"inputs": ["moments"]}, "is for method `gptq`"),
        ({"train__seed": 4}, "the study's `seeds`"),
        ({"lambda": [1]}, "did you mean `lambdas`?"),
        ({"selecting": 4}, "selecting"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_refusals(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_study(write_study(tmp_path, **changes))
    assert message in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grids": [{"bits": 3, "method": "mse"}]}, "method `rtn`"),
        ({"controls": ["task_vector"]}, "needs the base"),
        ({"models": [{**VALUES["models"][0]}]}, "a base trained here"),
        ({"models": [{"timm": "vit_small_patch16_224", "skip": ["head", "fc1"]}]}, "one `skip` name"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_released_fine_tunes_cannot_be_asked_for(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_study(hub_study(tmp_path, tmp_path / "hub", **changes))


@pytest.mark.parametrize(
    "changes", [{"lambdas": ["a"]}, {"lambdas": []}, {"grids": [{"bits": 9}]}, {"seeds": 0}, {"seeds": "x"}]
)
def test_a_wrong_list_is_one_error(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(RecipeError) as caught:
        load_study(write_study(tmp_path, **changes))
    assert len(caught.value.message.splitlines()) == 1 and "Tuple" not in caught.value.message


def test_a_recipe_that_is_not_there_is_looked_for_from_here(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"gone\.yaml does not exist") as caught:
        load_study(tmp_path / "gone.yaml")
    assert caught.value.hint == "check the path"


def test_names_of_grids() -> None:
    assert grid_name(Scheme(2, "channel", clip=0.65)) == "2bit_channel_rtn_clip0.65"
    assert grid_name(Scheme(4, "group", group_size=64)) == "4bit_group64_rtn"


def _blocks(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _blocks(inner)


def _fields(block: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, info in block.model_fields.items():
        inner = list(_blocks(info.annotation))
        yield from _fields(inner[0], f"{prefix}{name}.") if inner else [f"{prefix}{name}"]


def test_every_field_is_documented_and_no_other() -> None:
    text = (RECIPES / "STUDY.md").read_text(encoding="utf-8")
    documented = {name for name in re.findall(r"^\| `([a-z0-9_.]+)` \|", text, re.MULTILINE) if ".yaml" not in name}
    fields = set(_fields(StudyRecipe))
    assert {name for name in fields if not name.startswith("train.")} <= documented
    groups = {field.rsplit(".", depth)[0] for field in fields for depth in range(1, field.count(".") + 1)}
    assert documented <= fields | groups


def test_the_schema_describes_every_field_and_refuses_what_the_loader_refuses() -> None:
    schema = study_schema()
    for block in (schema, *schema["$defs"].values()):
        for name, entry in block["properties"].items():
            assert "description" in entry or "$ref" in entry, name
    jsonschema.validate(json.loads(json.dumps(VALUES)), schema)
    for change in ({"lambda": [1]}, {"version": 2}, {"seeds": 0}, {"tasks": "tiny"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(VALUES | change, schema)

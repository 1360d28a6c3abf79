"""What the documents say about recipes is true, and complete."""

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

from qvec_deploy.donors.donor_recipe import DonorRecipe, load_donor_recipe
from qvec_deploy.recipe import Recipe, load_recipe, recipe_schema
from qvec_deploy.research.study.study_recipe import StudyRecipe, load_study

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"


def _blocks(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _blocks(inner)


def _fields(block: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, info in block.model_fields.items():
        dotted = prefix + (info.alias or name)
        inner = list(_blocks(info.annotation))
        if inner:
            yield from _fields(inner[0], f"{dotted}.")
        else:
            yield dotted


def _documented(text: str) -> set[str]:
    names = set(re.findall(r"^\| `([a-z0-9_.]+)` \|", text, re.MULTILINE))
    return {name for name in names if not name.endswith(".yaml")}


@pytest.mark.parametrize(("recipe", "chapter"), [(Recipe, 0), (DonorRecipe, 1), (StudyRecipe, 2)])
def test_every_field_is_documented_and_no_other(recipe: type[BaseModel], chapter: int) -> None:
    text = (RECIPES / "README.md").read_text(encoding="utf-8") + (RECIPES / "STUDY.md").read_text(encoding="utf-8")
    chapters = [_documented(part) for part in re.split("\n## (?:Donors|Studies)\n", text)]
    documented = chapters[chapter]
    if recipe is StudyRecipe:  # its fine-tunes are a donor's
        documented |= {name for name in chapters[1] if name.startswith("train.")}
    fields = set(_fields(recipe))
    assert fields <= documented, fields - documented
    groups = {field.rsplit(".", depth)[0] for field in fields for depth in range(1, field.count(".") + 1)}
    assert documented <= fields | groups, documented - fields - groups


def test_every_field_has_a_description() -> None:
    def check(node: Any) -> None:
        for name, entry in node.get("properties", {}).items():
            assert "description" in entry or "$ref" in entry, name
        for inner in node.get("$defs", {}).values():
            check(inner)

    check(recipe_schema())


@pytest.mark.parametrize("path", [RECIPES / "recipe.schema.json", ROOT / "qvec_deploy" / "recipe.schema.json"])
def test_published_schemas_are_current(path: Path) -> None:
    assert json.loads(path.read_text(encoding="utf-8")) == recipe_schema(), "qvec-deploy schema > the file"


@pytest.mark.parametrize(
    "path", sorted(RECIPES.glob("[!ds]*.yaml")) + sorted(RECIPES.glob("demo*.yaml")), ids=lambda p: p.name
)
def test_recipes(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.splitlines()[0] == "# yaml-language-server: $schema=recipe.schema.json"
    jsonschema.validate(yaml.safe_load(text), recipe_schema())
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert f"`{path.name}`" in (RECIPES / "README.md").read_text(encoding="utf-8")
    own = "gptaq_patched" if recipe.select is not None else path.stem  # methods compete under their own names
    assert recipe.candidates()[-1].name == own


def test_the_schema_refuses_what_the_loader_refuses() -> None:
    values = yaml.safe_load((RECIPES / "demo_3bit.yaml").read_text(encoding="utf-8"))
    for change in ({"quantise": {}}, {"lambda": "one"}, {"version": 2}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(values | change, recipe_schema())


@pytest.mark.parametrize("path", sorted(RECIPES.glob("donor*.yaml")), ids=lambda path: path.name)
def test_donor_recipes(path: Path) -> None:
    assert load_donor_recipe(path).name == path.stem
    assert f"`{path.name}`" in (RECIPES / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("study*.yaml")), ids=lambda path: path.name)
def test_study_recipes(path: Path) -> None:
    assert load_study(path).name == path.stem
    assert f"`{path.name}`" in (RECIPES / "STUDY.md").read_text(encoding="utf-8")


def test_the_map_names_files_that_are_there() -> None:
    text = (ROOT / "qvec_deploy" / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z_./]+(?:/|\.py|\.html|\.md))`", text)) | set(re.findall(r"\]\(([^)]+)\)", text))
    missing = [name for name in named if not (ROOT / name).exists() and not (ROOT / "qvec_deploy" / name).exists()]
    within = {path.name for path in (ROOT / "qvec_deploy").rglob("*") if path.suffix in (".py", ".html")}
    folders = {f"{path.name}/" for path in (ROOT / "qvec_deploy").rglob("*") if path.is_dir()}
    assert not [name for name in missing if name not in within | folders], missing
    packages = {path.name for path in (ROOT / "qvec_deploy").iterdir() if path.is_dir() and "__" not in path.name}
    assert all(f"`{name}/`" in text for name in packages)

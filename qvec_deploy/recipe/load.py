"""A recipe from its file, and the schema of such files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qvec_deploy.errors import QvecError, RecipeError
from qvec_deploy.io.untrusted import read_json
from qvec_deploy.recipe.matrix import expand
from qvec_deploy.recipe.reading import read_values
from qvec_deploy.recipe.recipe import Recipe, validate


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe of one build.

    Args:
        overrides: `a.b=value` strings; values are YAML.

    Raises:
        StorageError: The file is missing or unreadable.
        RecipeError: Not YAML, unknown keys, wrong types, impossible values; with field, line and nearest name. Or it
            has a `matrix` and stands for several builds.
    """
    recipes = load_recipes(path, overrides)
    if len(recipes) > 1:
        raise RecipeError(
            f"{path}: its matrix makes {len(recipes)} recipes, and one is wanted here",
            hint="`build` and `plan` take all of them; elsewhere use a recipe without `matrix`, or --set matrix={}",
        )
    return recipes[0]


def load_recipes(path: Path, overrides: Sequence[str] = ()) -> tuple[Recipe, ...]:
    """Read a recipe, or all that its `matrix` makes.

    Raises:
        RecipeError: As `load_recipe`; the message names the combination that cannot be.
    """
    values, places = read_values(path, overrides, what="recipe")
    recipes = []
    for differs, made in expand(values, str(path), places):
        try:
            recipes.append(validate(made, _starts_from(path), str(path), places))
        except RecipeError as error:
            if differs is None:
                raise
            raise RecipeError(f"{error.message} (in the matrix: {differs})", hint=error.hint) from error
    names = [recipe.name for recipe in recipes]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RecipeError(f"{path}: its matrix makes two recipes called {twice}", hint="use other values")
    return tuple(recipes)


def _starts_from(path: Path) -> Path:
    """What relative paths start from: the recipe's folder, or in a bundle that of the recipe that it was built from.

    A manifest names that folder; where it is not there, and in releases, which name none, it is the bundle.
    """
    try:
        named = read_json(path.parent / "manifest.json")["recipe_folder"]
        return Path(named) if Path(named).is_dir() else path.parent
    except (OSError, ValueError, KeyError, TypeError, QvecError):
        return path.parent


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of recipe files."""
    schema = Recipe.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "qvec-deploy recipe"}

"""A recipe from its file, and the schema of such files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qvec_deploy.recipe.reading import read_values
from qvec_deploy.recipe.recipe import Recipe, validate


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: The YAML file.
        overrides: `a.b=value` strings; values are YAML.

    Raises:
        StorageError: The file is missing or unreadable.
        RecipeError: Not YAML, unknown keys, wrong types, impossible values; with field, line and nearest name.
    """
    values, places = read_values(path, overrides, what="recipe")
    return validate(values, path.parent, str(path), places)


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of recipe files."""
    schema = Recipe.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "qvec-deploy recipe"}

"""YAML to Recipe: a file, and what the command line changes in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from qvec_deploy.errors import RecipeError
from qvec_deploy.recipe.recipe import Recipe, assign, validate
from qvec_deploy.store import require_file, storage_errors
from qvec_deploy.yamltext import NOT_YAML, Place, parse_yaml

_MAX_BYTES = 1 << 20


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: The YAML file.
        overrides: `a.b=value` strings; values are YAML.

    Raises:
        StorageError: The file is missing or unreadable.
        RecipeError: Not YAML, unknown keys, wrong types, impossible values; with field, line and nearest name.
    """
    require_file(path, what="recipe")
    with storage_errors(path), path.open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise RecipeError(f"{path} is too large", hint="a recipe is a short YAML file; is this another file?")
    try:
        values, places = parse_yaml(data.decode("utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 text", hint="a recipe is a YAML file") from error
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise RecipeError(f"--set {override} has no value", hint="write --set field.name=value")
        try:
            assign(values, key, yaml.safe_load(text))
        except NOT_YAML as error:
            raise RecipeError(f"--set {override}: the value is not YAML", hint="quote it") from error
        field: Place = tuple(key.split("."))
        places = {place: at for place, at in places.items() if place[: len(field)] != field}
        places[field] = f"--set {override}"
    return validate(values, path.parent, str(path), places)


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of recipe files."""
    schema = Recipe.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "qvec-deploy recipe"}

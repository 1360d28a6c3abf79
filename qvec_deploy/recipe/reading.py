"""A YAML file to plain values, and plain values to a block: every refusal has its field, line and nearest name."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from qvec_deploy.errors import RecipeError
from qvec_deploy.io.files import require_file, storage_errors
from qvec_deploy.io.yaml import Place, parse_yaml, parse_yaml_value

Places = Mapping[Place, str]
Model = TypeVar("Model", bound=BaseModel)

_MAX_BYTES = 1 << 20


def read_values(path: Path, overrides: Sequence[str], *, what: str) -> tuple[dict[str, Any], Places]:
    """The values of a YAML file, and where each stands."""
    require_file(path, what=what)
    with storage_errors(path), path.open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise RecipeError(f"{path} is too large", hint=f"a {what} is a short YAML file; is this another file?")
    try:
        values, places = parse_yaml(data.decode("utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 text", hint=f"a {what} is a YAML file") from error
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise RecipeError(f"--set {override} has no value", hint="write --set field.name=value")
        assign(values, key, parse_yaml_value(text, f"--set {override}"))
        field: Place = tuple(key.split("."))
        places = {place: at for place, at in places.items() if place[: len(field)] != field}
        places[field] = f"--set {override}"
    return values, places


def parse(block: type[Model], values: Any, where: str, places: Places) -> Model:
    """Plain values as a block."""
    try:
        return block.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise _explain(block, error, where, places) from error
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{where}: a value is not plain YAML: {error}", hint="quote dates and times") from error


def assign(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key, creating blocks on the way; whether the names exist is for validation to say."""
    *parents, last = key.split(".")
    for parent in parents:
        inner = values.get(parent)
        if not isinstance(inner, dict):
            inner = values[parent] = {}
        values = inner
    values[last] = value


def _explain(block: type[BaseModel], error: ValidationError, where: str, places: Mapping[Place, str]) -> RecipeError:
    messages, hints = [], []
    for problem in error.errors(include_url=False):
        path = tuple(problem["loc"])
        known = max((length for length in range(len(path) + 1) if path[:length] in places), default=0)
        at = places[path[:known]] if known else where
        field = ".".join(str(part) for part in path) or "recipe"
        text = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            text = "no such field"
            near = difflib.get_close_matches(str(path[-1]), _fields(block, path[:-1]), n=1)
            hints += [f"did you mean `{near[0]}`?"] if near else []
        elif problem["type"] == "missing":
            text = "this field is needed"
        messages.append(f"{at}: {field}: {text}")
    return RecipeError("\n".join(messages), hint=" ".join(hints) or "recipes/README.md describes every field")


def _fields(root: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """YAML names of the fields of the block at `path`."""
    block: Any = root
    for part in path:
        if isinstance(part, str):
            names = {info.alias or name: info.annotation for name, info in block.model_fields.items()}
            block = _block_of(names.get(part))
        if block is None:
            return []
    return [info.alias or name for name, info in block.model_fields.items()]


def _block_of(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_block_of, getattr(annotation, "__args__", ()))), None)

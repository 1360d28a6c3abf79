"""One recipe file for many builds: every combination of the values of `matrix` is a recipe of its own."""

from __future__ import annotations

import copy
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import Field

from qvec_deploy.errors import RecipeError
from qvec_deploy.recipe.blocks import Block
from qvec_deploy.recipe.reading import Places, assign, parse

WHOLE = ("version", "name", "matrix", "variants")
"""Fields that a matrix cannot vary."""

_MAX_BUILDS = 1000
_MAX_NAME = 200  # a folder's name ends at 255 bytes, and staging folders add to it

_WHOLE_BELOW = 1e16  # where Python itself turns to exponents

Matrix = dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]]


class _Holder(Block):
    matrix: Matrix


def expand(values: Mapping[str, Any], where: str, places: Places) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """The recipes that a recipe's values stand for.

    Args:
        values: Fields under their YAML names, with or without a `matrix`.

    Yields:
        What differs, in words, and the values without matrix, under a name of their own; None and the values
        themselves where there is no matrix.
    """
    if values.get("matrix") in (None, {}):
        yield None, {key: value for key, value in values.items() if key != "matrix"}
        return
    matrix = parse(_Holder, {"matrix": values["matrix"]}, where, places).matrix
    at = places.get(("matrix",), where)
    _check_fields(list(matrix), at, places)
    count = math.prod(len(choices) for choices in matrix.values())
    if count > _MAX_BUILDS:
        raise RecipeError(f"{at}: matrix: {count:,} builds", hint=f"{_MAX_BUILDS} are the most; leave some values out")
    labels = {field: _labels(field, list(matrix), choices, at) for field, choices in matrix.items()}
    for picks in itertools.product(*(range(len(choices)) for choices in matrix.values())):
        made = copy.deepcopy({key: value for key, value in values.items() if key != "matrix"})
        for (field, choices), pick in zip(matrix.items(), picks, strict=True):
            assign(made, field, copy.deepcopy(choices[pick]))
        parts = [labels[field][pick] for field, pick in zip(matrix, picks, strict=True)]
        made["name"] = "-".join([str(made.get("name")), *parts])
        if len(made["name"]) > _MAX_NAME:
            raise RecipeError(f"{at}: matrix: the name {made['name'][:60]}... is too long", hint="vary fewer fields")
        yield ", ".join(f"{field}={_word(matrix[field][p])}" for field, p in zip(matrix, picks, strict=True)), made


def _check_fields(fields: Sequence[str], at: str, places: Places) -> None:
    for field in fields:
        if any(f"{field}.".startswith(f"{whole}.") for whole in WHOLE):
            raise RecipeError(
                f"{at}: matrix: `{field}` belongs to the whole recipe", hint="vary fields of a single build"
            )
        inside = next((other for other in fields if field.startswith(f"{other}.")), None)
        if inside is not None:
            raise RecipeError(f"{at}: matrix: `{field}` lies in `{inside}`", hint="vary one of the two")
        override = places.get(tuple(field.split(".")), "")
        if override.startswith("--set "):
            raise RecipeError(f"{override}: the matrix gives `{field}`", hint="--set 'matrix={...}' replaces it")


def _labels(field: str, fields: Sequence[str], choices: Sequence[Any], at: str) -> list[str]:
    """What each value adds to the name: numbers behind the field's own, words alone, anything else counted."""
    if len({repr(choice) for choice in choices}) != len(choices):
        raise RecipeError(f"{at}: matrix: `{field}` has a value twice", hint="name every value once")
    last = field.rsplit(".", 1)[-1]
    key = last if sum(other.rsplit(".", 1)[-1] == last for other in fields) == 1 else field
    labels = [_label(key, choice) for choice in choices]
    if None in labels or len(set(labels)) != len(labels):
        return [f"{key}_no{number}" for number in range(1, len(choices) + 1)]
    return [str(label) for label in labels]


def _label(key: str, choice: Any) -> str | None:
    match choice:
        case None | bool():
            return f"{key}_{_word(choice)}"
        case int() | float():
            return f"{key}{_number(choice)}"
        case str() if re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]*", choice):
            return choice
        case str():
            stem = PurePosixPath(choice).stem
            return stem if re.fullmatch(r"[A-Za-z0-9_.-]+", stem) else None
        case [str(only)]:
            return _label(key, only)
    return None


def _number(choice: float) -> str:
    """All its digits, without what a name cannot have; 1.0 is 1."""
    if isinstance(choice, float) and choice.is_integer() and abs(choice) < _WHOLE_BELOW:
        choice = int(choice)
    return repr(choice).replace("+", "")


def _word(choice: Any) -> str:
    return choice if isinstance(choice, str) else json.dumps(choice)

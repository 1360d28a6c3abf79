"""The names of a receiver's classes, in the order of its head's outputs, and who says them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qvec_deploy.errors import RecipeError
from qvec_deploy.io.model_config import ModelConfig, named_classes, names_among
from qvec_deploy.io.untrusted import parse_json, read_limited, understood
from qvec_deploy.recipe.recipe import Recipe

_FIELD = "receiver.classes"
_MAX_FILE = 16 * 2**20
_PLACEHOLDER = re.compile(r"LABEL_\d+")
"""What Transformers writes where nobody has named the classes."""


@dataclass(frozen=True)
class ClassNames:
    """The names of a head's classes.

    Attributes:
        names: The name of every label; empty where nobody says them.
        source: Who says them: the recipe, or a file by its name.
        doubts: Names that were found and are not used, a sentence each.
    """

    names: tuple[str, ...] = ()
    source: str = ""
    doubts: tuple[str, ...] = ()


def name_classes(recipe: Recipe, count: int | None, configs: Sequence[ModelConfig]) -> ClassNames:
    """Take names from the recipe, else from the checkpoint, else from the config.json beside it.

    Args:
        count: Outputs of the head; None where the checkpoint is not there.
        configs: What `Checkpoint.configs` gives.

    Raises:
        RecipeError: The recipe's names are not as many as the head's outputs, or not all different.
        StorageError: The recipe's file of names cannot be read.
    """
    given = recipe.receiver.classes
    if given is not None:
        path = recipe.data_path(given) if isinstance(given, str) else None
        names = read_names(path) if path is not None else tuple(given)
        problem = _problem(names, count)
        if problem is not None:
            where = _FIELD if path is None else f"{_FIELD} ({path})"
            raise RecipeError(f"{where} {problem}", hint="give one name an output, in the order of the head's outputs")
        return ClassNames(names, "the recipe" if path is None else path.name)
    doubts: list[str] = []
    for config in configs:
        if config.unread:
            doubts.append(f"{config.source} {config.unread}: say which output is which class in receiver.classes")
        if not config.class_names or all(_PLACEHOLDER.fullmatch(name) for name in config.class_names):
            continue
        problem = _problem(config.class_names, count)
        if problem is None:
            return ClassNames(config.class_names, config.source, tuple(doubts))
        doubts.append(f"{config.source} {problem}: its names are not used")
    return ClassNames(doubts=tuple(doubts))


def read_names(path: Path) -> tuple[str, ...]:
    """Names of a file: JSON (a list, or a map to or from labels), or lines; a line may end or begin with its label.

    Raises:
        RecipeError: It is neither.
        StorageError: It cannot be read.
    """
    with understood(f"{_FIELD}: {path}", "give a text file, one name a line", RecipeError):
        data = read_limited(path, _MAX_FILE)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{_FIELD}: {path} is not UTF-8 text", hint="save it as UTF-8, one name a line") from error
    if path.suffix.lower() == ".json" or text.lstrip().startswith(("{", "[")):
        return _from_json(text, path)
    lines = [line.strip() for line in text.strip().splitlines()]
    return _with_labels(lines) or tuple(lines)


def _from_json(text: str, path: Path) -> tuple[str, ...]:
    hint = 'JSON of names is a list, {"0": "name"} or {"name": 0}, with labels 0, 1, 2 and so on'
    with understood(f"{_FIELD}: {path}", hint, RecipeError):
        value = parse_json(text)
    names = (names_among(value) if isinstance(value, dict) else ()) or named_classes(value)
    if not names:
        raise RecipeError(f"{_FIELD}: {path} names no classes", hint=hint)
    return names


def _with_labels(lines: Sequence[str]) -> tuple[str, ...]:
    """Names of lines that end or begin with their label, by label; none unless the labels are 0, 1, 2, and so on."""
    pairs = [re.split(r"[\s,]+(?=\d+$)", line) for line in lines]
    if not all(len(pair) == 2 for pair in pairs):
        found = [re.fullmatch(r"(\d+)[\s,:]+(.+)", line) for line in lines]
        pairs = [[each[2], each[1]] for each in found if each is not None]
    if len(pairs) < len(lines) or not all(len(pair) == 2 for pair in pairs):
        return ()
    by_label = {int(label): name for name, label in pairs}
    whole = len(by_label) == len(pairs) and set(by_label) == set(range(len(pairs)))
    return tuple(by_label[label] for label in range(len(pairs))) if whole and len(set(by_label.values())) > 1 else ()


def _problem(names: Sequence[str], count: int | None) -> str | None:
    """Why these cannot be the names of so many classes; None where they can."""
    empty = [label for label, name in enumerate(names) if not name.strip()]
    if empty:
        return f"has an empty name for class {empty[0]}"
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        return f"has the name `{twice[0]}` {Counter(names)[twice[0]]} times"
    if count is not None and len(names) != count:
        return f"has {len(names):,} names, the head {count:,} outputs"
    return None

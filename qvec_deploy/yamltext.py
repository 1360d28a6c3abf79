"""YAML text to plain values, with the place of every key for error messages."""

from __future__ import annotations

from typing import Any

import yaml

from qvec_deploy.errors import RecipeError

Place = tuple[str | int, ...]
NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)  # PyYAML leaks the last two: `2024-99-99`, 1000 brackets


def parse_yaml(text: str, where: str) -> tuple[dict[str, Any], dict[Place, str]]:
    """YAML text to plain values, and file and line of every key.

    Args:
        text: A mapping in YAML.
        where: Its file, for messages.

    Raises:
        RecipeError: Not YAML, no mapping, aliases (a few bytes of them grow without bound), or a key given twice.
    """
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise RecipeError(f"{where} uses YAML aliases", hint="write the values out")
        node = yaml.compose(text, yaml.SafeLoader)
        places: dict[Place, str] = {}
        if node is not None:
            _collect_places(node, (), places, where)
        values = yaml.safe_load(text)
    except NOT_YAML as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise RecipeError(f"{where}{line}: not valid YAML: {problem}", hint="check indentation and quotes") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{where} is not a recipe", hint="start from one in recipes/")
    return values, places


def _collect_places(node: yaml.Node, path: Place, places: dict[Place, str], where: str) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, str(key.value))
            at = f"{where}:{key.start_mark.line + 1}"
            if here in places:
                raise RecipeError(f"{at}: `{key.value}` appears twice", hint="keep one of the two")
            places[here] = at
            _collect_places(value, here, places, where)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            places[(*path, index)] = f"{where}:{value.start_mark.line + 1}"
            _collect_places(value, (*path, index), places, where)

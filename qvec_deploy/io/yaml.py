"""YAML text to plain values, with the place of every key for error messages, and back."""

from __future__ import annotations

import re
from typing import Any

import yaml

from qvec_deploy.errors import RecipeError

Place = tuple[str | int, ...]
NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)  # PyYAML leaks the last two: `2024-99-99`, 1000 brackets

# PyYAML wants a point and a sign in `1.0e-4`; YAML 1.2 (10.3.2) does not, nor does anybody who types a learning rate.
_FLOAT = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the floats of YAML 1.2."""


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper; it quotes text that `_Loader` would take for a float."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def parse_yaml(text: str, where: str) -> tuple[dict[str, Any], dict[Place, str]]:
    """YAML text to plain values, and file and line of every key.

    Args:
        text: A mapping in YAML.

    Raises:
        RecipeError: Not YAML, no mapping, aliases (a few bytes of them grow without bound), or a key given twice.
    """
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, _Loader)):
            raise RecipeError(f"{where} uses YAML aliases", hint="write the values out")
        node = yaml.compose(text, _Loader)
        places: dict[Place, str] = {}
        if node is not None:
            _collect_places(node, (), places, where)
        values = parse_yaml_value(text)
    except NOT_YAML as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise RecipeError(f"{where}{line}: not valid YAML: {problem}", hint="check indentation and quotes") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{where} is not a recipe", hint="start from one in recipes/")
    return values, places


def parse_yaml_value(text: str) -> Any:
    """One YAML document of any kind to plain values; None for empty text.

    Raises:
        yaml.YAMLError, ValueError, RecursionError: It is none (`NOT_YAML`).
    """
    return yaml.load(text, _Loader)  # noqa: S506 - it is a safe loader


def dump_yaml(values: Any) -> str:
    """Plain values as YAML that `parse_yaml` reads back as they were, keys in their order."""
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


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

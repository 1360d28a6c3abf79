"""YAML text to plain values, with the place of every key for error messages, and back."""

from __future__ import annotations

import re
from typing import Any

import yaml

from qvec_deploy.errors import RecipeError, first_line
from qvec_deploy.visible import visible

Place = tuple[str | int, ...]

_MAX_DEPTH = 64
_MAX_NODES = 1 << 15  # a second of reading; the names of 21,843 classes fit
_MAX_TEXT = 1 << 16
_MAX_NUMBER = 128  # characters: `1:1:1:...` is a number to base 60, and takes PyYAML time without bound

# PyYAML wants a point and a sign in `1.0e-4`; YAML 1.2 (10.3.2) does not, nor does anybody who types a learning rate.
_FLOAT = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the floats of YAML 1.2, without aliases and tags, and with limits.

    Limits hold where events are read: nothing beyond them is scanned, composed or constructed.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._nodes = 0

    def fetch_flow_collection_start(self, token: Any) -> None:
        """Refuse brackets here: before it emits the first of them, the scanner reads those that follow."""
        if self.flow_level >= _MAX_DEPTH:
            raise self._refusal(f"nested more than {_MAX_DEPTH} deep", self.get_mark())
        super().fetch_flow_collection_start(token)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """One node, if its first event may be."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        self._nodes += 1
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise self._refusal("uses anchors or aliases: write the values out", event.start_mark)
        if event.tag is not None:
            raise self._refusal(f"uses the tag {event.tag}: write the value itself", event.start_mark)
        if self._depth >= _MAX_DEPTH:
            raise self._refusal(f"nested more than {_MAX_DEPTH} deep", event.start_mark)
        if self._nodes > _MAX_NODES:
            raise self._refusal(f"more than {_MAX_NODES:,} values", event.start_mark)
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > _MAX_TEXT:
            raise self._refusal(f"a text of more than {_MAX_TEXT:,} characters", event.start_mark)
        self._depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """A node's value; what Python says against a scalar gets the scalar's line."""
        if not isinstance(node, yaml.ScalarNode):
            return super().construct_object(node, deep)
        if len(node.value) > _MAX_NUMBER and node.tag != "tag:yaml.org,2002:str":
            raise self._refusal(f"a number of more than {_MAX_NUMBER} characters", node.start_mark)
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError) as error:  # such as 2024-99-99, which is a date in YAML
            raise self._refusal(first_line(error), node.start_mark) from error

    @staticmethod
    def _refusal(problem: str, mark: Any) -> yaml.MarkedYAMLError:
        return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper; it quotes text that `_Loader` would take for a float."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def parse_yaml(text: str, where: str) -> tuple[dict[str, Any], dict[Place, str]]:
    """YAML text to plain values, and file and line of every key.

    Args:
        text: A mapping in YAML.

    Raises:
        RecipeError: Not YAML, no mapping, beyond the limits, with aliases (a few bytes of them grow without bound) or
            tags, or with a key given twice.
    """
    places: dict[Place, str] = {}
    values = _load(text, where, places)
    if not isinstance(values, dict):
        raise RecipeError(f"{where} is not a recipe", hint="start from one in recipes/")
    return values, places


def parse_yaml_value(text: str, where: str) -> Any:
    """One YAML document of any kind to plain values; None for empty text.

    Raises:
        RecipeError: As `parse_yaml`.
    """
    return _load(text, where, None)


def _load(text: str, where: str, places: dict[Place, str] | None) -> Any:
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _collect_places(node, (), {} if places is None else places, where)
        return loader.construct_document(node)
    except RecipeError:
        raise
    except Exception as error:  # PyYAML leaks what it meets, such as IndexError
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark and places is not None else ""  # a value has no lines
        problem = getattr(error, "problem", None) or first_line(error)
        raise RecipeError(f"{where}{line}: not valid YAML: {problem}", hint="check indentation and quotes") from error


def dump_yaml(values: Any) -> str:
    """Plain values as YAML that `parse_yaml` reads back as they were, keys in their order."""
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    if visible(text, keep="\n") != text:  # in ASCII, all that cannot be seen has an escape
        text = yaml.dump(values, Dumper=_Dumper, sort_keys=False)
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

"""Numbers in YAML are read as YAML 1.2 writes them, and what is written is read back as it was."""

from __future__ import annotations

from typing import Any

import pytest

from qvec_deploy.io.yaml import dump_yaml, parse_yaml, parse_yaml_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("1.e-3", 1e-3),
        ("1.0e5", 1e5),
        ("1e5", 1e5),
        ("-2E+3", -2e3),
        (".5e1", 5.0),
        ("0.1", 0.1),
        ("7", 7),
        ("'1e-4'", "1e-4"),
        ("e5", "e5"),
        ("1e", "1e"),
        ("1e5x", "1e5x"),
        ("0x1e5", 0x1E5),
        ("true", True),
    ],
)
def test_numbers(text: str, value: Any) -> None:
    for found in (parse_yaml_value(text), parse_yaml(f"a: {text}\n", "x.yaml")[0]["a"]):
        assert found == value and type(found) is type(value)


@pytest.mark.parametrize("value", ["1e3", "12E4", "1.5e7", 1e-5, 1e300, "plain", 3, None, [1e-4, "1e-4"]])
def test_what_is_written_is_read_back(value: Any) -> None:
    text = dump_yaml({"b": value, "a": "é"})
    found, _ = parse_yaml(text, "x.yaml")
    assert found == {"b": value, "a": "é"} and type(found["b"]) is type(value)
    assert text.startswith("b:") and "é" in text

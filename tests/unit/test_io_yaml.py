"""Numbers in YAML are read as YAML 1.2 writes them, and what is written is read back as it was."""

from __future__ import annotations

import time
from typing import Any

import pytest

from qvec_deploy.errors import RecipeError
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
    for found in (parse_yaml_value(text, "x.yaml"), parse_yaml(f"a: {text}\n", "x.yaml")[0]["a"]):
        assert found == value and type(found) is type(value)


@pytest.mark.parametrize("value", ["1e3", "12E4", "1.5e7", 1e-5, 1e300, "plain", 3, None, [1e-4, "1e-4"]])
def test_what_is_written_is_read_back(value: Any) -> None:
    text = dump_yaml({"b": value, "a": "é"})
    found, _ = parse_yaml(text, "x.yaml")
    assert found == {"b": value, "a": "é"} and type(found["b"]) is type(value)
    assert text.startswith("b:") and "é" in text


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        ("a: 1\nb: [" + "[" * (1 << 20), 2, "nested more than 64"),
        ("a:\n  " + "{a: " * (1 << 18), 2, "nested more than 64"),
        ("a: " + "[{b: " * (1 << 17), 1, "nested more than 64"),
        ("\n".join(" " * depth + "a:" for depth in range(1000)), 64, "nested more than 64"),
        ("- " * (1 << 19), 1, "nested more than 64"),
        ("? " * (1 << 19), 1, "nested more than 64"),
        ("a: 1\nb: &x 1\n", 2, "anchors or aliases"),
        ("a: 1\nb: *x\n", 2, "anchors or aliases"),
        ("a: 1\nb: !!python/object/apply:os.getcwd []\n", 2, "uses the tag tag:yaml.org,2002:python"),
        ("a: 1\nb: !mine {}\n", 2, "uses the tag !mine"),
        ("a: 1\nb: 2024-99-99\n", 2, "month must be in"),
        ("a: 1\nb: 0x_\n", 2, "invalid literal"),
        ("a: 1\nb: " + "1:" * 200_000 + "1\n", 2, "a text of more than"),
        ("a: 1\nb: " + "1:" * 100 + "1\n", 2, "a number of more than"),
        ("a: 1\nb: " + "9" * 5000 + "\n", 2, "a number of more than"),
        ("a: 1\nb: " + "x" * 70_000 + "\n", 2, "a text of more than"),
        ("a: 1\nb: \x07\n", None, "special characters are not allowed"),
        ("a: 1\n---\nb: 1\n", 2, "another document"),
    ],
)
def test_what_is_beyond_the_limits_is_refused_at_once(text: str, line: int | None, told: str) -> None:
    start = time.process_time()
    with pytest.raises(RecipeError, match=told) as caught:
        parse_yaml(text, "x.yaml")
    assert caught.value.message.startswith(f"x.yaml:{line}:" if line else "x.yaml:")
    assert len(caught.value.message) < 200
    assert time.process_time() - start < 1  # 0.2 s where the machine is not shared


def test_a_long_list_ends_at_the_limit_of_values() -> None:
    assert len(parse_yaml("a:\n" + "- b\n" * 22_000, "x.yaml")[0]["a"]) == 22_000
    with pytest.raises(RecipeError, match="more than 32,768 values"):
        parse_yaml("a:\n" + "- b\n" * 70_000, "x.yaml")


@pytest.mark.parametrize("kind", ["bool x", "int ''", "float ''", "timestamp x", "int '-'", "float '-'", "int '+'"])
def test_tags_are_refused(kind: str) -> None:
    for parse in (parse_yaml, parse_yaml_value):
        with pytest.raises(RecipeError, match="uses the tag"):
            parse(f"a: !!{kind}", "x.yaml")


def test_every_text_is_read_or_refused() -> None:
    """Scalars that PyYAML's constructors stumble over."""
    for text in (
        "=",
        "<<",
        "._",
        "0b_",
        "0o8",
        "-.inf",
        "1_",
        "0",
        "-0",
        "+.5",
        "0:0",
        "~",
        "<<: 1",
        "? [a]\n: b",
        "%YAML 9.9",
    ):
        for parse in (parse_yaml, parse_yaml_value):
            for wrapped in (text, f"a: {text}", f"[{text}]"):
                try:
                    parse(wrapped, "x.yaml")
                except RecipeError as error:
                    assert "\n" not in error.message

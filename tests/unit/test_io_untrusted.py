"""JSON and arrays within limits, and one kind of error for whatever goes wrong with them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.numpy import save_file

from qvec_deploy.errors import IncompatibleError, IntegrityError, RecipeError, StorageError
from qvec_deploy.io.untrusted import parse_json, read_arrays, read_json, understood


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "not JSON"),
        (b"\xff", "not JSON"),
        ('{"a": 1}'.encode("utf-16"), "not JSON"),
        ('{"a": 1, "a": 1}', "a key occurs twice"),
        ("NaN", "no finite number"),
        ("[-Infinity]", "no finite number"),
        ("1e999", "no finite number"),
        ("1" * 30, "no number of 64 bits"),
        ("[" * 65 + "1" + "]" * 65, "nested more than 64 deep"),
        ('{"a": ' * 70 + "1" + "}" * 70, "nested more than 64 deep"),
        ("[" * 100_000, "nested more than 64 deep"),
        (r'"\ud800"', "surrogates not allowed"),
        (r'{"\ud800": 1}', "surrogates not allowed"),
        (json.dumps("x" * ((1 << 20) + 1)), "a text of 1,048,577 characters"),
    ],
)
def test_json_that_is_never_written_is_refused(text: str | bytes, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        parse_json(text)


@pytest.mark.parametrize("value", [None, 2**64 - 1, -(2**63), 1.5e300, [[]], {"é": "𝔄"}, {"a": {"b": [True]}}])
def test_json_comes_back_as_it_was(value: Any) -> None:
    assert parse_json(json.dumps(value)) == parse_json(json.dumps(value, ensure_ascii=False).encode()) == value


def test_sixty_four_levels_are_read() -> None:
    assert parse_json("[" * 64 + "]" * 64)


class _Strict(BaseModel):
    size: int


def test_every_failure_to_understand_is_one_error() -> None:
    def wrong_field() -> None:
        _Strict.model_validate({"size": "x"})

    cases = {
        "the field": lambda: {}["the field"],
        "size: Input should be": wrong_field,
        "division by zero": lambda: 1 / 0,
    }
    for told, fail in cases.items():
        with pytest.raises(IntegrityError, match=f"a.json is damaged: .*{told}") as caught, understood("a.json", "do"):
            fail()
        assert caught.value.hint == "do" and "\n" not in caught.value.message
    with pytest.raises(RecipeError), understood("a.json", error=RecipeError):
        raise KeyError("x")
    with pytest.raises(IncompatibleError), understood("a.json"):
        raise IncompatibleError("later", hint="upgrade")
    with pytest.raises(IncompatibleError, match=r"a\.json: there is not enough memory"), understood("a.json"):
        raise MemoryError
    with pytest.raises(StorageError, match=r"a\.json: Input/output error"), understood("a.json"):
        raise SafetensorError("Input/output error (os error 5)")
    with pytest.raises(IntegrityError, match=r"os error 5"), understood("a.json"):
        raise ValueError("a text of the file's own (os error 5)")
    with pytest.raises(StorageError, match="No such file"), understood("a.json"):
        Path("/nowhere/at/all").read_bytes()


def test_files_have_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}')
    assert read_json(path) == {"a": 1}
    with pytest.raises(IntegrityError, match=r"a\.json is damaged: it has more than 4 bytes"):
        read_json(path, most=4)
    path.write_text("[1]")
    with pytest.raises(IntegrityError, match="no JSON object"):
        read_json(path)
    with pytest.raises(StorageError):
        read_json(tmp_path / "absent.json")


def test_arrays_are_finite_and_have_few_dimensions(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": np.ones((2, 3), np.float32)}, path, {"qvec": "x"})
    arrays, metadata = read_arrays(path, "answers")
    assert arrays["a"].shape == (2, 3) and metadata == {"qvec": "x"}
    for bad, told in ((np.float32([np.nan]), "NaN or infinity"), (np.ones([1] * 9, np.float32), "8 dimensions")):
        save_file({"a": bad}, path)
        with pytest.raises(IntegrityError, match=told):
            read_arrays(path, "answers")
    path.write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    with pytest.raises(IntegrityError, match="its header has"):
        read_arrays(path, "answers")
    for name in ("BF16", "F8_E4M3"):
        header = json.dumps({"a": {"dtype": name, "shape": [2, 2], "data_offsets": [0, 8 if name == "BF16" else 4]}})
        path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(8 if name == "BF16" else 4))
        with pytest.raises(IntegrityError, match=f"a has values of type {name}, which is never written"):
            read_arrays(path, "answers")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(IntegrityError, match="a pipe or a device"):
        read_json(tmp_path / "a.json")

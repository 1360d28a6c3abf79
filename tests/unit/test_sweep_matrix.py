"""`matrix`: one file, many recipes, each with a name that says what it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qvec_deploy.errors import RecipeError
from qvec_deploy.recipe import load_recipe, load_recipes

Write = Callable[..., Path]


def _names(path: Path, *overrides: str) -> list[str]:
    return [recipe.name for recipe in load_recipes(path, overrides)]


def test_every_combination_is_a_recipe(pico_recipe: Write) -> None:
    matrix = {"quantize.bits": [2, 3], "lambda": [0, 0.5], "target.lowering": ["int4", "int8"]}
    recipes = load_recipes(pico_recipe(matrix=matrix))
    assert [recipe.name for recipe in recipes] == [
        f"pico-bits{bits}-lambda{lam}-{lowering}"
        for bits in (2, 3)
        for lam in ("0", "0.5")
        for lowering in ("int4", "int8")
    ]
    assert [(r.quantize.bits, r.lam, r.target.lowering) for r in recipes][3] == (2, 0.5, "int8")
    assert all(not recipe.matrix and "matrix" not in recipe.as_dict() for recipe in recipes)
    assert {recipe.folder for recipe in recipes} == {recipes[0].folder}


def test_without_a_matrix_there_is_one(pico_recipe: Write) -> None:
    path = pico_recipe()
    assert load_recipes(path) == (load_recipe(path),)
    assert _names(pico_recipe(matrix={})) == ["pico"]


@pytest.mark.parametrize(
    ("matrix", "names"),
    [
        ({"lambda": [-0.5, 1]}, ["lambda-0.5", "lambda1"]),
        ({"lambda": [0.5, 1.0]}, ["lambda0.5", "lambda1"]),
        ({"lambda": [0.1234567, 0.1234568, 1e-07]}, ["lambda0.1234567", "lambda0.1234568", "lambda1e-07"]),
        ({"lambda": [0, 0.0, 1]}, ["lambda_no1", "lambda_no2", "lambda_no3"]),
        ({"measure.seed": [1000000, 12345678]}, ["seed1000000", "seed12345678"]),
        ({"quantize.granularity": ["tensor", "channel"]}, ["tensor", "channel"]),
        ({"vector.files": [["a/one.safetensors"], ["b/two.safetensors"]]}, ["one", "two"]),
        ({"vector.files": [["a/one.safetensors"], ["b/one.safetensors"]]}, ["files_no1", "files_no2"]),
        ({"vector.files": [["a.safetensors", "b.safetensors"], ["a.safetensors"]]}, ["files_no1", "files_no2"]),
        ({"vector.control": [None, {"kind": "random", "seed": 1}]}, ["control_no1", "control_no2"]),
        ({"target.engine.dynamic": [True, False]}, ["dynamic_true", "dynamic_false"]),
        ({"measure.seed": [1], "vector.control.seed": [2]}, ["measure.seed1-vector.control.seed2"]),
    ],
)
def test_names_say_what_differs(pico_recipe: Write, matrix: dict[str, Any], names: list[str]) -> None:
    control = {"vector__control": {"kind": "random", "seed": 0}} if "vector.control.seed" in matrix else {}
    assert _names(pico_recipe(matrix=matrix, **control)) == [f"pico-{name}" for name in names]


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ({"name": ["a", "b"]}, "`name` belongs to the whole"),
        ({"matrix": [{}]}, "`matrix` belongs to the whole"),
        ({"variants": [[], []]}, "`variants` belongs to the whole"),
        ({"lambda": []}, "matrix.lambda"),
        ({"lambda": 1}, "matrix.lambda"),
        ([1], "matrix"),
        ({"lambda": [1, 1]}, "has a value twice"),
        ({"lambda": [0, 0.0000001, 0.00000011]}, None),
        ({"quantize": [{}], "quantize.bits": [3]}, "`quantize.bits` lies in `quantize`"),
        ({"quantize.bits": list(range(2, 9)), "measure.seed": list(range(200))}, "1,400 builds"),
        ({"quantize.skip": [["head"]], "evaluate.dataset": ["x" * 250]}, "is too long"),
        ({"target.lowering": ["int4", "float"]}, "(in the matrix: target.lowering=float)"),
        ({"quantize.bits": [3, 9], "lambda": [0, 1]}, "(in the matrix: quantize.bits=9, lambda=0)"),
        ({"quantize.bit": [3]}, "did you mean"),
    ],
)
def test_what_cannot_be_is_refused_and_named(pico_recipe: Write, matrix: Any, message: str | None) -> None:
    path = pico_recipe(matrix=matrix)
    if message is None:
        assert len(set(_names(path))) == 3
        return
    with pytest.raises(RecipeError) as caught:
        load_recipes(path)
    assert message in f"{caught.value.message} {caught.value.hint}"


def test_a_matrix_is_not_one_recipe(pico_recipe: Write) -> None:
    with pytest.raises(RecipeError, match="its matrix makes 2 recipes"):
        load_recipe(pico_recipe(matrix={"lambda": [0, 1]}))
    assert load_recipe(pico_recipe(matrix={"lambda": [0]})).lam == 0


def test_overrides(pico_recipe: Write) -> None:
    path = pico_recipe(matrix={"lambda": [0, 1]})
    assert _names(path, "matrix={quantize.clip: [0.9, 1]}") == ["pico-clip0.9", "pico-clip1"]
    assert _names(path, "matrix={}") == ["pico"]
    assert {recipe.quantize.bits for recipe in load_recipes(path, ["quantize.bits=2"])} == {2}
    with pytest.raises(RecipeError, match="the matrix gives `lambda`"):
        load_recipes(path, ["lambda=0.5"])

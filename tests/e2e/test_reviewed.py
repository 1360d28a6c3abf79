"""What a fresh reader tripped over once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from manifests import edit_manifest

Run = Callable[..., tuple[int, str, str]]


def test_bench_does_not_write_into_a_bundle(run: Run, bundle: Path) -> None:
    code, _, err = run("bench", bundle, "--blocks", 2, "-o", bundle, "--quiet")
    assert code == 6 and "is a bundle" in err
    assert run("verify", bundle)[0] == 0


@pytest.mark.parametrize(
    "change",
    [
        {"lam": 0.7},
        {"name": "other"},
        {"recipe_sha256": "0" * 64},
        {"engine": {"lowering": "int8"}},
        {"engine": {"threads": 7}},
    ],
)
def test_a_manifest_that_contradicts_its_recipe(run: Run, bundle: Path, change: dict[str, Any]) -> None:
    values = json.loads((bundle / "manifest.json").read_text())
    changed = {key: values[key] | value if isinstance(value, dict) else value for key, value in change.items()}
    edit_manifest(bundle, **changed)
    code, _, err = run("verify", bundle)
    assert code == 5 and "recipe.yaml" in err


def test_plan_refuses_what_build_would_refuse(run: Run, pico_recipe: Callable[..., Path]) -> None:
    recipe = pico_recipe(variants=[{"name": "b", "set": {"quantize.bits": 8, "lambda": 0, "vector": None}}])
    for command in (("plan",), ("build", "-o", recipe.parent / "out")):
        code, _, err = run(*command, "--recipe", recipe)
        assert code == 4 and "candidate b: lowering `int4`" in err


def test_a_grid_that_quantizes_nothing_is_refused(run: Run, pico_recipe: Callable[..., Path]) -> None:
    recipe = pico_recipe(quantize__skip=["head", "blocks"], vector=None, **{"lambda": 0})
    code, _, err = run("plan", "--recipe", recipe)
    assert code == 4 and "no Linear to quantize" in err


def test_the_terminal_says_what_was_built_and_what_to_doubt(run: Run, bundle: Path) -> None:
    code, out, _ = run("bench", bundle, "--blocks", 2, "--quiet")
    assert code == 0
    out = " ".join(out.split())
    assert "3 bits" in out and "one scale per" in out and "Left in float: head" in out
    assert "warning: too few samples" in out.lower()

"""`plan` as a user calls it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_everything_missing_is_listed_and_the_rest_planned(
    pico_recipe: Callable[..., Path], run: Callable[..., Any], tmp_path: Path
) -> None:
    missing = {"receiver__checkpoint": "no.pt", "vector": {"files": ["v1.st", "v2.st"]}}
    recipe = pico_recipe(**missing, evaluate={"dataset": "folder", "root": "nowhere"})
    code, out, err = run("plan", "--recipe", recipe)
    assert code == 6 and "4 files or folders are missing" in err
    for text in ("receiver.checkpoint: no.pt", "vector: v1.st", "vector: v2.st", "evaluate: nowhere"):
        assert f"missing     {text}" in out
    assert "MB in the bundle" in out and "1,000 classes where it is not there" in out
    code, out, _ = run("plan", "--recipe", recipe, "--json")
    document = json.loads(out)
    assert code == 6 and len(document["missing"]) == 4 and document["candidates"] == ["float", "ptq", "pico"]


def test_what_the_target_lacks_here(pico_recipe: Callable[..., Path], run: Callable[..., Any]) -> None:
    recipe = pico_recipe(target__runtime="tensorrt")
    code, out, _ = run("plan", "--recipe", recipe)
    assert code == 0 and "missing     target.runtime tensorrt: " in out

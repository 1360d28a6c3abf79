"""What a study's recipe gets wrong: one clear message, the right exit code, and nothing made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pico import PICO_ARGS, PICO_MODEL
from study_here import in_this_process
from study_recipes import VALUES, hub_study, write_hub, write_study

Run = Callable[..., tuple[int, str, str]]

MODEL = VALUES["models"][0]


def _tasks(**changes: Any) -> list[dict[str, Any]]:
    return [{"name": "a", "dataset": "tiny/lower", **changes}, {"name": "b", "dataset": "tiny/upper"}]


@pytest.mark.parametrize(
    ("changes", "code", "message", "hint"),
    [
        ({"tasks": _tasks(dataset="tiny/lowre")}, 2,
         "task a: there is no bundled task `tiny/lowre`", "did you mean `tiny/lower`?"),
        ({"tasks": {"preset": "tiny", "only": ["lowre", "upper"]}}, 2, "the preset has no task `lowre`", ""),
        ({"models": [{**MODEL, "timm": "vit_teeny_patch16_224"}]}, 2,
         "timm has no model `vit_teeny_patch16_224`", "did you mean vit_tiny_patch16_224"),
        ({"models": [{**MODEL, "base": {"checkpoint": "gone.safetensors"}}]}, 6,
         "base of pico", "gone.safetensors does not exist"),
        ({"tasks": _tasks(classes=9)}, 2, "task a: tiny/lower has 26 classes, the study says 9", "check its dataset"),
    ],
    ids=["task", "task of a preset", "model", "base file", "classes"],
)  # fmt: skip
def test_what_a_recipe_gets_wrong_is_said_once_and_nothing_is_made(
    tmp_path: Path, run: Run, changes: dict[str, Any], code: int, message: str, hint: str
) -> None:
    recipe, out = write_study(tmp_path, **changes), tmp_path / "out"
    found, text, log = run("study", "run", recipe, "-o", out)
    assert found == code and not text
    assert log.count(message) == 1 and hint in log and "Traceback" not in log
    assert len(log.strip().splitlines()) <= 4
    assert not any((out / name).exists() for name in ("files", "work", "cells", "study.yaml", "run.json"))


@pytest.mark.parametrize(
    ("classes", "code", "message"),
    [
        ({"realdigits": 10}, 7, "has 0 files"),
        ({"lower": 25, "realdigits": 10}, 4, "a head for 25 classes, and the task has 26"),
    ],
    ids=["file", "classes"],
)
def test_a_released_fine_tune_that_is_missing_or_anothers_makes_nothing(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, classes: dict[str, int], code: int, message: str
) -> None:
    hub, out = write_hub(tmp_path / "hub", classes), tmp_path / "out"
    models = [{"name": "pico", "timm": PICO_MODEL, "model_args": PICO_ARGS}]
    recipe = hub_study(tmp_path, hub, models=models, tasks={"preset": "tiny", "only": ["lower", "realdigits"]})
    with in_this_process(monkeypatch):
        found, text, log = run("study", "run", recipe, "-o", out, "--quiet")
    assert found == code and "Traceback" not in text + log
    assert (text + log).count(message) == 2  # once for its float fine-tune, once for its QAT
    made = [path.name for path in (out / "files").iterdir()]
    assert made and not any("lower" in name or name.startswith("cell") for name in made)
    assert not list((out / "cells").iterdir())


def test_a_hub_folder_that_is_not_there_makes_nothing(tmp_path: Path, run: Run) -> None:
    found, text, log = run("study", "run", hub_study(tmp_path, tmp_path / "gone"), "-o", tmp_path / "out")
    assert found == 6 and not text
    assert log.count("gone: no such folder") == 1 and "checkpoints.hub" in log
    assert not (tmp_path / "out" / "files").exists()

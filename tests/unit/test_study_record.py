"""The table of recipes/STUDY.md of the bundled study is the one of its record."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from study_cells import row_key

from qvec_deploy.research.study.study_recipe import load_study

ROOT = Path(__file__).parents[2]
RECORD = json.loads((ROOT / "recipes" / "study_tiny.record.json").read_text(encoding="utf-8"))
IN_README = (
    "float", "own_qat", "rtn", "plain", "awq/images", "gptq/generated", "gptq/images", "gptaq/generated",
    "gptaq/images", "control/random", "control/shuffle", "control/gptq_displacement", "control/task_vector",
    "pair/lambda_1", "pair/label_free", "donor/label_free", "mean/lambda_1", "mix", "mean+gptq/images/lambda_1",
    "mean+gptaq/generated/lambda_1", "mean+gptaq/images/lambda_1",
)  # fmt: skip


def _readme_rows() -> list[list[str]]:
    text = (ROOT / "recipes" / "STUDY.md").read_text(encoding="utf-8").partition("## A study of your own")[0]
    table = next(block for block in text.split("\n\n") if block.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def _printed(row: dict[str, Any]) -> list[str]:
    if row["gain"] is None:
        return [f"{row['top1']:.1f}", "-"]
    value, low, high = (f"{part:+.1f}" for part in row["gain"])
    return [f"{row['top1']:.1f}", f"{re.sub('^[-+]0.0$', '0.0', value)} [{low}, {high}]"]


@pytest.mark.parametrize(("row", "key"), list(zip(_readme_rows(), IN_README, strict=True)), ids=IN_README)
def test_the_readme_prints_the_record(row: list[str], key: str) -> None:
    two_bit, three_bit = (next(one for one in setting["rows"] if one["row"] == key) for setting in RECORD["settings"])
    assert row[1:] == _printed(two_bit) + _printed(three_bit)
    expected = "plain PTQ: MSE clipping" if key == "plain" else row_key(key).label
    assert two_bit["label"] == three_bit["label"] == expected


def test_the_record_is_of_the_bundled_study() -> None:
    recipe = load_study(ROOT / "recipes" / "study_tiny.yaml")
    grids = sorted((grid.scheme().as_dict() for grid in recipe.grids), key=lambda grid: grid["bits"])
    assert [setting["grid"] for setting in RECORD["settings"]] == grids
    assert RECORD["run"]["counts"]["cell"] == {"total": 60, "made": 60} and not RECORD["run"]["failures"]
    cells = len(recipe.seeds) * len(recipe.tasks.all())
    assert {row["cells"] for setting in RECORD["settings"] for row in setting["rows"]} == {cells}

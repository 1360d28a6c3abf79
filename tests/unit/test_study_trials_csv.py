"""A study's CSV files: what stands in which column."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest
from study_cells import MODEL, SELECTING, TASKS, make_cell, make_cells

from qvec_deploy.research.study.analysis.summarize import summarize
from qvec_deploy.research.study.pages.study_page import pairs_csv, trials_csv


def lines(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_pairs_have_their_gains_over_every_baseline() -> None:
    summary = summarize(make_cells((1,), TASKS[:2]))
    setting = summary.settings[0]
    found = {(line["donor"], line["receiver"]): line for line in lines(pairs_csv(summary))}
    for mode in ("lambda_1", "label_free", "labelled"):
        for baseline in ("plain", "mse", "awq/images", "gptq/images", "gptaq/images"):
            column = f"gain_{mode}" if baseline == "plain" else f"gain_{mode}_over_{baseline}"
            for pair in setting.pairs(mode, baseline):
                line = found[pair.donor, pair.receiver]
                assert float(line[column]) == pytest.approx(pair.gain)
                assert float(line[f"{column}_seed_error"]) == pytest.approx(pair.seed_error)
                assert float(line[f"{column}_image_error"]) == pytest.approx(pair.image_error)
    columns = list(found["upper", "lower"])
    assert [name for name in columns if name.startswith("lambdas")] == [
        "lambdas_lambda_1",
        "lambdas_label_free",
        "lambdas_labelled",
    ]
    assert "gain_lambda_1_over_gptq/images" in columns
    assert (found["upper", "lower"]["name"], found["upper", "lower"]["model"]) == (MODEL, MODEL)


@pytest.mark.parametrize(("selecting", "written"), [(SELECTING - 3, "197"), (0, "0"), (None, "")])
def test_right_answers_stand_beside_the_images_that_chose(selecting: int | None, written: str) -> None:
    cell = replace(make_cell(1, "lower", 0), selecting=selecting)
    cell = replace(cell, request=replace(cell.request, name="other base"))
    for line, trial in zip(lines(trials_csv([cell])), cell.trials, strict=True):
        assert line["selecting_images"] == written
        assert line["selecting_right"] == ("" if trial.selecting_right is None else str(trial.selecting_right))
        assert (line["name"], line["model"]) == ("other base", MODEL)

"""A study's report as people see it, in headless Chromium; and the command that writes it."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from study_cells import GRIDS, MODEL, make_cells, make_fine_tunes
from test_report_page import assert_whole, browser

from qvec_deploy.report.render_html import render_html
from qvec_deploy.research.study.analysis.study_summary import StudySummary
from qvec_deploy.research.study.analysis.summarize import summarize
from qvec_deploy.research.study.pages.study_page import StudyReport, study_page
from qvec_deploy.research.study.study_documents import RUN_VERSION, cell_json

__all__ = ["browser"]  # a fixture: it starts Chromium

Run = Callable[..., tuple[int, str, str]]

RUN = {"version": RUN_VERSION, "name": "example", "versions": {"torch": "2.9.0"}, "wall_seconds": 750.0, "failures": []}
RECIPE = "version: 1\nname: example\n" + "".join(f"field_{index}: {'long ' * 60}\n" for index in range(3))
ONE_SEED = {"seeds": (0,), "images": 40}


def write_folder(out: Path, **cells: Any) -> Path:
    """A study's folder as a run leaves it."""
    (out / "cells").mkdir(parents=True)
    for index, cell in enumerate(make_cells(**cells)):
        (out / "cells" / f"{index:03}.json").write_bytes(cell_json(cell))
    (out / "run.json").write_text(json.dumps(RUN), encoding="utf-8")
    (out / "costs.json").write_text(json.dumps({"fine_tunes": list(map(asdict, make_fine_tunes()))}), encoding="utf-8")
    (out / "study.yaml").write_text(RECIPE, encoding="utf-8")
    return out


@cache
def summary() -> StudySummary:
    return summarize(make_cells(seeds=(0, 1), images=60), make_fine_tunes())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("studies")
    whole = StudyReport("example", summary(), RECIPE, RUN)
    small = StudyReport("small", summarize(make_cells(grids=(0,), receivers=("lower",), seeds=(0,), images=40), ()))
    for name, studied in (("whole", whole), ("small", small)):
        (folder / f"{name}.html").write_text(render_html(study_page(studied)), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in ("whole", "small")}


@pytest.mark.parametrize(
    ("name", "width", "scheme"), [("whole", 390, "dark"), ("whole", 1400, "light"), ("small", 390, "light")]
)
def test_a_page_is_whole_at_every_width(browser: Any, files: dict[str, Path], name: str, width: int, scheme: str):
    assert_whole(browser, files[name], width, scheme)


def test_on_paper_nothing_is_cut_off_and_folds_are_open(browser: Any, files: dict[str, Path]) -> None:
    page = browser.new_page()
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 718, "height": 1000})  # A4 at 96 dpi, less 10 mm on either side
    page.goto(files["whole"].as_uri())
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    assert page.evaluate("[...document.querySelectorAll('details tr')].every(row => row.getClientRects().length > 0)")
    page.close()


def test_a_heatmap_downloads_exactly_its_numbers(browser: Any, files: dict[str, Path], tmp_path: Path) -> None:
    page = browser.new_page()
    page.goto(files["whole"].as_uri())
    with page.expect_download() as caught:
        page.click("#figure-gains-0-lambda_1 a[download]")
    caught.value.save_as(tmp_path / "gains.csv")
    with (tmp_path / "gains.csv").open(newline="", encoding="utf-8") as stream:
        found = {(donor, receiver): float(gain) for donor, receiver, gain, _ in list(csv.reader(stream))[1:]}
    matrix = summary().settings[0].matrices[0]
    assert found == {(pair.donor, pair.receiver): pair.gain for pair in matrix.pairs}
    page.close()


def test_a_study_is_reported(run: Run, tmp_path: Path) -> None:
    out = write_folder(tmp_path / "out", grids=(0,), **ONE_SEED)
    code, told, err = run("study", "report", out, "-o", tmp_path / "report", "--quiet")
    assert code == 0 and err == "", err
    assert "3 bits per tensor, MSE clipping" in told and "One seed" in told
    names = {"study.json", "study.md", "study.html", "trials.csv", "pairs.csv"}
    assert {path.name for path in (tmp_path / "report").iterdir()} == names
    assert MODEL in (tmp_path / "report" / "study.md").read_text(encoding="utf-8")


def test_the_document_is_printed_and_is_the_one_written(run: Run, tmp_path: Path) -> None:
    out = write_folder(tmp_path / "out", grids=(0,), receivers=("lower", "upper"), **ONE_SEED)
    code, told, err = run("study", "report", out, "-o", tmp_path / "report", "--json")
    assert code == 0 and err == "", err
    assert json.loads(told) == json.loads((tmp_path / "report" / "study.json").read_bytes())
    assert json.loads(told)["summary"]["settings"][0]["grid"] == asdict(GRIDS[0])


def test_what_is_no_study_is_refused(run: Run, tmp_path: Path) -> None:
    code, _, err = run("study", "report", tmp_path, "-o", tmp_path / "report")
    assert code == 6 and "is not the folder of a finished study" in err
    assert not (tmp_path / "report").exists()
    assert run("study", "report", tmp_path)[0] == 2


def test_a_cell_of_another_version_is_refused(run: Run, tmp_path: Path) -> None:
    out = write_folder(tmp_path / "out", grids=(0,), receivers=("lower",), **ONE_SEED)
    (cell,) = (out / "cells").iterdir()
    cell.write_text(json.dumps(json.loads(cell.read_bytes()) | {"version": 99}), encoding="utf-8")
    code, _, err = run("study", "report", out, "-o", tmp_path / "report")
    assert code == 4 and "is a cell of version 99" in err
    assert not (tmp_path / "report").exists()


def test_a_report_is_not_written_into_a_bundle(run: Run, tmp_path: Path) -> None:
    out = write_folder(tmp_path / "out", grids=(0,), receivers=("lower",), **ONE_SEED)
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text("{}", encoding="utf-8")
    code, _, err = run("study", "report", out, "-o", tmp_path / "bundle")
    assert code == 6 and "is a bundle" in err

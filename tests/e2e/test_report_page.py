"""Reports as people see them, in headless Chromium; and the command that writes them."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from shown import html_of

from qvec_deploy.bundle.manifest import hash_files, read_manifest, write_manifest
from qvec_deploy.report.overview import overview
from qvec_deploy.report.report_json import report_schema

sys.path.append(str(Path(__file__).parents[1] / "unit"))
from report_example import gpu_report, patched_report, selecting_report

Run = Callable[..., tuple[int, str, str]]

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for path in map(shutil.which, NAMES) if path), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PAGES: dict[str, Callable[[], str]] = {
    "selecting": lambda: html_of(selecting_report(batch_sizes=(1, 8))),
    "gpu": lambda: html_of(gpu_report()),
    "overview": lambda: html_of(overview({"misses": selecting_report(), "patched": patched_report()})),
}
EMPTY = """() => [...document.querySelectorAll("section, figure, details, td, dd, figcaption")]
    .filter(node => !node.textContent.trim()).map(node => node.outerHTML.slice(0, 80))"""
CLIPPED = """() => [...document.querySelectorAll("figure svg")].filter(svg => {
    const box = svg.closest("figure").getBoundingClientRect();
    return [...svg.querySelectorAll("text")].some(text => {
        const own = text.getBoundingClientRect();
        return own.left < box.left - 1 || own.right > box.right + 1;
    });
}).map(svg => svg.closest("figure").id)"""
COLLIDING = """() => [...document.querySelectorAll("figure svg")].flatMap(svg => {
    const boxes = [...svg.querySelectorAll("text")].map(text => [text.textContent, text.getBoundingClientRect()]);
    return boxes.flatMap(([a, one], i) => boxes.slice(i + 1).filter(([b, two]) =>
        Math.min(one.right, two.right) - Math.max(one.left, two.left) > 1.5 &&
        Math.min(one.bottom, two.bottom) - Math.max(one.top, two.top) > 4
    ).map(([b]) => `${svg.closest("figure").id}: ${a} / ${b}`));
})"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip(f"none of {', '.join(NAMES)} is installed")
    from playwright.sync_api import sync_playwright

    folder = tmp_path_factory.mktemp("profile")
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(folder), executable_path=CHROMIUM, args=FLAGS, accept_downloads=True
        )
        yield context
        context.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    for name, make in PAGES.items():
        (folder / f"{name}.html").write_text(make(), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in PAGES}


def assert_whole(browser: Any, path: Path, width: int, scheme: str) -> None:
    """Nothing on the console, nothing fetched, nothing empty, clipped, colliding or wider than the screen."""
    page, heard, asked = browser.new_page(), [], []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    page.goto(path.as_uri())
    assert heard == []
    assert asked == [path.as_uri()], "nothing is fetched"
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    assert page.evaluate(EMPTY) == []
    assert page.evaluate(CLIPPED) == []
    assert page.evaluate(COLLIDING) == []
    for section in page.query_selector_all("section"):
        assert section.bounding_box()["height"] > 30
    page.evaluate("document.querySelectorAll('details').forEach(folded => { folded.open = true })")
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("name", sorted(PAGES))
def test_a_page_is_whole_at_every_width(browser: Any, files: dict[str, Path], name: str, width: int, scheme: str):
    assert_whole(browser, files[name], width, scheme)


def _luminance(color: str) -> float:
    red, green, blue = (int(part) for part in color.removeprefix("rgb(").removesuffix(")").split(","))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_the_page_follows_the_readers_scheme_and_paper_is_light(browser: Any, files: dict[str, Path], scheme, dark):
    page = browser.new_page()
    page.emulate_media(color_scheme=scheme)
    page.goto(files["selecting"].as_uri())
    background = "getComputedStyle(document.body).backgroundColor"
    assert (_luminance(page.evaluate(background)) < 60) is dark
    page.emulate_media(media="print", color_scheme=scheme)
    assert _luminance(page.evaluate(background)) > 240
    page.close()


def test_on_paper_tables_are_not_cut_off_and_folds_are_open(browser: Any, files: dict[str, Path]):
    page = browser.new_page()
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 718, "height": 1000})  # A4 at 96 dpi, less 10 mm on either side
    page.goto(files["selecting"].as_uri())
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    assert page.evaluate("[...document.querySelectorAll('details tr')].every(row => row.getClientRects().length > 0)")
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.close()


def test_a_figure_downloads_exactly_its_numbers(browser: Any, files: dict[str, Path], tmp_path: Path):
    page = browser.new_page()
    page.goto(files["selecting"].as_uri())
    with page.expect_download() as caught:
        page.click("#figure-samples-8 a[download]")
    assert caught.value.suggested_filename == "samples-8.csv"
    caught.value.save_as(tmp_path / "samples.csv")
    with (tmp_path / "samples.csv").open(newline="", encoding="utf-8") as stream:
        _, *lines = csv.reader(stream)
    taken = selecting_report(batch_sizes=(1, 8))["gptaq"].latency[1].samples_ms
    assert [float(value) for name, _, value in lines if name == "gptaq"] == list(taken)
    page.close()


def test_the_report_of_a_bundle_is_the_one_it_was_built_with(run: Run, finished: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    code, out, err = run("report", finished, "-o", tmp_path / "report", "--quiet")
    assert code == 0 and "pico" in out and err == ""
    names = {"report.json", "report.md", "report.html", "report.csv", "samples.csv"}
    assert {path.name for path in (tmp_path / "report").iterdir()} == names
    for name in ("report.json", "report.md", "report.html"):
        assert (tmp_path / "report" / name).read_bytes() == (finished / name).read_bytes()
    assert {path.name: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_several_bundles_stand_beside_each_other(run: Run, finished: Path, bundle: Path, tmp_path: Path) -> None:
    code, out, _ = run("report", finished, bundle, "-o", tmp_path / "report", "--json")
    document = json.loads(out)
    assert code == 0
    jsonschema.validate(document, report_schema())
    assert set(document["ranking"]) == {"pico in pico", "pico in pico (2)"}
    assert document == json.loads((tmp_path / "report" / "report.json").read_bytes())
    third = shutil.copytree(bundle, tmp_path / "more" / "pico")
    code, out, _ = run("report", finished, bundle, third, "-o", tmp_path / "report", "--quiet")
    assert code == 0 and "are not paired" in " ".join(out.split()) and "pico in pico (3)" in out


def test_a_bundle_given_twice_is_refused(run: Run, finished: Path, tmp_path: Path) -> None:
    code, _, err = run("report", finished, finished.parent / "." / finished.name, "-o", tmp_path / "report")
    assert code == 2 and "is given twice" in err
    assert not (tmp_path / "report").exists()


def test_bundles_that_do_not_belong_together_leave_no_folder(
    run: Run, finished: Path, bundle: Path, tmp_path: Path
) -> None:
    path = bundle / "report.json"
    path.write_bytes(path.read_bytes().replace(b'"split":"none"', b'"split":"other"'))
    manifest = read_manifest(bundle)
    files = {**manifest.files, **hash_files(bundle, ["report.json"])}
    write_manifest(bundle, manifest.model_copy(update={"files": files}))
    code, _, err = run("report", finished, bundle, "-o", tmp_path / "report")
    assert code == 4 and "differ in split" in err
    assert not (tmp_path / "report").exists()


def test_an_error_is_the_one_document_with_json(run: Run, finished: Path, tmp_path: Path) -> None:
    code, out, err = run("report", tmp_path / "none", "-o", tmp_path / "report", "--json")
    told = json.loads(out)
    assert (told["exit_code"], set(told)) == (code, {"error", "hint", "exit_code"})
    assert f"error: {told['error']}\nhint: {told['hint']}" in err
    code, out, err = run("report", finished, "-o", tmp_path / "report", "--json", "--nonsense")
    assert (code, json.loads(out)["exit_code"]) == (2, 2)
    assert "nonsense" in json.loads(out)["error"] and "nonsense" in err
    assert run("report", tmp_path / "none", "-o", tmp_path / "report")[1] == "", "without --json there is none"


def test_nobody_has_to_read_on(finished: Path) -> None:
    """Behind `| head`, rich would end the process with exit code 1."""
    for command in (["doctor"], ["inspect", str(finished)]):
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(
            [sys.executable, "-m", "qvec_deploy", *command], stdout=writing, stderr=subprocess.PIPE, check=False
        )
        os.close(writing)
        assert done.returncode == 0 and all(line.endswith(b" ...") for line in done.stderr.splitlines()), done.stderr


@pytest.mark.parametrize("inside", [".", "reports", "reports/deep"])
def test_a_report_is_not_written_into_a_bundle(run: Run, finished: Path, bundle: Path, inside: str) -> None:
    before = sorted(bundle.rglob("*"))
    code, _, err = run("report", finished, "-o", bundle / inside)
    assert code == 6 and ("is a bundle" if inside == "." else "is in the bundle") in err
    assert sorted(bundle.rglob("*")) == before


def test_a_changed_bundle_is_not_reported(run: Run, bundle: Path, tmp_path: Path) -> None:
    path = bundle / "report.json"
    path.write_bytes(path.read_bytes().replace(b'"title":"pico"', b'"title":"best"'))
    code, _, err = run("report", bundle, "-o", tmp_path / "report")
    assert code == 5 and "was changed after the build" in err
    assert not (tmp_path / "report").exists()


def test_a_bundle_that_was_not_measured_has_no_report(run: Run, bundle: Path, tmp_path: Path) -> None:
    manifest = read_manifest(bundle)
    kept = {name: entry for name, entry in manifest.files.items() if name != "report.json"}
    write_manifest(bundle, manifest.model_copy(update={"files": kept}))
    code, _, err = run("report", bundle, "-o", tmp_path / "report")
    assert code == 4 and "has no report" in err and "qvec-deploy bench" in err


def test_a_report_of_another_schema_is_named(run: Run, bundle: Path, tmp_path: Path) -> None:
    path = bundle / "report.json"
    path.write_bytes(path.read_bytes().replace(b'"schema_version":3', b'"schema_version":2'))
    manifest = read_manifest(bundle)
    files = {**manifest.files, **hash_files(bundle, ["report.json"])}
    write_manifest(bundle, manifest.model_copy(update={"files": files}))
    code, _, err = run("report", bundle, "-o", tmp_path / "report")
    assert code == 4 and "report.json: the report's schema_version is 2" in err


def test_bundles_of_other_classes_are_not_reported_together(
    run: Run, finished: Path, bundle: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(bundle)
    model = manifest.model.model_copy(update={"classes": 99})
    write_manifest(bundle, manifest.model_copy(update={"model": model}))
    code, _, err = run("report", finished, bundle, "-o", tmp_path / "report")
    assert code == 4 and "has 99 classes" in err


def test_what_is_no_bundle_is_refused(run: Run, tmp_path: Path) -> None:
    code, _, err = run("report", tmp_path, "-o", tmp_path / "report")
    assert code == 6 and "is not a bundle" in err
    assert run("report", "-o", tmp_path / "report")[0] == 2


def test_the_schema_is_printed(run: Run) -> None:
    assert json.loads(run("schema", "--of", "report")[1]) == report_schema()
    assert json.loads(run("schema")[1]) == json.loads(run("schema", "--of", "recipe")[1])

"""Every text of everything that is shown, in every form: nothing in it is obeyed, and nothing in it is hidden."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch
from xml.etree import ElementTree

import pytest
import yaml
from hostile_text import CALLS, HOSTILE, Place, Texts, blocks, elements, hidden, text_fields, with_texts
from release_example import recipe, subject
from report_example import GPU, example_report, selecting_report
from shown import page_of
from study_cells import make_cells, make_fine_tunes

from qvec_deploy.bench.comparison import Comparison, GateChange
from qvec_deploy.bench.results import Report
from qvec_deploy.builder.preview import Preview, preview
from qvec_deploy.bundle.manifest import Layer, Manifest, ReleaseFacts
from qvec_deploy.bundle.release.model_card import model_card
from qvec_deploy.bundle.release.release_subject import Subject
from qvec_deploy.cli import compare_command, plan_text, report_command, report_table, study_command, sweep_command
from qvec_deploy.cli.printing import document_lines
from qvec_deploy.cli.terminal import echo_json, say
from qvec_deploy.report import svg
from qvec_deploy.report.comparison_page import comparison_page
from qvec_deploy.report.overview import Overview, overview
from qvec_deploy.report.page import Page
from qvec_deploy.report.render_csv import candidates_csv, samples_csv
from qvec_deploy.report.render_html import render_html
from qvec_deploy.report.render_markdown import render_markdown
from qvec_deploy.research.study.analysis.summarize import summarize
from qvec_deploy.research.study.cell_values import Cell
from qvec_deploy.research.study.pages.study_page import StudyReport, pairs_csv, study_page, trials_csv
from qvec_deploy.runtimes.session import LinearProduct
from qvec_deploy.sweep.sweep_summary import SweepRow, SweepSummary

pytestmark = pytest.mark.slow

TABLES = {
    ("Candidate", "runtime"),
    ("Candidate", "lowering"),
    ("Candidate", "method"),
    ("Device", "gflops"),
    ("Selection", "by"),
    ("Selection", "mixing"),
    ("Selection", "on"),
    ("SelectionCurve", "method"),
    ("Engine", "runtime"),
    ("Engine", "lowering"),
    ("Target", "runtime"),
    ("Target", "lowering"),
    ("Quantize", "method"),
    ("Manifest", "method"),
    ("Side", "runtime"),
    ("Side", "lowering"),
    ("Side", "method"),
}
"""Fields whose texts are names of the product's own tables: whoever reads them from a file takes no others."""


@dataclass(frozen=True)
class Shown:
    """What is shown: a value, its type, and its forms as texts, by `html`, `markdown`, `csv`, `terminal`, `json`."""

    value: Any
    kind: Any
    forms: Callable[[Any], Mapping[str, str]]
    kept: set[Place] = field(default_factory=set)

    def attacked(self, number: int | None) -> dict[str, str]:
        """Its forms with hostile texts, or with harmless ones."""
        texts = Texts(TABLES | self.kept, number)
        with patch.object(svg, "inline", return_value="<svg></svg>"):
            return dict(self.forms(with_texts(self.value, self.kind, texts)))


def printed(function: Callable[..., object], *arguments: Any) -> str:
    """What it prints."""
    with redirect_stdout(io.StringIO()) as stream:
        function(*arguments)
    return stream.getvalue()


def page_forms(page: Page) -> dict[str, str]:
    return {"html": render_html(page), "markdown": render_markdown(page, "")}


def report_forms(report: Report) -> dict[str, str]:
    tables = {"csv": candidates_csv({report.title: report}), "csv of samples": samples_csv({report.title: report})}
    return page_forms(page_of(report)) | tables | {"terminal": printed(report_table.print_report, report)}


def overview_forms(shown: Overview) -> dict[str, str]:
    return page_forms(page_of(shown)) | {"terminal": printed(report_command._print_overview, shown)}


def comparison_forms(comparison: Comparison) -> dict[str, str]:
    return page_forms(comparison_page(comparison)) | {
        "terminal": printed(compare_command._print, comparison, None),
    }


def study_forms(report: StudyReport) -> dict[str, str]:
    return page_forms(study_page(report)) | {
        "csv": pairs_csv(report.summary),
        "terminal": printed(study_command._print, report),
    }


def manifest_forms(manifest: Manifest) -> dict[str, str]:
    document = manifest.model_dump(mode="json")
    return {
        "terminal": printed(lambda: say(*document_lines(document))),
        "json": printed(echo_json, document),
    }


def full_report() -> Report:
    """A report with something in every field."""
    report = selecting_report(batch_sizes=(1, 8))
    product = LinearProduct("blocks.0.attn.qkv", "layer", ("int8",), ("uint8", "float32"), fused=True)
    candidates = [replace(candidate, products=(product,)) for candidate in report.candidates]
    candidates[-1] = replace(candidates[-1], answers_of=candidates[1].name)
    gpu = replace(GPU, throttling=("sw_power_cap",))
    return replace(
        report,
        candidates=tuple(candidates),
        environment=replace(report.environment, gpu=gpu, governor="powersave"),
        images_folder="pictures",
        images_sha256="ab" * 32,
    )


def full_subject() -> Subject:
    """A release with something in every field of its manifest."""
    found, report = subject(unverified="nobody looked"), full_report()
    model = found.manifest.model.model_copy(
        update={"class_names": ("cat", "dog"), "preprocessing_from": {"mean": "config.json", "std": "config.json"}}
    )
    engine = found.manifest.engine.model_copy(
        update={"missing": "no GPU", "not_run": "no driver", "products": report.candidates[0].products}
    )
    interface = found.manifest.interface
    assert interface is not None
    manifest = found.manifest.model_copy(
        update={
            "model": model,
            "engine": engine,
            "interface": interface.model_copy(update={"session_options": {"a": 1}, "session_config": {"b": "c"}}),
            "receiver_weights": "ema",
            "recipe_folder": "recipes",
            "control": "random",
            "selection": report.selection,
            "layers": (Layer(name="blocks.0.attn.qkv", error=0.2),),
            "release": ReleaseFacts(
                number="1.2", released="2026-11-01T12:00:00+00:00", expires="2027-11-01", signers=("key",)
            ),
            "source_commit": "ab" * 20,
            "digest": "cd" * 32,
        }
    )
    return replace(found, manifest=manifest)


def planned_forms(found: Preview) -> dict[str, str]:
    return {
        "terminal": printed(plan_text.print_plan, found) + printed(plan_text.print_tensors, found.plan),
        "json": printed(echo_json, plan_text.plan_document(found)),
    }


@cache
def planned() -> Preview:
    """What a build would do, of a recipe whose files are missing."""
    receiver = {"checkpoint": "missing.safetensors", "model": "vit_tiny_patch16_224", "classes": ["cat", "dog"]}
    folder = {"dataset": "folder", "root": "pictures", "split": "test"}
    found = preview(recipe(receiver=receiver, images=None, evaluate=folder), offline=True)
    plan = replace(found.plan, sources=(("donor", 1.0),), left_aside=("optimizer",))
    return replace(found, plan=plan, doubts=("something is odd",), missing=(*found.missing, "another file"))


@cache
def study() -> StudyReport:
    failed = {"node": "qat lower", "message": "killed", "hint": "more memory", "because": None, "exit_code": 4}
    run = {"versions": {"torch": "2.9.0"}, "wall_seconds": 750.0, "counts": {}, "failures": [failed], "name": "example"}
    summary = summarize(make_cells(images=60), make_fine_tunes())
    settings = tuple(replace(setting, missing=("lower, seed 3",)) for setting in summary.settings)
    return StudyReport("example", replace(summary, settings=settings), "name: x\nversion: 1\n", run)


def cases() -> dict[str, Callable[[], Shown]]:
    from test_compare_document import make as comparison

    gate = GateChange("max_ms", "SAME", True, True, "at most 4", "3")  # type: ignore[arg-type]
    row = SweepRow("one", "failed", False, 4, "reason", "hint", "out/one", "pico", details="Traceback")
    return {
        "report": lambda: Shown(full_report(), Report, report_forms),
        "overview": lambda: Shown(
            overview({"first": full_report(), "second": example_report()}), Overview, overview_forms
        ),
        "comparison": lambda: Shown(
            replace(comparison(gates=(gate,)), environment=full_report().environment), Comparison, comparison_forms
        ),
        "study": lambda: Shown(study(), StudyReport, study_forms),
        "model card": lambda: Shown(full_subject(), Subject, lambda one: {"markdown": model_card(one)}),
        "plan": lambda: Shown(planned(), Preview, planned_forms, {("Architecture", "data_config")}),
        "manifest": lambda: Shown(full_subject().manifest, Manifest, manifest_forms),
        "sweep": lambda: Shown(
            SweepSummary((row, replace(row, name="two"))),
            SweepSummary,
            lambda one: {"terminal": printed(sweep_command._print, one, Path("out"))},
        ),
    }


CASES = cases()


@pytest.fixture(scope="module")
def shown(request: pytest.FixtureRequest) -> tuple[Shown, dict[str, str]]:
    """What is shown, and its forms with harmless texts."""
    found = CASES[request.param]()
    return found, found.attacked(None)


@pytest.mark.parametrize("shown", list(CASES), indirect=True)
@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_no_text_is_obeyed_or_hidden(shown: tuple[Shown, dict[str, str]], number: int) -> None:
    value, harmless = shown
    for form, text in value.attacked(number).items():
        text.encode()
        assert hidden(text) - ({"\t", "\r"} if form.startswith("csv") else set()) == set(), form
        if form == "html":
            assert elements(text) == elements(harmless[form])
        elif form == "markdown":
            _check_markdown(text, harmless[form])
        elif form.startswith("csv"):
            _check_csv(text, harmless[form])
        elif form == "json":
            assert text.isascii() and json.loads(text)


def _check_markdown(text: str, harmless: str) -> None:
    body, front = text, ""
    if text.startswith("---\n"):
        _, front, body = text.split("---\n", 2)
        harmless = harmless.split("---\n", 2)[2]
        assert yaml.safe_load(front)["library_name"] == "onnx"
    assert blocks(body) == blocks(harmless)
    prose = re.sub(r"```.*?```|^ {4}.*?$", "", body, flags=re.DOTALL | re.MULTILINE)
    assert CALLS.findall(prose) == []


def _check_csv(text: str, harmless: str) -> None:
    rows, expected = (list(csv.reader(io.StringIO(one, newline=""))) for one in (text, harmless))
    assert [len(row) for row in rows] == [len(row) for row in expected]
    numbers = re.compile(r"-?\d[\d.e+-]*|")
    assert not [
        cell for row in rows for cell in row if not numbers.fullmatch(cell) and cell.strip()[:1] in set("=+-@＝")
    ]


UNSHOWN: dict[str, set[Place]] = {}
"""Fields of what is shown that no example fills; each would need a reason."""


@pytest.mark.parametrize("name", ["report", "comparison", "study", "manifest", "sweep"])
def test_every_text_that_exists_is_tried(name: str) -> None:
    case = CASES[name]()
    texts = Texts(set(), 0)
    with_texts(case.value, case.kind, texts)
    assert set(text_fields(case.kind)) - texts.reached == UNSHOWN.get(name, set())


@pytest.mark.parametrize("start", (0, len(HOSTILE) // 2))
def test_figures_are_xml_and_show_everything(start: int) -> None:
    case = Shown(full_report(), Report, report_forms)
    report = with_texts(case.value, case.kind, Texts(TABLES, start))
    _check_figures(page_of(report))


@pytest.mark.parametrize("start", (0, len(HOSTILE) // 2))
def test_figures_of_a_study_are_xml_and_show_everything(start: int) -> None:
    _check_figures(study_page(with_texts(study(), StudyReport, Texts(TABLES, start))))


def _check_figures(page: Page) -> None:
    drawn = re.findall(r"<svg.*?</svg>", render_html(page), flags=re.DOTALL)
    assert drawn
    for figure in drawn:
        assert hidden(figure) == set()
        root = ElementTree.fromstring(figure)
        assert not {element.tag for element in root.iter()} & {"script", "foreignObject", "a"}
        assert not [name for element in root.iter() for name in element.attrib if name.startswith("on")]


def test_trials_of_a_study_as_csv() -> None:
    cells = make_cells(grids=(1,), receivers=("lower",), seeds=(0,), images=40)
    harmless = trials_csv(cells)
    for number in range(len(HOSTILE)):
        texts = Texts({("Trial", "right"), ("Cell", "relations")}, number)
        _check_csv(trials_csv(with_texts(cells, list[Cell], texts)), harmless)

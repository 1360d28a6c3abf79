"""A study's summary and its run -> the page and its files: HTML, Markdown, JSON, CSV."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from qvec_deploy.io.files import canonical_json, write_bytes
from qvec_deploy.report.csv_text import Value, to_csv
from qvec_deploy.report.page import Facts, Page, Prose, Section
from qvec_deploy.report.render_html import render_html
from qvec_deploy.report.render_markdown import render_markdown
from qvec_deploy.research.study.analysis.pair_values import LosingPair, PredictedPair, SimilarPair
from qvec_deploy.research.study.analysis.row_key import PLAIN
from qvec_deploy.research.study.analysis.study_summary import StudySetting, StudySummary, plain_values
from qvec_deploy.research.study.cell_values import Cell, Trial, unpack_right
from qvec_deploy.research.study.pages import notation, pair_sections, result_sections, setting_sections
from qvec_deploy.research.study.pages.conclusions import answers, remarks
from qvec_deploy.tensors import Scheme

REPORT_VERSION = 1
"""Of study.json around the summary, which has a version of its own."""

QUESTION = (
    "A donor's quantization vector is what quantization-aware training (QAT) changed in its weights. Another task's "
    "model, the receiver, is about to be rounded to few bits without any training (PTQ): does it keep more accuracy if "
    "λ times the vector is added to it before?"
)
TERMS = (
    (
        "Donor, receiver",
        "Two tasks, fine-tuned from one pretrained base. The donor brings the vector; the receiver's float fine-tune "
        "is what gets rounded.",
    ),
    ("Vector", "The donor's weights after QAT less its weights after fine-tuning in float."),
    (
        "λ",
        "How much of the vector is added: receiver + λ × vector, then rounding. 0 adds nothing, 1 all of it; a "
        "negative one goes the other way.",
    ),
    (
        "Plain PTQ",
        "The receiver's weights rounded to the setting's grid, without images and without a vector. The scale fits the "
        "largest weight (absmax), a part of it (clip), or has the least squared error (MSE clipping); on a grid of MSE "
        "clipping, plain PTQ is MSE clipping.",
    ),
    (
        "GPTQ, AWQ",
        "Methods without a vector that look at images while they round: unlabelled ones of the receiver, generated "
        "ones, or second moments that the donors brought.",
    ),
    (
        "Label-free, labelled",
        "How λ, or a donor, is chosen for a receiver, on images of it that are not test images. Label-free: the least "
        "KL divergence of the rounded model's answers from the float receiver's. Labelled: the most right answers. "
        "Hindsight: the most right answers on the test images themselves.",
    ),
    (
        "Mean, mix",
        "The vectors of all donors together: with equal weights, or with the weights that bring the rounded receiver "
        "nearest to the float one on its unlabelled images.",
    ),
    (
        "Control",
        "Something of the vector's norm in its place: a random vector, its rows shuffled, the donor's task vector "
        "(float fine-tune less base), or what GPTQ moves in the donor. A vector that is no better than these has the "
        "right size and nothing more.",
    ),
    (
        "Share of QAT gap",
        "The gain over plain PTQ as a share of what the receiver's own QAT gains: 100 % is as good as training. Sums "
        "over receivers, one divided by the other.",
    ),
    (
        "Intervals, ±",
        "Other receivers, other seeds of the fine-tunes, other test images: each could have brought other numbers, and "
        "each interval or ± says which of them it is about. Donors are those of the study, and in none of them.",
    ),
    (
        "p, Holm",
        "How often chance alone brings such a difference or a larger one. Who asks many questions finds small p by "
        "chance; Holm's correction makes up for that within a family of questions. Better and worse are said below "
        "0.05 after it.",
    ),
)


@dataclass(frozen=True)
class StudyReport:
    """What is reported of a study.

    Attributes:
        recipe: As it was run, YAML with nothing left to defaults.
        run: The run's record: versions, counts, seconds, failures. JSON values.
    """

    name: str
    summary: StudySummary
    recipe: str = ""
    run: Mapping[str, Any] = field(default_factory=dict)


def study_page(report: StudyReport) -> Page:
    """The report as sections; those without content are left out when they are shown."""
    summary = report.summary
    return Page(
        title=f"Study {report.name}",
        kicker=_kicker(summary),
        lead=(
            Prose(QUESTION, "question", ("terms", "Terms")),
            *(Prose(answer, "headline") for answer in answers(summary)),
            *(Prose(remark, "remark") for remark in remarks(summary)),
        ),
        sections=(
            result_sections.results(summary),
            result_sections.controls(summary),
            pair_sections.matrices(summary),
            result_sections.candidates(summary),
            pair_sections.lambdas(summary),
            result_sections.wins(summary),
            result_sections.selection(summary),
            pair_sections.failures(summary),
            pair_sections.similarities(summary),
            pair_sections.predictions(summary),
            setting_sections.costs(summary),
            setting_sections.paper(summary),
            result_sections.tests(summary),
            Section("terms", "Terms", (Facts(TERMS),)),
            setting_sections.configuration(summary, report.recipe, report.run),
        ),
        footer=f"qvec-deploy {version('qvec-deploy')} · study summary {summary.version}. Beside this page: every "
        "number of it in study.json, every trial in trials.csv, every pair in pairs.csv.",
    )


def _kicker(summary: StudySummary) -> str:
    models = dict.fromkeys(map(notation.model_title, summary.settings))
    tasks = {task for setting in summary.settings for task in setting.tasks}
    seeds = {seed for setting in summary.settings for seed in setting.seeds}
    pairs = max((notation.pair_count(setting) for setting in summary.settings), default=0)
    counts = {"task": len(tasks), "pair": pairs, "seed": len(seeds), "setting": len(summary.settings)}
    return f"{notation.listed(list(models))} · {', '.join(notation.many(n, noun) for noun, n in counts.items())}"


def to_json(report: StudyReport) -> bytes:
    """Everything that the page shows, as canonical JSON; a ValueError for NaN or an infinite number."""
    return canonical_json(
        {
            "schema_version": REPORT_VERSION,
            "name": report.name,
            "summary": plain_values(report.summary),
            "recipe": report.recipe,
            "run": dict(report.run),
        }
    )


def write_study(report: StudyReport, cells: Sequence[Cell], directory: Path) -> tuple[Path, ...]:
    """Write study.json, study.md, study.html, trials.csv and pairs.csv; their paths, in this order."""
    page = study_page(report)
    files = {
        "study.json": to_json(report),
        "study.md": render_markdown(page, "study.html").encode(),
        "study.html": render_html(page).encode(),
        "trials.csv": trials_csv(cells).encode(),
        "pairs.csv": pairs_csv(report.summary).encode(),
    }
    for name, data in files.items():
        write_bytes(directory / name, data)
    return tuple(directory / name for name in files)


TRIAL_COLUMNS: dict[str, Callable[[Cell, Trial], Value]] = {
    "seed": lambda cell, trial: cell.request.seed,
    "receiver": lambda cell, trial: cell.request.receiver.name,
    "kind": lambda cell, trial: trial.kind,
    "method": lambda cell, trial: trial.method,
    "lambda": lambda cell, trial: trial.lam,
    "donor": lambda cell, trial: trial.donor,
    "control": lambda cell, trial: trial.control,
    "inputs": lambda cell, trial: trial.inputs,
    "divergence_nats": lambda cell, trial: trial.divergence,
    "selecting_images": lambda cell, trial: cell.selecting,
    "selecting_right": lambda cell, trial: trial.selecting_right,
    "test_images": lambda cell, trial: cell.images,
    "test_right": lambda cell, trial: _right(cell, trial),
    "top1": lambda cell, trial: _right(cell, trial) / cell.images,
}


def trials_csv(cells: Iterable[Cell]) -> str:
    """Every trial of every cell, numbers in full; what was not measured is an empty cell."""
    lines = [
        _setting(cell.request.label, cell.request.model, cell.request.grid)
        | {name: value(cell, trial) for name, value in TRIAL_COLUMNS.items()}
        for cell in cells
        for trial in cell.trials
    ]
    return _csv(lines)


def _right(cell: Cell, trial: Trial) -> int:
    return int(unpack_right(trial.right, cell.images).sum())


def _setting(name: str, model: str, grid: Scheme) -> dict[str, Value]:
    columns = ("bits", "granularity", "group_size", "clip")
    return {"name": name, "model": model, **{c: getattr(grid, c) for c in columns}, "grid_method": grid.method}


def _csv(lines: list[dict[str, Value]]) -> str:
    """A column for everything that a line has."""
    columns = dict.fromkeys(column for line in lines for column in line)
    return to_csv(tuple(columns), ([line.get(column) for column in columns] for line in lines))


def pairs_csv(summary: StudySummary) -> str:
    """Every pair of every setting, seeds averaged: gains by way of choosing lambda, similarities, causes, Prop. 1."""
    return _csv([line for setting in summary.settings for line in _pairs(setting)])


def _pairs(setting: StudySetting) -> list[dict[str, Value]]:
    """One record per pair, in the order of the tasks; columns of what was not computed are left out."""
    about = _setting(setting.name, setting.model, setting.grid) | {"seeds": len(setting.seeds)}
    found: dict[tuple[str, str], dict[str, Value]] = {}
    for matrix in setting.matrices:
        column = f"gain_{matrix.mode}" + ("" if matrix.baseline == PLAIN else f"_over_{matrix.baseline}")
        for pair in matrix.pairs:
            start = {**about, "donor": pair.donor, "receiver": pair.receiver}
            known = found.setdefault((pair.donor, pair.receiver), start)
            known |= {column: pair.gain, f"{column}_seed_error": pair.seed_error}
            known[f"{column}_image_error"] = pair.image_error
            known.setdefault(f"lambdas_{matrix.mode}", json.dumps(pair.lambdas))
    more: list[tuple[SimilarPair | LosingPair | PredictedPair, dict[str, Value]]] = []
    more += [(one, {each.measure: one.similarity}) for each in setting.similarities for one in each.points]
    more += [(one, {"cause": one.cause, "within_noise": one.within_noise}) for one in setting.failures]
    predicted = setting.prediction.points if setting.prediction else ()
    more += [(one, {"predicted_share": one.predicted, "measured_share": one.measured}) for one in predicted]
    for one, values in more:
        if (one.donor, one.receiver) in found:
            found[one.donor, one.receiver] |= values
    order = {task: place for place, task in enumerate(setting.tasks)}
    return [found[key] for key in sorted(found, key=lambda key: (order.get(key[1], 0), order.get(key[0], 0), key))]

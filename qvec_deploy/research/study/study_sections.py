"""A study's summary and its run -> the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from qvec_deploy.research.study import notation, sections_gains, sections_pairs, sections_results, sections_setting
from qvec_deploy.research.study.conclusions import answers, remarks
from qvec_deploy.research.study.study_page import Page
from qvec_deploy.research.study.study_summary import Summary
from qvec_deploy.research.study.terms import QUESTION, terms


@dataclass(frozen=True)
class Studied:
    """A study that was run.

    Attributes:
        name: Of the study.
        summary: What it answers.
        recipe: As it was run, YAML with nothing left to defaults.
        run: The run's record: versions, counts, seconds, failures. JSON values.
    """

    name: str
    summary: Summary
    recipe: str = ""
    run: Mapping[str, Any] = field(default_factory=dict)


def study_page(studied: Studied) -> Page:
    """The report as sections; those without content are left out when they are shown."""
    summary = studied.summary
    return Page(
        title=f"Study {studied.name}",
        kicker=_kicker(summary),
        question=QUESTION,
        answers=answers(summary),
        remarks=remarks(summary),
        sections=(
            sections_results.results(summary),
            sections_results.controls(summary),
            sections_gains.matrices(summary),
            sections_results.candidates(summary),
            sections_pairs.lambdas(summary),
            sections_results.wins(summary),
            sections_results.selection(summary),
            sections_pairs.failures(summary),
            sections_pairs.similarities(summary),
            sections_pairs.predictions(summary),
            sections_setting.costs(summary),
            sections_setting.paper(summary),
            sections_results.tests(summary),
            terms(),
            sections_setting.configuration(summary, studied.recipe, studied.run),
        ),
        footer=f"qvec-deploy {version('qvec-deploy')} · study summary {summary.version}. Beside this page: every "
        "number of it in study.json, every trial in trials.csv, every pair in pairs.csv.",
    )


def _kicker(summary: Summary) -> str:
    models = dict.fromkeys(map(notation.model_title, summary.settings))
    tasks = dict.fromkeys(task for setting in summary.settings for task in setting.tasks)
    seeds = dict.fromkeys(seed for setting in summary.settings for seed in setting.seeds)
    pairs = max((notation.pairs(setting) for setting in summary.settings), default=0)
    counts = (
        notation.many(len(tasks), "task"),
        notation.many(pairs, "pair"),
        notation.many(len(seeds), "seed"),
        notation.many(len(dict.fromkeys(notation.setting_names(summary))), "setting"),
    )
    return f"{notation.listed(list(models))} · {', '.join(counts)}"

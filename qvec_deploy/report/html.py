"""Reports -> one self-contained HTML page: no script, no network, light and dark, phone and paper."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from qvec_deploy.bench.results import Report
from qvec_deploy.bench.summary import numbered_warnings, rows
from qvec_deploy.report import accuracy_section as accuracy
from qvec_deploy.report import overview, prose
from qvec_deploy.report import report_verdict as verdict
from qvec_deploy.report import timing_section as timing
from qvec_deploy.report.environment_facts import environment_facts
from qvec_deploy.report.headline_tiles import tiles
from qvec_deploy.report.layer_plot import layer_errors
from qvec_deploy.report.overview import Overview
from qvec_deploy.report.plots import trade_offs
from qvec_deploy.report.reliability_plot import reliability
from qvec_deploy.report.selection_plot import selection_figures
from qvec_deploy.report.table import batch_columns, columns
from qvec_deploy.report.time_plot import distributions, layer_times

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup


def to_html(report: Report) -> str:
    """The page of one report. Every text from it is escaped; figures are SVG that this package drew."""
    computed = rows(report)
    return _render(
        "report.html",
        report=report,
        rows=computed,
        standing=verdict.standing(report),
        headline=prose.headline(report, computed),
        setup=prose.setup(report),
        tiles=tiles(report, computed),
        columns=columns(report, computed),
        batch_columns=batch_columns() if any(row.latency for row in computed) else (),
        method=prose.method(report, computed),
        trade_offs=trade_offs(computed),
        gates=verdict.gates(report),
        answers=accuracy.answers(report, computed),
        reliability=[figure for figure in (reliability(report),) if figure],
        closer=[listing for listing in (accuracy.by_class(report), accuracy.changes(report)) if listing],
        distributions=distributions(report),
        stages=timing.stages(report),
        scenarios=timing.scenarios(report),
        terms=timing.definitions(report),
        predicted=timing.predicted(report, computed),
        layers=[figure for figure in (layer_errors(report), layer_times(report)) if figure],
        chosen=verdict.chosen(report),
        remarks=verdict.remarks(report),
        listings=[listing for listing in (verdict.finalists(report), verdict.donors(report)) if listing],
        selection_figures=selection_figures(report),
        facts=prose.facts,
        warnings=numbered_warnings(report),
        environment=environment_facts(report),
    )


def overview_html(shown: Overview) -> str:
    """The page of several reports: what they ship side by side, then each report's own tables, folded."""
    return _render(
        "overview.html",
        shown=shown,
        headline=overview.headline(shown),
        table=overview.listing(shown),
        trade_offs=overview.figures(shown),
        rows=rows,
        columns=columns,
        gates=verdict.gates,
        standing=verdict.standing,
        report_headline=prose.headline,
        warnings=numbered_warnings,
    )


def _render(template: str, **values: Any) -> str:
    return page_environment(_resource).get_template(template).render(css=_resource("report.css"), **values)


@cache
def page_environment(load: Callable[[str], str]) -> Environment:
    """Templates as pages here need them: escaped, strict, with the filters of numbers and names.

    Args:
        load: Text of a template by its name.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(load),
    )
    environment.filters["unbroken"] = unbroken
    environment.filters["breakable"] = breakable
    return environment


def unbroken(text: str) -> str:
    """No line break inside an interval, between a number and its unit, or around an error and a lambda's value."""
    text = re.sub(r"\[[^\]]*\]", lambda interval: interval.group().replace(" ", "\u00a0"), text)
    text = re.sub(r"(?<=\d) ± (?=\d)|(?<=[λp]) = (?=\S)", lambda sign: sign.group().replace(" ", "\u00a0"), text)
    return re.sub(r"(?<=\d) (?=(?:%|ms|MB|s|nats|points|times)(?!\w))", "\u00a0", text)


def breakable(name: str) -> Markup:
    """A name that may break after its underscores, in a narrow cell, rather than anywhere."""
    from markupsafe import Markup, escape

    return Markup("_<wbr>").join(map(escape, name.split("_")))


def _resource(name: str) -> str:
    return resources.files("qvec_deploy.report").joinpath(name).read_text(encoding="utf-8")

"""Reports -> one self-contained HTML page: no script, no network, light and dark, phone and paper."""

from __future__ import annotations

from typing import Any

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
from qvec_deploy.report.render_html import page_environment, resource
from qvec_deploy.report.selection_plot import selection_figures
from qvec_deploy.report.table import batch_columns, columns
from qvec_deploy.report.time_plot import distributions, layer_times


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
    return page_environment().get_template(template).render(css=resource("report.css"), **values)

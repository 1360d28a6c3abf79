"""The report of one build as a page."""

from __future__ import annotations

from collections.abc import Iterable

from qvec_deploy.bench.results import Report
from qvec_deploy.bench.summary import CandidateRow, numbered_warnings, rows
from qvec_deploy.report import accuracy_section as accuracy
from qvec_deploy.report import prose
from qvec_deploy.report import report_verdict as verdict
from qvec_deploy.report import timing_section as timing
from qvec_deploy.report.columns import batch_table, comparison_table
from qvec_deploy.report.environment_facts import environment_facts
from qvec_deploy.report.headline_tiles import tiles
from qvec_deploy.report.layer_plot import layer_errors
from qvec_deploy.report.page import Answer, Beside, Block, Card, Cards, Doubts, Facts, Page, Pill, Prose, Section
from qvec_deploy.report.plots import trade_offs
from qvec_deploy.report.reliability_plot import reliability
from qvec_deploy.report.selection_plot import selection_figures
from qvec_deploy.report.time_plot import distributions, layer_times

INTERVALS = "Small numbers in brackets are 95 % intervals."
MARKS = "Raised numbers refer to the warnings."
_OF_BATCHES = (
    f"{INTERVALS} p99 is left out where the samples do not support it; beside it is how many more it takes. CoV is the "
    "coefficient of variation."
)


def report_page(report: Report) -> Page:
    """Everything that a report says."""
    computed = rows(report)
    images = f"{report.dataset}, {report.split}, {report.images:,} images"
    return Page(
        title=report.title,
        kicker=f"{report.recipe} · {images}" if report.images else report.recipe,
        lead=(Prose(prose.headline(report, computed), "headline"), Prose(prose.setup(report), "setup")),
        answer=_answer(report),
        tiles=tiles(report, computed),
        sections=(
            Section("gates", "Gates", _given(verdict.gates(report))),
            Section("comparison", "Comparison", (comparison(report, computed),)),
            Section("warnings", "Warnings", doubts(report)),
            Section("trade-offs", "Trade-offs", trade_offs(computed)),
            Section("accuracy", "Accuracy", _accuracy(report, computed)),
            Section("latency", "Latency", _latency(report, computed)),
            Section("layers", "Layers and roofline", _layers(report, computed)),
            Section("selection", "Selection", _selection(report)),
            Section("method", "How it was measured", (Facts(prose.method(report, computed)),), folded=True),
            Section("candidates", "Candidates", (_cards(report, computed),), folded=True),
            Section("environment", "Environment", (Facts(environment_facts(report)),), folded=True),
        ),
        footer=footer(report),
    )


def comparison(report: Report, computed: tuple[CandidateRow, ...], anchors: str = "") -> Block:
    """The main table, with what its small and raised numbers mean."""
    note = f"{INTERVALS} {MARKS}" if report.warnings else INTERVALS
    return comparison_table(report, computed, note=note, anchors=anchors)


def doubts(report: Report, anchors: str = "") -> tuple[Block, ...]:
    """The warnings, numbered."""
    return (Doubts(numbered_warnings(report), anchors),) if report.warnings else ()


def footer(report: Report) -> str:
    """Who wrote it, and where the samples are."""
    return (
        f"{report.created_by} · report schema {report.schema_version}. Every sample is in report.json beside this page."
    )


def _answer(report: Report) -> Answer | None:
    if report.selected is None:
        return None
    return Answer(report.selected, f"ships for {report[report.selected].runtime}", Pill(*verdict.standing(report)))


def _accuracy(report: Report, computed: tuple[CandidateRow, ...]) -> tuple[Block, ...]:
    closer = _given(accuracy.by_class(report), accuracy.changes(report))
    drawn = _given(reliability(report))
    beside = (Beside(drawn, closer),) if drawn and closer else (*drawn, *closer)
    return (*_given(accuracy.answers(report, computed)), *beside)


def _latency(report: Report, computed: tuple[CandidateRow, ...]) -> tuple[Block, ...]:
    table = batch_table(computed, _OF_BATCHES)
    if table is None:
        return ()
    figures, terms = distributions(report), Facts(timing.definitions(report), "Terms")
    beside: tuple[Block, ...] = (*figures, terms) if len(figures) > 1 else (Beside(figures, (terms,)),)
    return (table, *_given(timing.stages(report)), *beside, *_given(timing.scenarios(report)))


def _layers(report: Report, computed: tuple[CandidateRow, ...]) -> tuple[Block, ...]:
    return _given(timing.predicted(report, computed), layer_errors(report), layer_times(report))


def _selection(report: Report) -> tuple[Block, ...]:
    if report.selection is None:
        return ()
    said = [
        Prose(f"Selected: {verdict.chosen(report)}"),
        *(Prose(each, "chosen important") for each in verdict.remarks(report)),
    ]
    return (*said, *_given(verdict.finalists(report), verdict.donors(report)), *selection_figures(report))


def _cards(report: Report, computed: Iterable[CandidateRow]) -> Cards:
    return Cards(
        tuple(Card(row.candidate.name, row.candidate.role, row.selected, prose.facts(report, row)) for row in computed)
    )


def _given(*blocks: Block | None) -> tuple[Block, ...]:
    return tuple(block for block in blocks if block is not None)

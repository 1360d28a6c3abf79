"""The report of one build as a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from qvec_deploy import formatting
from qvec_deploy.bench.environment import Environment, GpuState
from qvec_deploy.bench.results import Report
from qvec_deploy.bench.summary import DISTURBED, CandidateRow, LatencyRow, dataset_named, numbered_warnings, rows
from qvec_deploy.report import accuracy_section as accuracy
from qvec_deploy.report import first_screen, prose
from qvec_deploy.report import report_verdict as verdict
from qvec_deploy.report import timing_section as timing
from qvec_deploy.report.columns import batch_table, comparison_table, speed_up_cell
from qvec_deploy.report.layer_plot import layer_errors
from qvec_deploy.report.page import (
    Beside,
    Block,
    Card,
    Cards,
    Doubts,
    Facts,
    HeadlineTile,
    Page,
    Prose,
    Section,
)
from qvec_deploy.report.plots import trade_offs
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
    images = f"{report.images:,} images of {dataset_named(report)}"
    decided = report.selected is not None
    return Page(
        title=report.title,
        kicker=f"{report.recipe} · {images}" if report.images else report.recipe,
        lead=() if decided else (Prose(prose.headline(report, computed), "headline"),),
        answer=first_screen.answer(report),
        tiles=headline_tiles(report, computed),
        opening=_opening(report, computed) if decided else (),
        sections=(
            Section("gates", "Gates", _given(verdict.gates(report))),
            Section("comparison", "Comparison", (comparison(report, computed), Prose(prose.setup(report), "setup"))),
            Section("warnings", "Warnings", doubts(report)),
            Section("trade-offs", "Trade-offs", trade_offs(computed)),
            Section("accuracy", "Accuracy", _accuracy(report, computed)),
            Section("latency", "Latency", _latency(report, computed)),
            Section(
                "layers",
                "Layers and roofline",
                _given(
                    timing.predicted(report, computed),
                    timing.products(report, computed),
                    layer_errors(report),
                    layer_times(report),
                ),
            ),
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


def _opening(report: Report, computed: tuple[CandidateRow, ...]) -> tuple[Block, ...]:
    told = (*first_screen.known(report, computed), *first_screen.file_and_commands(report))
    return (Beside(told, (first_screen.words(report),)),)


def _accuracy(report: Report, computed: tuple[CandidateRow, ...]) -> tuple[Block, ...]:
    closer = _given(accuracy.by_class(report), accuracy.changes(report))
    drawn = _given(accuracy.reliability(report))
    beside = (Beside(drawn, closer),) if drawn and closer else (*drawn, *closer)
    return (*_given(accuracy.answers(report, computed)), *beside)


def _latency(report: Report, computed: tuple[CandidateRow, ...]) -> tuple[Block, ...]:
    table = batch_table(computed, _OF_BATCHES)
    if table is None:
        return ()
    figures, terms = distributions(report), Facts(timing.definitions(report), "Terms")
    beside: tuple[Block, ...] = (*figures, terms) if len(figures) > 1 else (Beside(figures, (terms,)),)
    return (table, *_given(timing.stages(report)), *beside, *_given(timing.scenarios(report)))


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


def headline_tiles(report: Report, computed: Sequence[CandidateRow]) -> tuple[HeadlineTile, ...]:
    """The selected candidate at a glance; those that were measured."""
    row = next((row for row in computed if row.selected), None)
    if row is None:
        return ()
    made = (_top1_tile(report, row), _size_tile(report, row), _latency_tile(report, row), _memory_tile(row))
    return tuple(tile for tile in made if tile is not None)


def _top1_tile(report: Report, row: CandidateRow) -> HeadlineTile | None:
    if row.top1 is None:
        return None
    count = report.images
    notes = [f"95 % interval {formatting.percent_interval(row.top1, count)}"]
    for other in (report.first("ptq"), report.first("float")):
        delta = row.deltas.get(other.name) if other else None
        if other is not None and delta is not None:
            interval = formatting.points_interval(delta, count)
            notes.append(f"{formatting.points(delta.value, count)} points to {other.name} {interval}")
    return HeadlineTile("Top-1 accuracy", formatting.percent(row.top1.value, count), "%", tuple(notes))


def _size_tile(report: Report, row: CandidateRow) -> HeadlineTile:
    candidate, full = row.candidate, report.first("float")
    notes = [f"{formatting.short(candidate.stored_bits_per_weight)} bits per quantized weight"]
    if full is not None and full is not candidate:
        share = candidate.stored_bytes / full.stored_bytes
        notes.append(f"{100 * share:.0f} % of {full.name}, {formatting.megabytes(full.stored_bytes)} MB")
    return HeadlineTile("Stored size", formatting.megabytes(candidate.stored_bytes), "MB", tuple(notes))


def _latency_tile(report: Report, row: CandidateRow) -> HeadlineTile | None:
    entry = row.first_latency
    if entry is None:
        return None
    notes = [f"median, batch {entry.batch_size}, {entry.shown(entry.images_per_s)} images/s"]
    if not row.baseline:
        notes.append(_speed(report, row, entry))
    if entry.disturbed:
        notes.append(DISTURBED)
    return HeadlineTile("Latency", entry.shown(entry.median_ms), "ms", tuple(notes))


def _speed(report: Report, row: CandidateRow, entry: LatencyRow) -> str:
    if entry.speed_up is None:
        return f"too few samples to compare with {report.baseline}"
    doubt = ": no clear difference" if entry.speed_up.contains(1.0) else ""
    return f"{speed_up_cell(row, entry)} over {report.baseline}{doubt}"


def _memory_tile(row: CandidateRow) -> HeadlineTile | None:
    footprint = row.candidate.footprint
    if footprint is None or footprint.peak_rss_bytes is None:
        return None
    added = formatting.megabytes(footprint.peak_rss_bytes - footprint.baseline_rss_bytes)
    notes = (
        f"of which loading and running add {added} MB",
        f"{formatting.short(row.candidate.runtime_bits_per_weight)} bits per weight at run time",
        f"loads in {footprint.load_s:.2f} s",
    )
    return HeadlineTile("Peak memory", formatting.megabytes(footprint.peak_rss_bytes), "MB", notes)


def environment_facts(report: Report) -> tuple[tuple[str, str], ...]:
    """The machine and the software: pairs of a term and its value."""
    machine = report.environment
    entries = [
        ("CPU", machine.cpu),
        ("CPU flags", ", ".join(machine.cpu_flags)),
        ("Cores", f"{machine.logical_cores} logical, {machine.usable_cores} usable, {machine.threads} threads used"),
        ("Affinity", ", ".join(map(str, machine.affinity)) if machine.affinity else ""),
        ("Load average", _load(machine)),
        ("Frequency governor", machine.governor or "not visible"),
        ("Frequency", f"{machine.frequency_mhz:.0f} MHz right after measuring" if machine.frequency_mhz else ""),
        ("Memory", f"{machine.memory_bytes / 2**30:.1f} GiB"),
        *(_gpu(machine.gpu) if machine.gpu else ()),
        ("System", machine.operating_system),
        ("Python", machine.python),
        *sorted(machine.packages.items()),
    ]
    return tuple((term, text) for term, text in entries if text)


def _load(machine: Environment) -> str:
    after = machine.load_average_after
    before = f"{machine.load_average:g} before measuring"
    return before if after is None else f"{before}, {after:g} after"


def _gpu(gpu: GpuState) -> tuple[tuple[str, str], ...]:
    locked = {True: ", locked", False: ", not locked", None: ""}[gpu.clocks_locked]
    clocks = [
        f"{gpu.sm_clock_mhz:.0f} MHz{_of(gpu.max_sm_clock_mhz, 'MHz')}" if gpu.sm_clock_mhz else "",
        f"memory {gpu.memory_clock_mhz:.0f} MHz" if gpu.memory_clock_mhz else "",
    ]
    shown = ", ".join(text for text in clocks if text)
    power = f"{gpu.power_w:.0f} W{_of(gpu.power_limit_w, 'W')}" if gpu.power_w is not None else ""
    return (
        ("GPU", f"{gpu.name}, {gpu.memory_bytes / 2**30:.1f} GiB, driver {gpu.driver}"),
        ("GPU clocks", f"{shown}{locked}" if shown else locked.removeprefix(", ")),
        ("GPU power", power),
        ("GPU temperature", f"{gpu.temperature_c:g} °C" if gpu.temperature_c is not None else ""),
        ("GPU throttling", ", ".join(gpu.throttling) or "none was seen"),
    )


def _of(limit: float | None, unit: str) -> str:
    return f" of {limit:.0f} {unit}" if limit is not None else ""

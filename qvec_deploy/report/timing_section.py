"""Parts of a run, MLPerf's scenarios, predicted times beside measured ones, and what the words mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from qvec_deploy import formatting
from qvec_deploy.bench.latency import DEFINITIONS
from qvec_deploy.bench.results import Report
from qvec_deploy.bench.roofline.roofline_values import TimePrediction
from qvec_deploy.bench.scenarios import Scenario, scenario_result
from qvec_deploy.bench.statistics import median
from qvec_deploy.bench.summary import CandidateRow, LatencyRow
from qvec_deploy.report.page import Table

OF_STAGES = ("enqueue", "H2D", "GPU compute time", "D2H")


def definitions(report: Report) -> tuple[tuple[str, str], ...]:
    """The terms of the latency tables, a sentence each; empty where nothing was timed."""
    entries = [entry for candidate in report.candidates for entry in candidate.latency]
    staged = any(entry.stages is not None for entry in entries)
    shown = {term: text for term, text in DEFINITIONS.items() if staged or term not in OF_STAGES}
    return tuple((term[:1].upper() + term[1:], text) for term, text in shown.items()) if entries else ()


def scenarios(report: Report, asked: Collection[str] = tuple(Scenario)) -> Table | None:
    """MLPerf's metrics of the baseline and of what ships, or of all where nothing does; None without samples."""
    names = [candidate.name for candidate in report.candidates]
    shown = names if report.selected is None else list(dict.fromkeys((report.baseline, report.selected)))
    wanted = [scenario for scenario in Scenario if scenario in asked]
    found = [(name, scenario_result(scenario, report[name].latency)) for name in shown for scenario in wanted]
    cells = tuple(
        (
            name,
            result.scenario.value.replace("_", " "),
            str(result.batch_size),
            result.metric,
            f"{formatting.three(result.value)} {result.unit}" if result.value is not None else formatting.NONE,
            result.counts,
        )
        for name, result in found
        if result is not None
    )
    if not cells:
        return None
    note = (
        "Metrics as MLPerf Inference defines them; no MLPerf results, for its load generator did not send the queries."
    )
    titles = ("Candidate", "Scenario", "Batch", "Metric", "Value", "What was run")
    return Table("MLPerf's scenarios", titles, cells, "llrlrl", report.selected, note, folded=True)


def stages(report: Report) -> Table | None:
    """Medians of the parts of a run, a row per candidate and batch size; None where no engine has parts."""
    rows = []
    for candidate in report.candidates:
        for entry in candidate.latency:
            if entry.stages is None:
                continue
            parts = (entry.stages.enqueue_ms, entry.stages.h2d_ms, entry.stages.compute_ms, entry.stages.d2h_ms)
            cells = (formatting.three(median(part)) for part in (*parts, entry.samples_ms))
            rows.append((candidate.name, str(entry.batch_size), *cells))
    if not rows:
        return None
    titles = ("Candidate", "Batch", "Enqueue, ms", "H2D, ms", "GPU compute, ms", "D2H, ms", "Host latency, ms")
    note = "Medians. Parts are taken in runs of their own, so that they need not add up to the host latency."
    return Table("Parts of a run", titles, tuple(rows), "lrrrrrr", report.selected, note)


def predicted(report: Report, rows: Sequence[CandidateRow]) -> Table | None:
    """The roofline's time beside the measured one, a row per batch size; None without a roofline."""
    device = report.device
    cells = []
    for row in _unlike(rows):
        measured = {entry.batch_size: entry for entry in row.latency}
        for entry in row.candidate.predictions:
            cells.append(_prediction(row, entry, measured.get(entry.batch_size)))
    if device is None or not cells:
        return None
    rates = ", ".join(f"{formatting.three(rate)} Gop/s {kind}" for kind, rate in device.gflops.items())
    threads = f", {device.threads} thread{'' if device.threads == 1 else 's'}" if device.threads else ""
    note = (
        f"Roofline of {device.name}{threads}, {device.source}: {formatting.three(device.bandwidth_gb_s)} GB/s, "
        f"{rates}. It is what memory and arithmetic take at least, every layer at its bound and without overhead, "
        "where weights are read from memory in every run; a cache that keeps them can be faster. Activation functions, "
        "residuals and copies are taken to be fused with their neighbours. The rest of the measured time is what there "
        "is to gain."
    )
    titles = ("Candidate", "Batch", "Predicted, ms", "Measured, ms", "Measured / predicted", "Memory-bound layers")
    return Table("Predicted and measured time", titles, tuple(cells), "lrrrrr", report.selected, note, titled=False)


def products(report: Report, rows: Sequence[CandidateRow]) -> Table | None:
    """What the engines multiply, a row for every kind of product; None where no compiler told."""
    kinds = []
    for row in rows:
        counts = Counter((each.inputs, each.constants, each.fused) for each in row.candidate.products)
        kinds += [(row.candidate.name, *kind, count) for kind, count in counts.items()]
    if not kinds:
        return None
    note = (
        "By the compiler's own log. Weights that are not read as stored would be expanded by a kernel of their own at "
        "every run. Every layer by name is in report.json."
    )
    cells = tuple(
        (name, str(count), " + ".join(inputs), " + ".join(constants), "as stored" if fused else "expanded at every run")
        for name, inputs, constants, fused, count in kinds
    )
    titles = ("Candidate", "Linears", "Inputs", "Weights and scales", "Weights are read")
    return Table("Matrix products of the engines", titles, cells, "lrlll", report.selected, note)


def _unlike(rows: Sequence[CandidateRow]) -> list[CandidateRow]:
    """One row of every set with the same predictions: what ships, or the first."""
    seen: dict[tuple[TimePrediction, ...], CandidateRow] = {}
    for row in rows:
        if row.candidate.predictions and (row.selected or row.candidate.predictions not in seen):
            seen[row.candidate.predictions] = row
    return list(seen.values())


def _prediction(row: CandidateRow, entry: TimePrediction, measured: LatencyRow | None) -> tuple[str, ...]:
    bound = sum(layer.bound == "memory" for layer in entry.layers)
    return (
        row.candidate.name,
        str(entry.batch_size),
        formatting.three(entry.ms),
        measured.shown(measured.median_ms) if measured else formatting.NONE,
        formatting.times(measured.median_ms / entry.ms) if measured and entry.ms > 0 else formatting.NONE,
        f"{bound} of {len(entry.layers)}",
    )

"""What several bundles ship, beside each other: each as it was measured in its own run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from qvec_deploy import formatting
from qvec_deploy.bench.accuracy import PairedAnswers
from qvec_deploy.bench.decision import decide
from qvec_deploy.bench.results import Candidate, Report
from qvec_deploy.bench.statistics import paired_difference
from qvec_deploy.bench.summary import DISTURBED, CandidateRow, dataset_named, rows
from qvec_deploy.errors import IncompatibleError
from qvec_deploy.formatting import NONE
from qvec_deploy.report import candidate_text, prose
from qvec_deploy.report import report_verdict as verdict
from qvec_deploy.report.build_report import comparison, doubts, footer
from qvec_deploy.report.columns import share_cell
from qvec_deploy.report.first_screen import STYLES
from qvec_deploy.report.page import Answer, Block, Fold, Page, Pill, Prose, Section, Table
from qvec_deploy.report.plots import Place, Point, scatters
from qvec_deploy.report.svg import Figure


@dataclass(frozen=True)
class RankedBundle:
    """One bundle in the overview.

    Attributes:
        against_best: Its answers against the best one's, image by image; None where not both were kept.
    """

    name: str
    report: Report
    row: CandidateRow
    against_best: PairedAnswers | None = None


@dataclass(frozen=True)
class Overview:
    """Bundles of one task, the best first."""

    standings: tuple[RankedBundle, ...]

    @property
    def best(self) -> RankedBundle:
        """The first."""
        return self.standings[0]


def overview(
    reports: Mapping[str, Report], paired: Callable[[str, str], PairedAnswers | None] = lambda name, other: None
) -> Overview:
    """Order bundles: gates (all passed, none asked for, some missed), then accuracy, then size, then latency.

    Args:
        paired: Gives the answers of the first bundle against those of the second; None where nobody kept them.
    """
    first_name, first = next(iter(reports.items()))
    standings = []
    for name, report in reports.items():
        odd = [field for field in ("dataset", "split", "images") if getattr(report, field) != getattr(first, field)]
        if report.class_names and first.class_names and report.class_names != first.class_names:
            odd.append("classes")
        if odd:
            raise IncompatibleError(
                f"{name} and {first_name} differ in {', '.join(odd)}",
                hint="bundles stand beside each other on the same images; report those of one task together",
            )
        shipped = next((row for row in rows(report) if row.selected), None)
        if shipped is None:
            raise IncompatibleError(f"{name} holds no candidate", hint="report what `qvec-deploy build` has written")
        standings.append(RankedBundle(name, report, shipped))
    best, *others = sorted(standings, key=_rank)
    return Overview((best, *(replace(each, against_best=paired(each.name, best.name)) for each in others)))


def _rank(standing: RankedBundle) -> tuple[int, float, int, float]:
    row = standing.row
    accuracy = row.top1.value if row.top1 is not None else -1.0
    latency = row.first_latency.median_ms if row.first_latency is not None else float("inf")
    gates = ("passed", "none", "missed").index(verdict.standing(standing.report)[1])
    return gates, -accuracy, row.candidate.stored_bytes, latency


def headline(shown: Overview) -> str:
    """Which is first, what it costs, and which others the accuracy alone does not tell apart from it."""
    best, row = shown.best, shown.best.row
    parts = [f"{formatting.megabytes(row.candidate.stored_bytes)} MB"]
    if row.top1 is not None:
        parts.insert(0, f"{formatting.percent(row.top1.value, best.report.images)} % top-1")
    if row.first_latency is not None:
        doubt = f" ({DISTURBED})" if row.first_latency.disturbed else ""
        parts.append(
            f"{row.first_latency.shown(row.first_latency.median_ms)} ms at batch {row.first_latency.batch_size}{doubt}"
        )
    sentence = f"{best.name} comes first: {', '.join(parts)}; {verdict.standing(best.report)[0]}."
    for pairs, why in ((True, "image by image, no clear difference"), (False, "their intervals overlap")):
        others = [other for other in shown.standings[1:] if (other.against_best is not None) is pairs]
        near = [other.name for other in others if _near(other, best)]
        if near:
            sentence += f" By accuracy alone it is not clearly apart from {', '.join(near)}: {why}."
    return sentence


def _near(other: RankedBundle, best: RankedBundle) -> bool:
    """Whether the accuracies may be the same: from the same images where answers were kept, else from each alone."""
    one, two, paired = other.row.top1, best.row.top1, other.against_best
    if paired is not None:
        return paired_difference(paired.gained, paired.lost, paired.count).contains(0.0)
    return one is not None and two is not None and one.low <= two.high and two.low <= one.high


def caveat(shown: Overview) -> str:
    """What must not be read out of numbers of separate runs."""
    first = shown.best.report.environment
    places = {
        (one.report.environment.cpu, one.report.environment.gpu.name if one.report.environment.gpu else None)
        for one in shown.standings
    }
    threads = sorted({one.report.environment.threads for one in shown.standings})
    where = "on different machines" if len(places) > 1 else f"on {first.cpu}"
    used = " to ".join(str(count) for count in dict.fromkeys((threads[0], threads[-1])))
    return (
        f"Latencies come from separate runs, {where} with {used} thread{'' if used == '1' else 's'}, and are not "
        "paired: a difference between two bundles may be one of the machine. A speed-up is over the baseline of the "
        "bundle's own run. qvec-deploy compare and qvec-deploy bench measure bundles side by side."
    )


def bundles_table(shown: Overview) -> Table:
    """A row per bundle, the best first."""
    images = shown.best.report.images
    same = all(standing.name == standing.row.candidate.name for standing in shown.standings)
    columns: tuple[str, ...] = ("Bundle", f"Top-1, %, n = {images:,}", "Size, MB", "Latency, ms", "Gates", "Speed-up")
    columns += ("Bits, stored / run time", "Patch" if same else "In the bundle", "Engine")
    rows = tuple(_cells(standing, same) for standing in shown.standings)
    note = caveat(shown)
    return Table(
        "Bundles, the best first", columns, rows, "lrrrlrrll", shown.best.name, note, badge="first", titled=False
    )


def _cells(standing: RankedBundle, same: bool) -> tuple[str, ...]:
    """Of one bundle; where every bundle ships what it is named after, the name is not repeated."""
    row, report = standing.row, standing.report
    candidate, entry = row.candidate, row.first_latency
    ratio = entry.speed_up if entry is not None and not row.baseline else None
    return (
        standing.name,
        str(share_cell(row.top1, report.images)),
        formatting.megabytes(candidate.stored_bytes),
        f"{entry.shown(entry.median_ms)} (batch {entry.batch_size})" if entry is not None else NONE,
        verdict.standing(report)[0],
        f"{formatting.times(ratio.value, ratio)} {formatting.times_interval(ratio)}" if ratio is not None else NONE,
        candidate_text.bits(candidate),
        (_patch(candidate).removeprefix(", ") or "none") if same else candidate.name + _patch(candidate),
        f"{candidate.runtime}, {candidate.lowering}",
    )


def _patch(candidate: Candidate) -> str:
    patch = candidate.patch
    if patch is None:
        return ""
    donors = f", {len(patch.donors)} donor{'' if len(patch.donors) == 1 else 's'}" if patch.donors else ""
    return f", λ = {formatting.short(patch.lam)}{donors}"


def figures(shown: Overview) -> tuple[Figure, ...]:
    """Accuracy against size and against latency, a point per bundle."""
    words = "A point per bundle. Up and to the left is better; the line is the front, bars are 95 % intervals."
    captions = {"size": words, "latency": f"{words} Latencies come from separate runs and are not paired."}
    return scatters(captions, lambda place: _points(shown, place))


def _points(shown: Overview, place: Place) -> list[Point]:
    """The bundles that can be placed, by their own names: what a bundle ships, it ships."""
    placed = ((standing, place(standing.row)) for standing in shown.standings)
    return [
        replace(point, name=standing.name, selected=standing is shown.best, ships=True)
        for standing, point in placed
        if point is not None
    ]


def overview_page(shown: Overview) -> Page:
    """What several bundles ship side by side, then each report's own tables, folded."""
    best = shown.best
    first = best.report
    return Page(
        title=f"{len(shown.standings)} bundles on {first.dataset}",
        kicker=f"{first.images:,} images of {dataset_named(first)}",
        lead=(Prose(headline(shown), "headline"),),
        answer=Answer(best.name, f"for {best.row.candidate.runtime} comes first", Pill(*_decision(first))),
        sections=(
            Section("bundles", "Bundles, the best first", (bundles_table(shown),)),
            Section("trade-offs", "Trade-offs", figures(shown)),
            Section(
                "runs",
                "Each bundle in its own run",
                tuple(_run(one, f"run-{index}") for index, one in enumerate(shown.standings, start=1)),
            ),
        ),
        footer=footer(first),
    )


def _run(one: RankedBundle, name: str) -> Fold:
    report, anchors = one.report, f"{name}-"
    computed = rows(report)
    gates = verdict.gates(report)
    blocks: list[Block] = [Prose(prose.headline(report, computed)), comparison(report, computed, anchors)]
    blocks += [gates] if gates is not None else []
    return Fold(name, one.name, (*blocks, *doubts(report, anchors)), Pill(*_decision(report)))


def _decision(report: Report) -> tuple[str, str]:
    """What follows for one bundle, and how it is drawn."""
    decision = decide(report)
    return (decision.verdict, STYLES[decision.verdict]) if decision is not None else verdict.standing(report)

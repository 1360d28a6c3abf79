"""What a report says in sentences: the verdict on top, how each number came about, what each candidate is."""

from __future__ import annotations

from collections.abc import Sequence

from qvec_deploy import formatting
from qvec_deploy.bench.results import Candidate, Report
from qvec_deploy.bench.statistics import Estimate, speed_up
from qvec_deploy.bench.summary import DISTURBED, CandidateRow, dataset_named
from qvec_deploy.report import candidate_text
from qvec_deploy.report import report_verdict as verdict

CHANCE = 0.05  # of calling any rival better that is not: divided by their number (Bonferroni)
SMALLER = 0.05  # of the bytes: less is not worth a word
MOST_NAMED = 4  # engines in a headline

ROLE_TEXT = {
    "float": "the receiver, not quantized",
    "ptq": "quantized without a patch",
    "patched": "patched, then quantized",
    "variant": "variant or control",
}


def headline(report: Report, rows: Sequence[CandidateRow]) -> str:
    """The verdict on the selected candidate: missed gates first, and no difference that the data do not show."""
    row = next((row for row in rows if row.selected), None)
    if row is None:
        return _side_by_side(report, rows)
    missed, compared = verdict.missed(report), _compared(report, row)
    parts = (
        f"{row.candidate.name} {missed}." if missed else "",
        _kept(report, row),
        f"That is {compared}." if compared else "",
        _timed(report, row),
        _surpassed(report, row),
        _as_good(report, row, rows),
        *verdict.remarks(report),
    )
    return " ".join(part for part in parts if part)


def remarkable(report: Report, row: CandidateRow, rows: Sequence[CandidateRow]) -> tuple[str, ...]:
    """What the selected candidate is held against others, a sentence each."""
    compared = _compared(report, row)
    parts = (
        f"{row.candidate.name} is {compared}." if compared else "",
        _surpassed(report, row),
        _as_good(report, row, rows),
        *verdict.remarks(report),
    )
    return tuple(part for part in parts if part)


def _kept(report: Report, row: CandidateRow) -> str:
    candidate, full = row.candidate, report.first("float")
    sentence = f"{candidate.name} takes {formatting.megabytes(candidate.stored_bytes)} MB"
    if row.top1 is not None:
        percent = formatting.percent(row.top1.value, report.images)
        sentence = f"{candidate.name} reaches {percent} % top-1 in {formatting.megabytes(candidate.stored_bytes)} MB"
    if full is None or full is candidate:
        return f"{sentence}."
    return f"{sentence}, {_relation(full.stored_bytes / candidate.stored_bytes, 'smaller', 'larger')} {full.name}."


def _relation(ratio: float, above: str, below: str) -> str:
    return f"{ratio:.1f} times {above} than" if ratio >= 1 else f"{1 / ratio:.1f} times {below} than"


def _compared(report: Report, row: CandidateRow) -> str:
    parts = []
    for other in (report.first("ptq"), report.first("float")):
        delta = row.deltas.get(other.name) if other else None
        if other is not None and delta is not None:
            parts.append(_difference(delta, other.name, report.images))
    return " and ".join(parts)


def _difference(delta: Estimate, other: str, count: int) -> str:
    interval = formatting.points_interval(delta, count)
    if delta.contains(0.0):
        return f"not clearly different from {other} ({formatting.points(delta.value, count)} points {interval})"
    size = formatting.points(abs(delta.value), count).lstrip("+")
    return f"{size} points {'above' if delta.value > 0 else 'below'} {other} {interval}"


def _timed(report: Report, row: CandidateRow) -> str:
    entry = row.first_latency
    if entry is None:
        return ""
    images = "One image takes" if entry.batch_size == 1 else f"A batch of {entry.batch_size} takes"
    sentence = f"{images} {entry.shown(entry.median_ms)} ms"
    ratio = entry.speed_up
    doubt = f" That was {DISTURBED} ({', '.join(entry.disturbed)})." if entry.disturbed else ""
    if row.baseline or ratio is None:
        return f"{sentence}.{doubt}"
    times, interval = formatting.times(ratio.value, ratio), formatting.times_interval(ratio)
    if ratio.contains(1.0):
        return f"{sentence}, not clearly different from {report.baseline} ({times} {interval}).{doubt}"
    return f"{sentence}: {times} the speed of {report.baseline} {interval}.{doubt}"


def _surpassed(report: Report, row: CandidateRow) -> str:
    """What else takes no more room and is clearly more accurate: the reader may want to ship that."""
    shipped = row.candidate
    rivals = [
        other
        for other in report.candidates
        if other.name in shipped.paired
        and (other.patch is None or other.patch.control is None)
        and other.stored_bytes <= shipped.stored_bytes
    ]
    better = [
        other
        for other in rivals
        if row.deltas[other.name].value < 0 and row.p_values[other.name] * len(rivals) < CHANCE
    ]
    if not better:
        return ""
    best = min(better, key=lambda other: row.deltas[other.name].value)
    points = formatting.points(-row.deltas[best.name].value, report.images).lstrip("+")
    return f"{best.name} is {points} points above it in no more room."


def _as_good(report: Report, row: CandidateRow, rows: Sequence[CandidateRow]) -> str:
    """What is not clearly less accurate and clearly faster, best of all without taking more room; else the smallest."""
    shipped, found = row.candidate, []
    for other in rows:
        candidate, p = other.candidate, row.p_values.get(other.candidate.name)
        control = candidate.patch is not None and candidate.patch.control is not None
        if p is None or control or (p < CHANCE and row.deltas[candidate.name].value > 0):
            continue
        gain = _gain(row, other)
        smaller = candidate.stored_bytes < (1 - SMALLER) * shipped.stored_bytes
        if gain is not None or smaller:
            room = candidate.stored_bytes <= shipped.stored_bytes
            found.append((room, gain.value if gain is not None else 0.0, -candidate.stored_bytes, other, gain))
    if not found:
        return ""
    *_, best, gain = max(found, key=lambda entry: entry[:3])
    name, ratio = best.candidate.name, shipped.stored_bytes / best.candidate.stored_bytes
    p = row.p_values[name]
    accuracy = f"not clearly different in accuracy (p = {formatting.p_value(p)})" if p >= CHANCE else "more accurate"
    claims = []
    if gain is not None:
        faster = f"{formatting.times(gain.value, gain)} as fast {formatting.times_interval(gain)}"
        disturbed = any(entry.disturbed for one in (row, best) for entry in one.latency[:1])
        claims.append(f"may be {faster} (that too was {DISTURBED})" if disturbed else f"is {faster}")
    if abs(ratio - 1) > SMALLER:
        claims.append(f"is {_relation(ratio, 'smaller', 'larger').removesuffix(' than')}")
    return f"{name}, {accuracy}, {' and '.join(claims)}."


def _gain(row: CandidateRow, other: CandidateRow) -> Estimate | None:
    """How many times faster the other is, block by block; None unless that is clear."""
    own, theirs = row.first_latency, other.first_latency
    if own is None or theirs is None or own.batch_size != theirs.batch_size:
        return None
    gain = speed_up(row.candidate.latency[0].samples_ms, other.candidate.latency[0].samples_ms)
    return gain if gain is not None and gain.low > 1.0 else None


def _side_by_side(report: Report, rows: Sequence[CandidateRow]) -> str:
    """What was measured, where nothing ships: every engine, of many only their number."""
    if len(rows) > MOST_NAMED:
        shown = f"{len(rows)} engines were"
    else:
        *others, last = [_in_short(report, row) for row in rows]
        shown = f"{', '.join(others)} and {last} were" if others else f"{last} was"
    beside = " side by side" if len(rows) > 1 else ""
    relative = f" Speed-ups are over {report.baseline}." if len(rows) > 1 and rows[0].latency else ""
    doubts = dict.fromkeys(doubt for row in rows for entry in row.latency[:1] for doubt in entry.disturbed)
    doubt = f" Latencies were {DISTURBED} ({', '.join(doubts)})." if doubts else ""
    return f"{shown} measured{beside}.{relative}{doubt}"


def _in_short(report: Report, row: CandidateRow) -> str:
    parts = [f"{formatting.megabytes(row.candidate.stored_bytes)} MB"]
    if row.top1 is not None:
        parts.insert(0, f"{formatting.percent(row.top1.value, report.images)} % top-1")
    if row.first_latency is not None:
        parts.append(f"{row.first_latency.shown(row.first_latency.median_ms)} ms")
    return f"{row.candidate.name} ({', '.join(parts)})"


def setup(report: Report) -> str:
    """What was built and what it was tried on: quantizer, levels, skip list, lambda, donors, images."""
    shown = _described(report)
    accuracy = f"Accuracy is top-1 on {report.images:,} images of {dataset_named(report)}."
    return (
        f"Weights of {shown.name}: {candidate_text.grid(shown)}.{_skipped(shown)} "
        f"Patch: {candidate_text.mixture(shown)}. "
        f"{accuracy if report.images else 'Accuracy was not measured.'}"
    )


def method(report: Report, rows: Sequence[CandidateRow]) -> tuple[tuple[str, str], ...]:
    """How the numbers came about: pairs of a term and its sentences."""
    entries = [
        ("Accuracy", _accuracy_method(report)),
        ("Preprocessing", f"{report.preprocessing}." if report.preprocessing else ""),
        ("Latency", _latency_method(report, rows)),
        ("Memory", _memory_method(report)),
        ("Selection", _selection_method(report)),
        ("Gates", _gates_method(report)),
        ("Size", "MB are millions of bytes. Bits per weight are those of a quantized weight with its scales."),
    ]
    return tuple((term, text) for term, text in entries if text)


def _described(report: Report) -> Candidate:
    """Whose quantizer stands for the report: the selected candidate's, else the first quantized one's."""
    if report.selected is not None:
        return report[report.selected]
    return next((entry for entry in report.candidates if entry.scheme is not None), report.candidates[0])


def _skipped(candidate: Candidate) -> str:
    if candidate.scheme is None:
        return ""
    return f" Left in float: {', '.join(candidate.skip)}." if candidate.skip else " No Linear layer was left out."


def _accuracy_method(report: Report) -> str:
    if not report.images:
        return "Not measured."
    emulated = formatting.some([candidate.name for candidate in report.candidates if candidate.emulated])
    how = (
        f"Of {emulated}, computed on the CPU: the graph that the engine is built from, its codes, scales and number "
        "formats exactly, sums and what is not quantized in float32 where the engine has float16."
        if emulated
        else "Measured on the built engine."
    )
    text = (
        f"{how} Every candidate saw the same images. Intervals are 95 % Wilson intervals; "
        "differences are paired by image, with Bonett and Price's interval. The calibration error is the expected one, "
        "of Guo et al."
    )
    waited = [c.accuracy.waited for c in report.candidates if c.accuracy and c.accuracy.waited is not None]
    return f"{text} Engines waited for images up to {100 * max(waited):.0f} % of the time." if waited else text


def _latency_method(report: Report, rows: Sequence[CandidateRow]) -> str:
    entries = next((row.latency for row in rows if row.baseline), ())
    if not entries:
        return "Not measured."
    batches = ", ".join(str(entry.batch_size) for entry in entries)
    threads = report.environment.threads
    taken = report[report.baseline].latency
    cold = "; the GPU's L2 cache was emptied before every run" if any(entry.cold_l2 for entry in taken) else ""
    warmup = max(entry.warmup for entry in taken) or report.warmup
    return (
        f"Host latency, from images in host memory to logits in host memory; batch size {batches}; "
        f"{entries[0].samples} samples of each candidate in blocks of random order, after {warmup} blocks of "
        f"warm-up; {threads} thread{'' if threads == 1 else 's'}{cold}. Speed-up is the median of {report.baseline} "
        "over the candidate's, with a 95 % bootstrap interval over blocks. Throughput is that of one caller who waits."
    )


def _memory_method(report: Report) -> str:
    held = [entry.footprint.baseline_rss_bytes for entry in report.candidates if entry.footprint]
    if not held:
        return ""
    low, high = formatting.megabytes(min(held)), formatting.megabytes(max(held))
    before = low if low == high else f"{low} to {high}"
    return (
        "Load time and peak resident memory of a fresh process that opens the engine and runs it once; "
        f"{before} MB of the peak are Python and the runtime, before loading."
    )


def _selection_method(report: Report) -> str:
    selection = report.selection
    if selection is None:
        return ""
    score = (
        "The score is the share of wrong answers"
        if selection.by == "labelled"
        else "The score is the divergence, KL(float || quantized), of the class probabilities from the float "
        "receiver's, which needs no labels"
    )
    return (
        f"{score}; a mean over images, in the tables with its standard error. PyTorch selected, with the weights that "
        "engines get; the finalists, lambda 0 of every method among them, were then scored on other images, and the "
        "least score is taken; a patch must be better than its own method at lambda 0 by more than one standard "
        "error of their difference, image by image."
    )


def _gates_method(report: Report) -> str:
    if not report.gates:
        return ""
    return (
        "A rival is beaten by McNemar's exact test, two-sided, of right answers on the same images. Of the speed-up "
        "the lower end of its interval counts, of everything else the measured value."
    )


def facts(report: Report, row: CandidateRow) -> tuple[tuple[str, str], ...]:
    """What a candidate is: pairs of a term and its value."""
    candidate = row.candidate
    entries = [
        ("Role", ROLE_TEXT[candidate.role]),
        ("Weights", candidate_text.grid(candidate)),
        ("Left in float", ", ".join(candidate.skip) if candidate.scheme else ""),
        ("Patch", candidate_text.mixture(candidate)),
        ("Engine", f"{candidate.runtime}, lowering {candidate.lowering}"),
        ("Bits per weight", f"{candidate_text.bits(candidate)} (stored / at run time)"),
        ("Weight error", _mean_error(candidate)),
        ("Answers", f"those of {candidate.answers_of}, which computes the same" if candidate.answers_of else ""),
        ("Same answer as", _agreements(report, candidate)),
        ("Memory added by loading", _added_memory(candidate)),
    ]
    return tuple((term, text) for term, text in entries if text)


def _mean_error(candidate: Candidate) -> str:
    errors = [entry.error for entry in candidate.layer_errors]
    return f"{sum(errors) / len(errors):.3f} relative, mean of {len(errors)} layers" if errors else ""


def _agreements(report: Report, candidate: Candidate) -> str:
    shares = (
        f"{name} on {formatting.percent(pair.agreeing / pair.count, report.images)} % of the images"
        for name, pair in sorted(candidate.paired.items())
        if report[name].role in ("float", "ptq")
    )
    return "; ".join(shares)


def _added_memory(candidate: Candidate) -> str:
    footprint = candidate.footprint
    if footprint is None:
        return ""
    resident = formatting.megabytes(footprint.rss_bytes - footprint.baseline_rss_bytes)
    if footprint.peak_rss_bytes is None:
        return f"{resident} MB resident"
    peak = formatting.megabytes(footprint.peak_rss_bytes - footprint.baseline_rss_bytes)
    return f"{resident} MB resident, {peak} MB at the peak"

"""A comparison as a page: its verdicts, its doubts, and what changed."""

from __future__ import annotations

import json
from dataclasses import dataclass

from qvec_deploy.bench.comparison import AccuracyChange, Changed, Comparison, GateChange, LatencyChange, Value
from qvec_deploy.bench.statistics import median
from qvec_deploy.formatting import NONE, megabytes, percent, short, signed_text, three, times
from qvec_deploy.report.page import Page, Points, Prose, Section, Table

_HASH_SHOWN = 12
_LONGEST = 60


@dataclass(frozen=True)
class VerdictLine:
    """One verdict: what about, the word, both numbers, and what the word rests on."""

    subject: str
    verdict: str
    old: str
    new: str
    evidence: str


def verdict_lines(comparison: Comparison) -> list[VerdictLine]:
    """Accuracy, latency by batch size, size, gates."""
    confidence = f"{100 * (1 - comparison.tolerances.level):g} %"
    size = comparison.size
    growth = signed_text(f"{100 * (size.new_bytes / size.old_bytes - 1):+.1f}")
    bits = [size.old_stored_bits, size.new_stored_bits, size.old_runtime_bits, size.new_runtime_bits]
    stored, at_run_time = (f"{short(old)} → {short(new)}" for old, new in (bits[:2], bits[2:]))
    return [
        _accuracy(comparison.accuracy, confidence),
        *(_latency(entry, confidence) for entry in comparison.latency),
        VerdictLine(
            "size",
            size.verdict,
            f"{megabytes(size.old_bytes)} MB",
            f"{megabytes(size.new_bytes)} MB",
            f"{growth} %; bits a weight {stored} stored, {at_run_time} at run time",
        ),
        *(_gate(gate) for gate in comparison.gates),
    ]


def changed_lines(comparison: Comparison) -> list[tuple[str, str, str]]:
    """Every field that differs: its name, the old and the new value."""
    return [
        (f"{entry.group}: {entry.field}", _value(entry.old, entry), _value(entry.new, entry))
        for entry in comparison.changes
    ]


def verdict_table(comparison: Comparison) -> Table:
    """A verdict in every row: what about, the word, both numbers, and what the word rests on."""
    rows = tuple((line.subject, line.verdict, line.old, line.new, line.evidence) for line in verdict_lines(comparison))
    columns = ("", "Verdict", "Old", "New", "Because")
    return Table(comparison_title(comparison), columns, rows, "llrrl", titled=False)


def changes_table(comparison: Comparison) -> Table | None:
    """Every field that differs; None where none does."""
    rows = tuple(changed_lines(comparison))
    return (
        Table(f"What changed: {len(rows)} field(s)", ("Field", "Old", "New"), rows, "lll", folded=True)
        if rows
        else None
    )


def comparison_page(comparison: Comparison) -> Page:
    """For a pull request: the outcome, the verdicts, the doubts, and folded below them what changed."""
    tolerances, environment = comparison.tolerances, comparison.environment
    doubts = [f"regression: {text}" for text in comparison.regressions()]
    doubts += [f"unsure: {text}" for text in comparison.doubts()]
    doubts += [
        f"{doubt.warning} ({doubt.subject}): {doubt.detail} {doubt.warning.remedy}" for doubt in comparison.warnings
    ]
    place = "" if environment is None else f" Latency here: {environment.cpu}, {environment.threads} thread(s)."
    changes = changes_table(comparison) or Prose("Nothing else changed.")
    return Page(
        title=f"{comparison.outcome()}: {comparison_title(comparison)}",
        kicker=(
            f"Each test at level {tolerances.level:g}; tolerances: {tolerances.accuracy:g} points of top-1, "
            f"{100 * tolerances.latency:g} % of latency, {100 * tolerances.size:g} % of size.{place}"
        ),
        lead=(),
        sections=(
            Section("verdicts", "Verdicts", (verdict_table(comparison),)),
            Section("doubts", "Doubts", (Points(tuple(doubts)),) if doubts else ()),
            Section("changes", "Changes", (changes,)),
        ),
        footer=f"{comparison.created_by}.",
    )


def comparison_title(comparison: Comparison) -> str:
    """Which engine against which."""
    old, new = (f"{side.name} ({side.runtime}, {side.lowering})" for side in (comparison.old, comparison.new))
    return f"{new} against {old}"


def _accuracy(change: AccuracyChange, confidence: str) -> VerdictLine:
    paired, difference = change.paired, change.difference
    old = new = NONE
    evidence = change.reason
    if paired is not None and change.old_correct is not None and change.new_correct is not None:
        count = paired.count
        old, new = (f"{percent(right / count, count)} %" for right in (change.old_correct, change.new_correct))
        evidence = f"{evidence}; {count:,} images of {change.dataset}"
    if paired is not None and difference is not None and change.p is not None:
        count = paired.count
        value, low, high = (_points(share) for share in (difference.value, difference.low, difference.high))
        p = "p < 0.0001" if change.p < 1e-4 else f"p = {change.p:.2g}"
        evidence = (
            f"{value} points [{low}, {high}] at {confidence}; {paired.gained} gained, "
            f"{paired.lost} lost of {count:,} images of {change.dataset}, {p}"
        )
    return VerdictLine("top-1", change.verdict, old, new, evidence)


def _points(fraction: float) -> str:
    """To a hundredth: tolerances are tenths."""
    return signed_text(f"{100 * fraction:+.2f}")


def _latency(change: LatencyChange, confidence: str) -> VerdictLine:
    subject = "latency" if change.batch_size is None else f"latency, batch {change.batch_size}"
    old, new = (
        f"{three(median(entry.samples_ms))} ms" if entry is not None else NONE for entry in (change.old, change.new)
    )
    evidence = [change.reason] if change.reason else []
    if change.ratio is not None and change.old is not None and change.new is not None:
        taken = len(change.old.samples_ms), len(change.new.samples_ms)
        counts = f"{taken[0]} blocks" if change.source == "measured" else f"{taken[0]} and {taken[1]} runs"
        interval = f"[{change.ratio.low:.3f}, {change.ratio.high:.3f}]"
        evidence.insert(0, f"{times(change.ratio.value)} as fast {interval} at {confidence}, {counts}")
    return VerdictLine(subject, change.verdict, old, new, "; ".join(evidence))


def _gate(gate: GateChange) -> VerdictLine:
    words = {None: NONE, True: "passed", False: "missed"}
    found = f"found {gate.found}" if gate.found else "not asked or not judged"
    return VerdictLine(
        f"gate {gate.name}", gate.verdict, words[gate.old], words[gate.new], f"wanted {gate.wanted}, {found}"
    )


def _value(value: Value, entry: Changed) -> str:
    if value is None:
        return NONE
    text = value if isinstance(value, str) else json.dumps(value)
    hashed = entry.group == "sources" or (entry.group == "engine" and entry.field != "missing")
    if hashed:
        return text[:_HASH_SHOWN]
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"

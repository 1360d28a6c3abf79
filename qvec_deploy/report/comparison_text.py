"""A comparison as text: one table of verdicts for every format, Markdown for a pull request, a table for a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from qvec_deploy.bench.comparison import AccuracyChange, Changed, Comparison, GateChange, LatencyChange, Value
from qvec_deploy.bench.statistics import median
from qvec_deploy.formatting import NONE, megabytes, percent, short, signed_text, three, times
from qvec_deploy.report.markdown import escape

GOOD = ("FASTER", "BETTER", "SMALLER", "PASSED")
BAD = ("SLOWER", "WORSE", "LARGER", "MISSED")
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
    return [(f"{entry.group}: {entry.field}", *_values(entry)) for entry in comparison.changes]


def comparison_tables(comparison: Comparison) -> Iterator[Table]:
    """The verdicts, and under them what changed."""
    table = Table(title=Text(_title(comparison)), title_justify="left", box=None, pad_edge=False)
    for title in ("", "Verdict", "Old", "New", "Because"):
        table.add_column(title, justify="right" if title in ("Old", "New") else "left", overflow="fold")
    for line in verdict_lines(comparison):
        word = Text(line.verdict, style=_style(line.verdict))
        table.add_row(Text(line.subject), word, Text(line.old), Text(line.new), Text(line.evidence))
    yield table
    if comparison.changes:
        fields = Table(title=Text("\nWhat changed"), title_justify="left", box=None, pad_edge=False)
        for title in ("Field", "Old", "New"):
            fields.add_column(title, overflow="fold")
        for name, old, new in changed_lines(comparison):
            fields.add_row(Text(name), Text(old), Text(new))
        yield fields


def comparison_markdown(comparison: Comparison) -> str:
    """For a pull request: the outcome, the verdicts, the doubts, and folded below them what changed."""
    tolerances, environment = comparison.tolerances, comparison.environment
    rows = [
        f"| {escape(line.subject)} | **{line.verdict}** | {escape(line.old)} | {escape(line.new)} "
        f"| {escape(line.evidence)} |"
        for line in verdict_lines(comparison)
    ]
    doubts = [f"- regression: {escape(text)}" for text in comparison.regressions()]
    doubts += [f"- unsure: {escape(text)}" for text in comparison.doubts()]
    doubts += [
        f"- {escape(doubt.warning)} ({escape(doubt.subject)}): {escape(doubt.detail)} {escape(doubt.warning.remedy)}"
        for doubt in comparison.warnings
    ]
    place = "" if environment is None else f" Latency here: {environment.cpu}, {environment.threads} thread(s)."
    said = (
        f"Each test at level {tolerances.level:g}; tolerances: {tolerances.accuracy:g} points of top-1, "
        f"{100 * tolerances.latency:g} % of latency, {100 * tolerances.size:g} % of size.{place} "
        f"{comparison.created_by}."
    )
    sections = [
        f"## {comparison.outcome()}: {escape(_title(comparison))}",
        "\n".join(["| | verdict | old | new | because |", "|:--|:--|--:|--:|:--|", *rows]),
        "\n".join(doubts),
        _folded(comparison),
        escape(said),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _folded(comparison: Comparison) -> str:
    if not comparison.changes:
        return "Nothing else changed."
    rows = [f"| {escape(name)} | {escape(old)} | {escape(new)} |" for name, old, new in changed_lines(comparison)]
    table = "\n".join(["| field | old | new |", "|:--|:--|:--|", *rows])
    return f"<details><summary>What changed: {len(rows)} field(s)</summary>\n\n{table}\n\n</details>"


def _title(comparison: Comparison) -> str:
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


def _values(entry: Changed) -> tuple[str, str]:
    return _value(entry.old, entry), _value(entry.new, entry)


def _value(value: Value, entry: Changed) -> str:
    if value is None:
        return NONE
    text = value if isinstance(value, str) else json.dumps(value)
    hashed = entry.group == "sources" or (entry.group == "engine" and entry.field != "missing")
    if hashed:
        return text[:_HASH_SHOWN]
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _style(verdict: str) -> str:
    if verdict in BAD:
        return "bold red"
    return "green" if verdict in GOOD else ("yellow" if verdict == "UNSURE" else "")

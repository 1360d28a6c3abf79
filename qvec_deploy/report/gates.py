"""A recipe's gates held against the measurements: what was wanted, what was found, and whether that is enough."""

from __future__ import annotations

from collections.abc import Iterator

from qvec_deploy.errors import RecipeError
from qvec_deploy.measure.statistics import mcnemar, paired_difference
from qvec_deploy.recipe import Gates
from qvec_deploy.report import formatting
from qvec_deploy.report.summary import rows
from qvec_deploy.report.values import Candidate, GateResult, Report


def judge(gates: Gates, report: Report) -> tuple[GateResult, ...]:
    """Every gate of a recipe, in a fixed order, for the candidate that the report says is shipped.

    Raises:
        RecipeError: A gate needs a measurement that was not taken.
    """
    return tuple(_judge(gates, report))


def _judge(gates: Gates, report: Report) -> Iterator[GateResult]:
    shipped = next(candidate for candidate in report.candidates if candidate.name == report.selected)
    for rival in gates.beats:
        yield _beats(shipped, rival, gates.level, report)
    if gates.max_top1_drop is not None:
        yield _drop(shipped, gates.max_top1_drop, report)
    if gates.max_stored_bits is not None:
        bits = shipped.stored_bits_per_weight
        wanted = f"at most {gates.max_stored_bits:g} bits a weight"
        yield GateResult("max_stored_bits", wanted, f"{bits:.3f}", bits <= gates.max_stored_bits)
    if gates.min_speedup is not None:
        yield _speed(shipped, gates.min_speedup, report)


def _beats(shipped: Candidate, rival: str, level: float, report: Report) -> GateResult:
    """McNemar's test; one that is shipped itself needs no test, for nothing worse is."""
    plain = report.first("ptq")
    name = plain.name if rival == "lambda0" and plain is not None else rival
    wanted = f"more right answers than {rival} at level {level:g}"
    if name == shipped.name or (rival == "lambda0" and shipped.patch is None):
        return GateResult(f"beats {rival}", wanted, f"{rival} itself is shipped", passed=True)
    pair = shipped.paired.get(name)
    if pair is None:
        raise RecipeError(f"gates.beats: there is no candidate `{rival}` to compare with", hint="name a candidate")
    p = mcnemar(pair.gained, pair.lost)
    found = f"{pair.gained} images gained, {pair.lost} lost of {pair.count:,}, p = {p:.2g}"
    return GateResult(f"beats {rival}", wanted, found, pair.gained > pair.lost and p < level)


def _drop(shipped: Candidate, limit: float, report: Report) -> GateResult:
    full = report.first("float")
    pair = shipped.paired.get(full.name) if full is not None else None
    wanted = f"at most {limit:g} points below the float receiver"
    if pair is None:
        return GateResult("max_top1_drop", wanted, "the receiver itself is shipped", passed=True)
    difference = paired_difference(pair.gained, pair.lost, pair.count)
    interval = formatting.points_interval(difference, pair.count)
    found = f"{formatting.points(difference.value, pair.count)} points {interval}"
    return GateResult("max_top1_drop", wanted, found, -100 * difference.value <= limit)


def _speed(shipped: Candidate, limit: float, report: Report) -> GateResult:
    row = next(row for row in rows(report) if row.candidate is shipped)
    entry = row.first_latency
    wanted = f"at least {limit:g} times the speed of {report.baseline}"
    if row.baseline:
        return GateResult("min_speedup", wanted, "the baseline itself is shipped", limit <= 1)
    if entry is None or entry.speed_up is None:
        return GateResult("min_speedup", wanted, "too few samples for an interval", passed=False)
    found = f"{formatting.times(entry.speed_up.value)} {formatting.times_interval(entry.speed_up)}"
    return GateResult("min_speedup", wanted, found, entry.speed_up.low >= limit)

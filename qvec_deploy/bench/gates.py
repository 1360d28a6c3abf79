"""A recipe's gates held against the measurements: what was wanted, what was found, and whether that is enough."""

from __future__ import annotations

from collections.abc import Iterator

from qvec_deploy import formatting
from qvec_deploy.bench.results import Candidate, GateResult, Report
from qvec_deploy.bench.statistics import mcnemar, paired_difference
from qvec_deploy.bench.summary import DISTURBED, rows
from qvec_deploy.errors import RecipeError
from qvec_deploy.recipe import Gates


def judge(gates: Gates, report: Report) -> tuple[GateResult, ...]:
    """Every gate of a recipe, in a fixed order, for the candidate that the report says is shipped."""
    if report.selected is None:
        raise RecipeError("gates are asked of a shipped candidate, and none is", hint="judge a build, not a comparison")
    return tuple(_judge(gates, report[report.selected], report))


def _judge(gates: Gates, shipped: Candidate, report: Report) -> Iterator[GateResult]:
    for rival in gates.beats:
        yield _beats(shipped, rival, gates.level, report)
    if gates.max_top1_drop is not None:
        yield _drop(shipped, gates.max_top1_drop, report)
    if gates.max_stored_bits is not None:
        bits = shipped.stored_bits_per_weight
        wanted = f"at most {gates.max_stored_bits:g} bits a weight"
        yield GateResult("max_stored_bits", wanted, f"{bits:.6g}", bits <= gates.max_stored_bits)
    if gates.min_speedup is not None:
        yield _speed(shipped, gates.min_speedup, report)


def _beats(shipped: Candidate, rival: str, level: float, report: Report) -> GateResult:
    """McNemar's test; a rival that is shipped itself needs none, for then nothing worse is shipped."""
    wanted = f"more right answers than {rival} at level {level:g}"
    other = _rival(shipped, rival, report)
    if other is shipped or (rival == "lambda0" and shipped.patch is None):
        return GateResult(f"beats {rival}", wanted, f"{rival} itself is shipped", passed=True)
    if other is None:
        raise RecipeError(f"gates.beats: there is no candidate `{rival}` to compare with", hint="name a candidate")
    if _same_engine(shipped, other):
        return GateResult(f"beats {rival}", wanted, f"{shipped.name}, which is shipped, is {rival} itself", passed=True)
    pair = shipped.paired.get(other.name)
    if pair is None:
        raise RecipeError(
            f"gates.beats: right answers of {shipped.name} and {other.name} were not counted",
            hint="give the recipe `evaluate`",
        )
    p = mcnemar(pair.gained, pair.lost)
    chance = "p < 0.0001" if p < 1e-4 else f"p = {formatting.p_value(p)}"
    found = f"{pair.gained} images gained, {pair.lost} lost of {pair.count:,}, {chance}"
    return GateResult(f"beats {rival}", wanted, found, pair.gained > pair.lost and p < level)


def _rival(shipped: Candidate, rival: str, report: Report) -> Candidate | None:
    """The candidate of that name; `lambda0` is the shipped candidate's own method without its patch."""
    if rival != "lambda0":
        return next((candidate for candidate in report.candidates if candidate.name == rival), None)
    finalists = [report[entry.name] for entry in report.selection.confirmed] if report.selection is not None else []
    own = (shipped.method, shipped.scheme)
    alike = (other for other in finalists if other.patch is None and (other.method, other.scheme) == own)
    return next(alike, report.first("ptq"))


def _same_engine(one: Candidate, other: Candidate) -> bool:
    """Whether two names stand for the same weights on the same runtime, as `ptq` and the name of its method do."""

    def made_of(candidate: Candidate) -> tuple[object, ...]:
        how = (candidate.scheme, candidate.method, candidate.skip, candidate.patch)
        return *how, candidate.runtime, candidate.lowering, candidate.layer_errors

    return made_of(one) == made_of(other)


def _drop(shipped: Candidate, limit: float, report: Report) -> GateResult:
    full = report.first("float")
    wanted = f"at most {limit:g} point{'' if limit == 1 else 's'} below the float receiver"
    if full is shipped:
        return GateResult("max_top1_drop", wanted, "the receiver itself is shipped", passed=True)
    pair = shipped.paired.get(full.name) if full is not None else None
    if pair is None:
        raise RecipeError(
            f"gates.max_top1_drop: right answers of {shipped.name} and of the float receiver were not counted",
            hint="give the recipe `evaluate`",
        )
    difference = paired_difference(pair.gained, pair.lost, pair.count)
    interval = formatting.points_interval(difference, pair.count)
    found = f"{formatting.points(difference.value, pair.count)} points {interval}"
    drop = round(-100 * difference.value, 9)  # 7 lost of 100 are 7 points, not 7.000000000000001
    return GateResult("max_top1_drop", wanted, found, drop <= limit)


def _speed(shipped: Candidate, limit: float, report: Report) -> GateResult:
    row = next(row for row in rows(report) if row.candidate is shipped)
    entry = row.first_latency
    wanted = f"at least {limit:g} times the speed of {report.baseline}, at the interval's lower end"
    if row.baseline:
        return GateResult("min_speedup", wanted, "the baseline itself is shipped", limit <= 1)
    if entry is None or entry.speed_up is None:
        return GateResult("min_speedup", wanted, "too few samples for an interval", passed=False)
    found = f"{formatting.times(entry.speed_up.value, entry.speed_up)} {formatting.times_interval(entry.speed_up)}"
    if entry.disturbed:
        found += f", but {DISTURBED} ({', '.join(entry.disturbed)}): measure again"
    return GateResult("min_speedup", wanted, found, entry.speed_up.low >= limit and not entry.disturbed)

"""What surrounds a study's findings: costs, the paper's figures beside them, how it was run and with what."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from qvec_deploy.bench.statistics import Estimate
from qvec_deploy.formatting import NONE, short
from qvec_deploy.report.html_listing import Listing
from qvec_deploy.report.svg import Figure
from qvec_deploy.research.study import notation
from qvec_deploy.research.study.study_page import Section
from qvec_deploy.research.study.study_plots import LOOKS, Line, curves
from qvec_deploy.research.study.study_summary import Cost, Published, Setting, Summary

FEWEST_RECEIVERS = 10  # that the cost figure reaches to
MOST_RECEIVERS = 100
UNSAID = ("version", "name", "failures", "exit_code")  # of the run's record: the page says it elsewhere
OWN_LOOK = 3  # of the receiver's own QAT, as in the table's figure
LIKE = (
    "In brackets: the study's 95 % interval, over receivers and seeds; of a difference of two rows the paired "
    "t-test's, of a correlation over tasks. Published figures are of one seed and have none."
)
UNITS = {"points": " points", "%": " %", "lambda": "", "correlation": ""}


def costs(summary: Summary) -> Section:
    """Training against patching, and from how many receivers on a vector pays."""
    figures, tables = [], []
    for index, (name, setting) in enumerate(zip(notation.setting_names(summary), summary.settings, strict=True)):
        if setting.costs:
            tables.append(_costs(name, setting))
            figures.append(_cost_lines(f"costs-{index}", name, setting.costs))
    return Section("costs", "Costs", listings=tuple(tables), figures=tuple(figures))


def _costs(name: str, setting: Setting) -> Listing:
    columns = (
        "Way",
        "Donors",
        "Their training, once",
        "Each receiver",
        "Own QAT instead",
        "Break-even, receivers",
        "Share of QAT gap",
    )
    rows = tuple(
        (
            notation.words(one.label),
            str(one.donors),
            *map(notation.duration, (one.training_s, one.receiver_s, one.own_qat_s)),
            "never" if one.break_even is None else f"{one.break_even:,}",
            notation.share(one.share_of_gap),
        )
        for one in setting.costs
    )
    note = (
        "Training counts float and quantization-aware fine-tunes of the donors. Break-even: receivers from which on "
        "the vector is cheaper than training each of them; what is bought, the last column says. "
        f"{notation.BRACKETS}"
    )
    return Listing(name, columns, rows, "lrrrrrr", note=note)


def _cost_lines(anchor: str, name: str, chosen: tuple[Cost, ...]) -> Figure:
    reached = [one.break_even for one in chosen if one.break_even is not None]
    last = min(max([FEWEST_RECEIVERS, *(2 * count for count in reached)]), MOST_RECEIVERS)
    counts = sorted({1, *(math.ceil(last * step / 10) for step in range(1, 11))})
    size, unit = _unit(max(chosen[0].own_qat_s, *(one.training_s / last + one.receiver_s for one in chosen)) * last)
    own = Line("own QAT", _totals(0.0, chosen[0].own_qat_s / size, counts), OWN_LOOK)
    looks = [look for look in range(len(LOOKS)) if look != OWN_LOOK]
    ways = [
        Line(
            notation.short_label(one.key, one.label),
            _totals(one.training_s / size, one.receiver_s / size, counts),
            look,
        )
        for one, look in zip(chosen, looks, strict=False)
    ]
    caption = f"{name}. Where a line falls below the receivers' own QAT, the vector has paid for its donors."
    labels = ("receivers", f"time in all, {unit}")
    return curves(anchor, "Time for many receivers", caption, [own, *ways], labels, signed=False)


def _totals(once: float, each: float, counts: list[int]) -> tuple[tuple[float, float, float, float], ...]:
    totals = [(float(count), once + each * count) for count in counts]
    return tuple((count, total, total, total) for count, total in totals)


def _unit(seconds: float) -> tuple[float, str]:
    """The unit in which so many seconds read well, and its size."""
    return next(((size, unit) for size, unit in ((3600.0, "h"), (60.0, "min")) if seconds >= 3 * size), (1.0, "s"))


def paper(summary: Summary) -> Section:
    """Published figures beside the study's where the setting is the same, and why not where it is not."""
    same = tuple(one for one in summary.published if one.study is not None)
    other = tuple(one for one in summary.published if one.study is None)
    if not summary.published:
        return Section("paper", "Against the paper")
    count = notation.many(len(summary.published), "published figure")
    sentence = (
        f"{len(same)} of {count} {'has its' if len(same) == 1 else 'have their'} like in this study: the same quantity "
        "in the same setting. The others have none, each for the reason beside it."
    )
    if not same:
        sentence = f"None of {count} has its like in this study; the reason stands beside each."
    columns = ("Figure", "Published", "This study", "Setting", "Remark", "Source")
    listings = (Listing("Side by side", columns, tuple(map(_published, same)), "lrrlll", note=LIKE),) if same else ()
    folded = (Listing("Without its like", columns, tuple(map(_published, other)), "lrrlll"),) if other else ()
    return Section("paper", "Against the paper", (sentence,), listings, folded=folded)


def _published(one: Published) -> tuple[str, ...]:
    unit = UNITS.get(one.unit, f" {one.unit}")
    study = NONE
    if one.study is not None:
        interval = None if one.low is None or one.high is None else Estimate(one.study, one.low, one.high)
        study = f"{short(one.study)}{unit}{notation.ends(interval, short)}"
    what, setting = notation.words(one.what), notation.words(one.setting)
    remark = one.reason.removeprefix("not comparable: ")
    return what, f"{short(one.published)}{unit}", study, setting, remark, one.source


def configuration(summary: Summary, recipe: str, run: Mapping[str, Any]) -> Section:
    """What exactly was studied, and with which versions.

    Args:
        summary: The study's.
        recipe: As it was run, YAML with nothing left to defaults.
        run: The run's record: versions, counts, seconds, failures; nested values are printed as JSON.
    """
    names = notation.setting_names(summary)
    facts = [(name, _setting(setting)) for name, setting in zip(names, summary.settings, strict=True)]
    facts.append(("Bootstrap", f"{summary.resamples:,} resamples, seeded."))
    facts += [(_term(key), text) for key, value in run.items() if key not in UNSAID and (text := _text(key, value))]
    failed = run.get("failures") or ()
    folded = (_failed(failed),) if failed else ()
    return Section(
        "environment",
        "Configuration",
        folded=folded,
        facts=tuple(facts),
        text=recipe,
        text_title="study.yaml, as it was run",
    )


def _failed(failures: Sequence[Mapping[str, Any]]) -> Listing:
    """Work that failed in the last run, and what was to be made from it."""
    columns = ("Node", "Error", "What to do", "Fails with")
    keys = ("node", "message", "hint", "because")
    rows = tuple(tuple(str(one.get(key) or NONE) for key in keys) for one in failures)
    return Listing("Work that failed", columns, rows, "llll")


def _term(key: str) -> str:
    return key.replace("seconds", "time").replace("_", " ").capitalize()


def _setting(setting: Setting) -> str:
    model = ", ".join([notation.model_title(setting), *(f"{key} {value}" for key, value in setting.model_args.items())])
    seeds = ", ".join(map(str, setting.seeds))
    return (
        f"{model}; {notation.grid_name(setting.grid)}, symmetric, "
        f"{2 * setting.grid.qmax + 1} levels, {', '.join(setting.skip) or 'nothing'} stays float; "
        f"tasks {notation.listed(setting.tasks)}; seeds {seeds}; {setting.selecting:,} images select; weights only."
    )


def _text(key: str, value: Any) -> str:
    """A value of the run's record on a line; empty for nothing."""
    if isinstance(value, Mapping):
        nested = any(isinstance(one, Mapping) for one in value.values())
        return ("; " if nested else ", ").join(
            f"{inner} {_text(str(inner), one) or NONE}" for inner, one in value.items()
        )
    if isinstance(value, list | tuple):
        return ", ".join(_text(key, one) for one in value)
    if isinstance(value, float) and "seconds" in key:
        return notation.duration(value)
    if isinstance(value, float):
        return short(value)
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)

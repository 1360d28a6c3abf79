"""What surrounds a study's findings: costs, the paper's figures beside them, how it was run and with what."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from qvec_deploy.bench.statistics import Estimate
from qvec_deploy.formatting import NONE, short
from qvec_deploy.report.page import Facts, Prose, Section, Table, Verbatim
from qvec_deploy.report.svg import Figure
from qvec_deploy.research.study.analysis.study_summary import (
    PublishedFigure,
    ReceiverCost,
    StudySetting,
    StudySummary,
)
from qvec_deploy.research.study.pages import notation
from qvec_deploy.research.study.pages.study_plots import LOOKS, CurveLine, line_plot

FEWEST_RECEIVERS = 10  # that the cost figure reaches to
MOST_RECEIVERS = 100
UNSAID = ("version", "name", "failures", "exit_code")  # of the run's record: the page says it elsewhere
OWN_LOOK = 3  # of the receiver's own QAT, as in the table's figure
LIKE = (
    "In brackets: the study's 95 % interval, over receivers and seeds; of a difference of two rows the paired "
    "t-test's, of a correlation over tasks. Published figures are of one seed and have none."
)
UNITS = {"points": " points", "%": " %", "lambda": "", "correlation": ""}


def costs(summary: StudySummary) -> Section:
    """Training against patching, and from how many receivers on a vector pays."""
    figures, tables = [], []
    for index, name, setting in notation.numbered(summary):
        if setting.costs:
            tables.append(_costs(name, setting.costs))
            figures.append(_cost_lines(f"costs-{index}", name, setting.costs))
    return Section("costs", "Costs", (*tables, *figures))


def _costs(name: str, chosen: tuple[ReceiverCost, ...]) -> Table:
    columns = {
        "Way": lambda one: notation.words(one.label),
        "Donors": lambda one: str(one.donors),
        "Their training, once": lambda one: notation.duration(one.training_s),
        "Each receiver": lambda one: notation.duration(one.receiver_s),
        "Own QAT instead": lambda one: notation.duration(one.own_qat_s),
        "Break-even, receivers": lambda one: "never" if one.break_even is None else f"{one.break_even:,}",
        "Share of QAT gap": lambda one: notation.share(one.share_of_gap),
    }
    note = (
        "Training counts float and quantization-aware fine-tunes of the donors. Break-even: receivers from which on "
        "the vector is cheaper than training each of them; what is bought, the last column says. "
        f"{notation.BRACKETS}"
    )
    return Table.of(name, chosen, columns, note=note)


def _cost_lines(anchor: str, name: str, chosen: tuple[ReceiverCost, ...]) -> Figure:
    reached = [one.break_even for one in chosen if one.break_even is not None]
    last = min(max([FEWEST_RECEIVERS, *(2 * count for count in reached)]), MOST_RECEIVERS)
    counts = sorted({1, *(math.ceil(last * step / 10) for step in range(1, 11))})
    most = max(chosen[0].own_qat_s, *(one.training_s / last + one.receiver_s for one in chosen)) * last
    size, unit = notation.unit_of(most)

    def line(label: str, once_s: float, each_s: float, look: int) -> CurveLine:
        totals = [(float(count), once_s / size + each_s / size * count) for count in counts]
        return CurveLine(label, tuple((count, total, total, total) for count, total in totals), look)

    looks = [look for look in range(len(LOOKS)) if look != OWN_LOOK]
    lines = [line("own QAT", 0.0, chosen[0].own_qat_s, OWN_LOOK)]
    lines += [
        line(one.key.short, one.training_s, one.receiver_s, look) for one, look in zip(chosen, looks, strict=False)
    ]
    caption = f"{name}. Where a line falls below the receivers' own QAT, the vector has paid for its donors."
    labels = ("receivers", f"time in all, {unit}")
    return line_plot(anchor, "Time for many receivers", caption, lines, labels, signed=False)


def paper(summary: StudySummary) -> Section:
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
    tables = [Table("Side by side", columns, tuple(map(_published, same)), "lrrlll", note=LIKE)] if same else []
    if other:
        tables.append(Table("Without its like", columns, tuple(map(_published, other)), "lrrlll", folded=True))
    return Section("paper", "Against the paper", (Prose(sentence), *tables))


def _published(one: PublishedFigure) -> tuple[str, ...]:
    unit = UNITS.get(one.unit, f" {one.unit}")
    study = NONE
    if one.study is not None:
        interval = None if one.low is None or one.high is None else Estimate(one.study, one.low, one.high)
        study = f"{short(one.study)}{unit}{notation.ends(interval, short)}"
    what, setting = notation.words(one.what), notation.words(one.setting)
    remark = one.reason.removeprefix("not comparable: ")
    return what, f"{short(one.published)}{unit}", study, setting, remark, one.source


def configuration(summary: StudySummary, recipe: str, run: Mapping[str, Any]) -> Section:
    """What exactly was studied, and with which versions."""
    facts = [(name, _setting(setting)) for _, name, setting in notation.numbered(summary)]
    facts.append(("Bootstrap", f"{summary.resamples:,} resamples, seeded."))
    facts += [(_term(key), text) for key, value in run.items() if key not in UNSAID and (text := _text(key, value))]
    failed = [_failed(run["failures"])] if run.get("failures") else []
    file = [Verbatim("study.yaml, as it was run", recipe)] if recipe else []
    return Section("environment", "Configuration", (*failed, Facts(tuple(facts)), *file))


def _failed(failures: Sequence[Mapping[str, Any]]) -> Table:
    """Work that failed in the last run, and what was to be made from it."""
    columns = {"Node": "node", "Error": "message", "What to do": "hint", "Fails with": "because"}
    rows = tuple(tuple(str(one.get(key) or NONE) for key in columns.values()) for one in failures)
    return Table("Work that failed", tuple(columns), rows, "llll", folded=True)


def _term(key: str) -> str:
    return key.replace("seconds", "time").replace("_", " ").capitalize()


def _setting(setting: StudySetting) -> str:
    model = ", ".join([notation.model_title(setting), *(f"{key} {value}" for key, value in setting.model_args.items())])
    seeds = ", ".join(map(str, setting.seeds))
    return (
        f"{model}; {notation.grid_words(setting.grid)}, symmetric, "
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

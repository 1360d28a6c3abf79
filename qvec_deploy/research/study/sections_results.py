"""What a study found for its rows: the tables, win rates, paired tests, controls, choices held against hindsight."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from qvec_deploy.bench.statistics import Estimate
from qvec_deploy.formatting import NONE, short
from qvec_deploy.report.html_listing import Listing
from qvec_deploy.research.study import notation
from qvec_deploy.research.study.cell_values import Control
from qvec_deploy.research.study.conclusions import CONTROL, compared
from qvec_deploy.research.study.rows import words_of
from qvec_deploy.research.study.study_page import Section
from qvec_deploy.research.study.study_plots import Bar, gains
from qvec_deploy.research.study.study_summary import Comparison, Headroom, Needs, Row, Selected, Setting, Summary

REFERENCES = ("float", "own_qat", *(f"control/{name}" for name in get_args(Control)))  # nobody would ship them
LOOK, OTHER_LOOK, REFERENCE_LOOK = 0, 2, 3  # of rows with a vector, without, and those that nobody would ship
TAKING: tuple[tuple[str, tuple[Needs, ...]], ...] = (
    ("nothing of the receiver", ("nothing", "donors")),
    ("its unlabelled images", ("nothing", "donors", "images")),
    ("its labelled images", ("nothing", "donors", "images", "labels")),
)

BARS = (
    "[in brackets] after a gain: 95 % interval over receivers and their seeds. Seeds ±: standard error of the mean "
    "when fine-tunes are trained again. Images: 95 % interval over test images, these receivers and seeds as they are. "
    "All of it, p too, is for these donors: rows of pairs draw and test receivers, and hold donors fixed."
)


def results(summary: Summary) -> Section:
    """The highest rows of every setting, and the gains of all drawn."""
    figures = []
    for index, (name, setting) in enumerate(zip(notation.setting_names(summary), summary.settings, strict=True)):
        shown = [(row, row.gain) for row in setting.rows if row.gain is not None and row.key != "float"]
        if shown:
            pick, over = notation.bars([gain for _, gain in shown])
            bars = [_bar(row, gain.value, pick(gain)) for row, gain in shown]
            caption = (
                f"{name}. Circles have a vector, diamonds have none, squares are references and controls. Bars are "
                f"95 % intervals over {over}."
            )
            figures.append(gains(f"rows-{index}", "Gain over plain PTQ", caption, bars, "gain, points"))
    return Section("results", "Results", listings=_highest(summary), figures=tuple(figures))


def candidates(summary: Summary) -> Section:
    """The main table of every setting, and what there was to win."""
    settings = list(zip(notation.setting_names(summary), summary.settings, strict=True))
    tables = tuple(_table(name, setting) for name, setting in settings)
    return Section(
        "candidates", "All candidates", listings=tables, folded=tuple(_headroom(*setting) for setting in settings)
    )


def _highest(summary: Summary) -> tuple[Listing, ...]:
    """Which row has the highest mean, by what it takes, with a vector and without; no pair of rows twice in a row."""
    rows = []
    for name, setting in zip(notation.setting_names(summary), summary.settings, strict=True):
        before: tuple[Row | None, Row | None] = None, None
        for where, needs in TAKING:
            able = [row for row in setting.rows if row.needs in needs and row.key not in REFERENCES]
            with_vector = _best([row for row in able if words_of(row.key).vector])
            without = _best([row for row in able if not words_of(row.key).vector])
            if (with_vector, without) != before:
                difference = _between(setting, with_vector, without)
                rows.append((name, where, _mean(with_vector), _mean(without), difference))
            before = with_vector, without
    note = (
        "Picked from the tables below because they are highest, and so a little flattered. Difference: of the two "
        "rows' paired test, where there is one, with the t-test's 95 % interval, uncorrected. A line that would repeat "
        "the one before it is left out."
    )
    columns = ("Setting", "It takes", "With a vector", "Without", "Difference, points")
    return (Listing("Highest means", columns, tuple(rows), "llllr", note=note),) if rows else ()


def _best(rows: list[Row]) -> Row | None:
    return max(rows, key=lambda row: row.top1.value, default=None)


def _mean(row: Row | None) -> str:
    return NONE if row is None else f"{notation.short_label(row.key, row.label)}: {notation.top1(row.top1.value)} %"


def _between(setting: Setting, better: Row | None, worse: Row | None) -> str:
    """The paired difference of two rows that were tested against each other."""
    tested = compared(setting, better.key, worse.key) if better and worse else None
    return NONE if tested is None else notation.points(tested.difference.value) + notation.ends(tested.difference)


def _bar(row: Row, value: float, ends: Estimate | None) -> Bar:
    low, high = (ends.low, ends.high) if ends else (value, value)
    look = LOOK if words_of(row.key).vector else REFERENCE_LOOK if row.key in REFERENCES else OTHER_LOOK
    return Bar(notation.short_label(row.key, row.label), low, value, high, look)


def _table(name: str, setting: Setting) -> Listing:
    columns = (
        "Candidate",
        "What it takes",
        "Top-1, %",
        "Gain over plain, points",
        "Seeds",
        "Images",
        "Share of QAT gap",
        "Wins over plain",
        "p (t, Holm)",
    )
    rows = tuple(_cells(row, setting) for row in setting.rows)
    return Listing(name, columns, rows, "llrrrrrrr", note=f"{_counted(setting)} {BARS}")


def _cells(row: Row, setting: Setting) -> tuple[str, ...]:
    against = next((wins for wins in row.wins if wins.baseline == "plain"), None)
    tested = compared(setting, row.key, "plain")
    return (
        notation.words(row.label),
        notation.NEEDS[row.needs],
        notation.top1(row.top1.value),
        notation.gain(row.gain),
        notation.over_seeds(row.gain or row.top1),
        notation.over_images(row.gain),
        notation.share(row.share_of_gap),
        notation.won(against) if against else NONE,
        notation.chance(tested.t_adjusted) if tested else NONE,
    )


def _counted(setting: Setting) -> str:
    """What the means are over, and what is missing of it."""
    text = (
        f"Means over {notation.many(len(setting.receivers), 'receiver')} and "
        f"{notation.many(len(setting.seeds), 'seed')}, {notation.many(notation.pairs(setting), 'pair')}."
    )
    return f"{text} Missing: {', '.join(setting.missing)}." if setting.missing else text


def _headroom(name: str, setting: Setting) -> Listing:
    counts = ("Test images", "Images that choose")
    columns = ("Receiver", *counts, "Float, %", "Own QAT, %", "Plain PTQ, %", "Gap, points", "Seeds", "Images")

    def cells(one: Headroom) -> tuple[str, ...]:
        counted = (NONE if count is None else f"{count:,}" for count in (one.images, one.selecting))
        accuracies = (one.float_top1, one.own_qat_top1, one.plain_top1)
        errors = (one.gap_error, one.gap_image_error)
        gap = (notation.points(one.gap), *map(notation.error, errors))
        return (one.receiver, *counted, *map(notation.top1, accuracies), *gap)

    note = (
        "Gap: what there is to win, own QAT less plain PTQ (float less plain where there is no QAT). ±: standard error "
        "over seeds, and over test images."
    )
    title = f"Headroom of each receiver: {name}"
    return Listing(title, columns, tuple(cells(one) for one in setting.headroom), "lrrrrrrrr", note=note)


def compact(summary: Summary) -> tuple[Listing, ...]:
    """A table per setting that fits a terminal."""
    columns = ("Candidate", "Top-1, %", "Gain over plain, points", "Share of QAT gap", "Wins", "p (t, Holm)")
    kept = (0, 2, 3, 6, 7, 8)
    tables = (_table(name, one) for name, one in zip(notation.setting_names(summary), summary.settings, strict=True))
    return tuple(
        Listing(table.title, columns, tuple(tuple(row[place] for place in kept) for row in table.rows), "lrrrrr")
        for table in tables
    )


def wins(summary: Summary) -> Section:
    """How often each row with a vector, or a control, beats each baseline."""
    tables = []
    for name, setting in zip(notation.setting_names(summary), summary.settings, strict=True):
        baselines = list(dict.fromkeys(one.baseline for row in setting.rows for one in row.wins))
        able = [row for row in setting.rows if row.wins and (words_of(row.key).vector or row.key.startswith(CONTROL))]
        rows = tuple((notation.words(row.label), *_shares(row, baselines)) for row in able)
        if rows:
            columns = ("Candidate", *(f"over {notation.short_label(key)}" for key in baselines))
            note = (
                "Share of pairs (of receivers for rows that are not one donor's), each seed by itself, with a gain "
                f"above 0; a tie is no win. {notation.BRACKETS}"
            )
            tables.append(Listing(name, columns, rows, "l" + "r" * len(baselines), note=note))
    return Section("wins", "Win rates", listings=tuple(tables))


def _shares(row: Row, baselines: list[str]) -> Iterator[str]:
    for key in baselines:
        found = next((one for one in row.wins if one.baseline == key), None)
        if found is None:
            yield NONE
            continue
        share = notation.won(found) if found.share is None else notation.share(found.share)
        yield f"{share} ({found.wins} of {found.count})"


def tests(summary: Summary) -> Section:
    """Every paired test, by setting; controls have a section of their own too."""
    tables = []
    for name, setting in zip(notation.setting_names(summary), summary.settings, strict=True):
        if setting.comparisons:
            tables.append(_tests(name, setting, setting.comparisons))
    if not tables:
        return Section("tests", "Paired tests")
    sentence = (
        "Two-sided paired tests over receivers, seeds averaged first. Holm's correction is over each family, all "
        "settings together."
    )
    families = tuple((one.name, notation.words(one.label), f"{one.size:,}") for one in summary.families)
    asked = Listing("Families", ("Family", "Question", "P-values"), families, "llr")
    return Section("tests", "Paired tests", (sentence,), (asked,) if families else (), folded=tuple(tables))


def _tests(name: str, setting: Setting, chosen: tuple[Comparison, ...]) -> Listing:
    columns = ("Comparison", "Family", "Receivers", "Difference, points", "t", "t, Holm", "Wilcoxon", "Wilcoxon, Holm")
    rows = tuple(
        (
            notation.words(one.label),
            one.family,
            str(one.receivers),
            notation.points(one.difference.value) + notation.ends(one.difference),
            notation.chance(one.t_p),
            notation.chance(one.t_adjusted),
            notation.chance(one.wilcoxon_p),
            notation.chance(one.wilcoxon_adjusted),
        )
        for one in chosen
    )
    least = max((one.wilcoxon_least for one in chosen), default=1.0)
    note = (
        "In brackets: the t-test's 95 % interval, uncorrected. The smallest p that Wilcoxon's test can give with so "
        f"few receivers is {notation.chance(least)}, before Holm. Receivers share donors; the tests take them to be "
        "independent."
    )
    return Listing(name, columns, rows, "llrrrrrr", note=note)


def controls(summary: Summary) -> Section:
    """The vector against what has its norm, but not its direction."""
    tables, figures = [], []
    for index, (name, setting) in enumerate(zip(notation.setting_names(summary), summary.settings, strict=True)):
        chosen = tuple(one for one in setting.comparisons if one.worse.startswith(CONTROL))
        if not chosen:
            continue
        tables.append(_tests(name, setting, chosen))
        bars = [_less(one) for one in chosen]
        caption = f"{name}. What one donor's vector gains over each control, on average over receivers."
        if any(bar.low < bar.high for bar in bars):
            caption += " Bars are the paired t-test's 95 % intervals, uncorrected."
        figures.append(
            gains(f"controls-{index}", "One donor at λ = 1, less a control", caption, bars, "difference, points")
        )
    sentence = (
        "A control takes a donor's place at λ = 1 and has its vector's norm in every tensor. The GPTQ displacement has "
        "it in the quantized Linears alone: it moves no bias, norm or embedding."
    )
    return Section("controls", "Controls", (sentence,) if tables else (), tuple(tables), tuple(figures))


def _less(one: Comparison) -> Bar:
    return Bar(notation.short_label(one.worse), one.difference.low, one.difference.value, one.difference.high)


def selection(summary: Summary) -> Section:
    """Chosen lambda and donor, judged on images that did not choose them."""
    tables = []
    for name, setting in zip(notation.setting_names(summary), summary.settings, strict=True):
        if setting.selection:
            judged = ("Choice", "Chosen on", "Gain over plain, points", "Seeds", "Short of hindsight")
            columns = (*judged, "Median λ", "At λ = 0", "At the grid's end")
            rows = tuple(_choice(one) for one in setting.selection)
            tables.append(Listing(name, columns, rows, "llrrrrrr", note=_hindsight(setting)))
    return Section("selection", "Selection, judged on other images", listings=tuple(tables))


def _hindsight(setting: Setting) -> str:
    fewer = any(one.selecting is not None and one.selecting < setting.selecting for one in setting.headroom)
    return (
        f"{'Up to ' if fewer else ''}{setting.selecting:,} images of each receiver choose, its test images judge; the "
        "two do not overlap. A choice in hindsight looked at the test images: it bounds what choosing can give and is "
        f"no estimate of it. {notation.BRACKETS}"
    )


def _choice(one: Selected) -> tuple[str, ...]:
    shares = (NONE if value is None else notation.percent(value) for value in (one.at_zero, one.at_edge))
    return (
        notation.words(one.label),
        one.chosen_on,
        notation.gain(one.gain),
        notation.over_seeds(one.gain),
        NONE if one.short_of_hindsight is None else f"{one.short_of_hindsight:.1f}",
        NONE if one.median_lambda is None else short(one.median_lambda),
        *shares,
    )

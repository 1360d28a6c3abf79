"""What a study found for its rows: the tables, win rates, paired tests, controls, choices held against hindsight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from qvec_deploy.formatting import NONE, short
from qvec_deploy.report.page import Block, Prose, Section, Table
from qvec_deploy.research.study.analysis.row_key import FLOAT, OWN_QAT, PLAIN, Needs, RowKey
from qvec_deploy.research.study.analysis.study_summary import PairedTest, StudyRow, StudySetting, StudySummary
from qvec_deploy.research.study.pages import notation
from qvec_deploy.research.study.pages.study_plots import IntervalBar, interval_plot

VECTOR_LOOK, OTHER_LOOK, REFERENCE_LOOK = 0, 2, 3  # of rows with a vector, without, and those that nobody would ship
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


def results(summary: StudySummary) -> Section:
    """The highest rows of every setting, and the gains of all drawn."""
    blocks: list[Block] = [*_highest(summary)]
    for index, name, setting in notation.numbered(summary):
        shown = [(row, row.gain) for row in setting.rows if row.gain is not None and row.key != FLOAT]
        if shown:
            pick, over = notation.bars([gain for _, gain in shown])
            bars = [
                IntervalBar(row.key.short, pick(gain).low, gain.value, pick(gain).high, _look(row.key))
                for row, gain in shown
            ]
            caption = (
                f"{name}. Circles have a vector, diamonds have none, squares are references and controls. Bars are "
                f"95 % intervals over {over}."
            )
            blocks.append(interval_plot(f"rows-{index}", "Gain over plain PTQ", caption, bars, "gain, points"))
    return Section("results", "Results", tuple(blocks))


def _is_reference(key: RowKey) -> bool:
    """Whether nobody would ship it."""
    return key in (FLOAT, OWN_QAT) or key.kind == "control"


def _look(key: RowKey) -> int:
    return VECTOR_LOOK if key.vector else REFERENCE_LOOK if _is_reference(key) else OTHER_LOOK


def _highest(summary: StudySummary) -> list[Table]:
    """Which row has the highest mean, by what it takes, with a vector and without; no pair of rows twice in a row."""
    mean: Callable[[StudyRow | None], str] = notation.optional(
        lambda row: f"{row.key.short}: {notation.top1(row.top1.value)} %"
    )
    rows = []
    for _, name, setting in notation.numbered(summary):
        before: list[StudyRow | None] = [None, None]
        for where, needs in TAKING:
            able = [row for row in setting.rows if row.needs in needs and not _is_reference(row.key)]
            best = [
                max((row for row in able if row.key.vector == vector), key=lambda row: row.top1.value, default=None)
                for vector in (True, False)
            ]
            if best != before:
                test = setting.test(*(row.key for row in best if row)) if all(best) else None
                rows.append((name, where, *map(mean, best), notation.difference(test)))
            before = best
    note = (
        "Picked from the tables below because they are highest, and so a little flattered. Difference: of the two "
        "rows' paired test, where there is one, with the t-test's 95 % interval, uncorrected. A line that would repeat "
        "the one before it is left out."
    )
    columns = ("Setting", "It takes", "With a vector", "Without", "Difference, points")
    return [Table("Highest means", columns, tuple(rows), "llllr", note=note)] if rows else []


def candidates(summary: StudySummary) -> Section:
    """The main table of every setting, and what there was to win."""
    settings = notation.numbered(summary)
    tables = [table(name, setting) for table in (_table, _headroom) for _, name, setting in settings]
    return Section("candidates", "All candidates", tuple(tables))


def _table(name: str, setting: StudySetting) -> Table:
    def chance(row: StudyRow) -> str:
        test = setting.test(row.key, PLAIN)
        return notation.p_text(test.t_adjusted) if test else NONE

    note = (
        f"Means over {notation.many(len(setting.receivers), 'receiver')} and "
        f"{notation.many(len(setting.seeds), 'seed')}, {notation.many(notation.pair_count(setting), 'pair')}."
    )
    if setting.missing:
        note += f" Missing: {', '.join(setting.missing)}."
    columns = {
        "Candidate": lambda row: notation.words(row.label),
        "What it takes": lambda row: notation.NEEDS[row.needs],
        "Top-1, %": lambda row: notation.top1(row.top1.value),
        "Gain over plain, points": lambda row: notation.gain(row.gain),
        "Seeds": lambda row: notation.over_seeds(row.gain or row.top1),
        "Images": lambda row: notation.over_images(row.gain),
        "Share of QAT gap": lambda row: notation.share(row.share_of_gap),
        "Wins over plain": lambda row: notation.won(row.wins_over(PLAIN)),
        "p (t, Holm)": chance,
    }
    return Table.of(name, setting.rows, columns, words=2, note=f"{note} {BARS}")


def compact(summary: StudySummary) -> tuple[Table, ...]:
    """A table per setting that fits a terminal."""
    left_out = ("What it takes", "Seeds", "Images")
    found = []
    for _, name, setting in notation.numbered(summary):
        table = _table(name, setting)
        places = [place for place, column in enumerate(table.columns) if column not in left_out]
        rows = tuple(tuple(row[place] for place in places) for row in table.rows)
        columns = tuple(table.columns[place].removesuffix(" over plain") for place in places)
        found.append(Table(name, columns, rows, "lrrrrr"))
    return tuple(found)


def _headroom(name: str, setting: StudySetting) -> Table:
    columns = {
        "Receiver": lambda one: one.receiver,
        "Test images": lambda one: f"{one.images:,}",
        "Images that choose": lambda one: notation.optional("{:,}".format)(one.selecting),
        "Float, %": lambda one: notation.top1(one.float_top1),
        "Own QAT, %": lambda one: notation.top1(one.own_qat_top1),
        "Plain PTQ, %": lambda one: notation.top1(one.plain_top1),
        "Gap, points": lambda one: notation.points(one.gap),
        "Seeds": lambda one: notation.error(one.gap_error),
        "Images": lambda one: notation.error(one.gap_image_error),
    }
    note = (
        "Gap: what there is to win, own QAT less plain PTQ (float less plain where there is no QAT). ±: standard error "
        "over seeds, and over test images."
    )
    return Table.of(f"Headroom of each receiver: {name}", setting.headroom, columns, note=note, folded=True)


def wins(summary: StudySummary) -> Section:
    """How often each row with a vector, or a control, beats each baseline."""

    def over(baseline: RowKey, row: StudyRow) -> str:
        found = row.wins_over(baseline)
        if found is None:
            return NONE
        share = notation.won(found) if found.share is None else notation.share(found.share)
        return f"{share} ({found.wins} of {found.count})"

    note = (
        "Share of pairs (of receivers for rows that are not one donor's), each seed by itself, with a gain above 0; a "
        f"tie is no win. {notation.BRACKETS}"
    )
    tables = []
    for _, name, setting in notation.numbered(summary):
        baselines = dict.fromkeys(one.baseline for row in setting.rows for one in row.wins)
        able = [row for row in setting.rows if row.wins and (row.key.vector or row.key.kind == "control")]
        columns: dict[str, Callable[[StudyRow], str]] = {"Candidate": lambda row: notation.words(row.label)}
        columns |= {f"over {key.short}": partial(over, key) for key in baselines}
        if able:
            tables.append(Table.of(name, able, columns, note=note))
    return Section("wins", "Win rates", tuple(tables))


def tests(summary: StudySummary) -> Section:
    """Every paired test, by setting; controls have a section of their own too."""
    tables = [
        replace(_tests(name, setting.comparisons), folded=True)
        for _, name, setting in notation.numbered(summary)
        if setting.comparisons
    ]
    if not tables:
        return Section("tests", "Paired tests")
    sentence = (
        "Two-sided paired tests over receivers, seeds averaged first. Holm's correction is over each family, all "
        "settings together."
    )
    columns = {
        "Family": lambda one: one.name,
        "Question": lambda one: notation.words(one.label),
        "P-values": lambda one: f"{one.size:,}",
    }
    families = [Table.of("Families", summary.families, columns, words=2)] if summary.families else []
    return Section("tests", "Paired tests", (Prose(sentence), *families, *tables))


def _tests(name: str, chosen: Sequence[PairedTest]) -> Table:
    columns = {
        "Comparison": lambda one: notation.words(one.label),
        "Family": lambda one: one.family,
        "Receivers": lambda one: str(one.receivers),
        "Difference, points": notation.difference,
        "t": lambda one: notation.p_text(one.t_p),
        "t, Holm": lambda one: notation.p_text(one.t_adjusted),
        "Wilcoxon": lambda one: notation.p_text(one.wilcoxon_p),
        "Wilcoxon, Holm": lambda one: notation.p_text(one.wilcoxon_adjusted),
    }
    least = max((one.wilcoxon_least for one in chosen), default=1.0)
    note = (
        "In brackets: the t-test's 95 % interval, uncorrected. The smallest p that Wilcoxon's test can give with so "
        f"few receivers is {notation.p_text(least)}, before Holm. Receivers share donors; the tests take them to be "
        "independent."
    )
    return Table.of(name, chosen, columns, words=2, note=note)


def controls(summary: StudySummary) -> Section:
    """The vector against what has its norm, but not its direction."""
    tables, figures = [], []
    for index, name, setting in notation.numbered(summary):
        chosen = tuple(one for one in setting.comparisons if one.worse.kind == "control")
        if not chosen:
            continue
        tables.append(_tests(name, chosen))
        bars = [IntervalBar(one.worse.short, d.low, d.value, d.high) for one in chosen for d in (one.difference,)]
        caption = f"{name}. What one donor's vector gains over each control, on average over receivers."
        if any(bar.low < bar.high for bar in bars):
            caption += " Bars are the paired t-test's 95 % intervals, uncorrected."
        title = "One donor at λ = 1, less a control"
        figures.append(interval_plot(f"controls-{index}", title, caption, bars, "difference, points"))
    sentence = (
        "A control takes a donor's place at λ = 1 and has its vector's norm in every tensor. The GPTQ displacement has "
        "it in the quantized Linears alone: it moves no bias, norm or embedding."
    )
    return Section("controls", "Controls", (Prose(sentence), *tables, *figures) if tables else ())


def selection(summary: StudySummary) -> Section:
    """Chosen lambda and donor, judged on images that did not choose them."""
    columns = {
        "Choice": lambda one: notation.words(one.label),
        "Chosen on": lambda one: one.chosen_on,
        "Gain over plain, points": lambda one: notation.gain(one.gain),
        "Seeds": lambda one: notation.over_seeds(one.gain),
        "Short of hindsight": lambda one: notation.top1(one.short_of_hindsight),
        "Median λ": lambda one: notation.optional(short)(one.median_lambda),
        "At λ = 0": lambda one: notation.optional(notation.percent)(one.at_zero),
        "At the grid's end": lambda one: notation.optional(notation.percent)(one.at_edge),
    }
    tables = []
    for _, name, setting in notation.numbered(summary):
        chosen_on = notation.choosing(setting).capitalize()
        note = (
            f"{chosen_on} images of each receiver choose, its test images judge; the two do not overlap. A choice in "
            "hindsight looked at the test images: it bounds what choosing can give and is no estimate of it. "
            f"{notation.BRACKETS}"
        )
        if setting.selection:
            tables.append(Table.of(name, setting.selection, columns, words=2, note=note))
    return Section("selection", "Selection, judged on other images", tuple(tables))

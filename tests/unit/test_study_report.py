"""A study's page: complete, escaped, and no sentence that says more than the tests show."""

import csv
import io
import json
from dataclasses import replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
from study_cells import LAMBDAS, TASKS, make_cells, make_fine_tunes, row_key

from qvec_deploy.bench.statistics import Estimate
from qvec_deploy.errors import StorageError
from qvec_deploy.report.page import Facts, Prose, Table
from qvec_deploy.report.render_html import render_html
from qvec_deploy.report.render_markdown import render_markdown
from qvec_deploy.report.svg import Figure
from qvec_deploy.research.study.analysis.row_key import MEAN, MIX, MSE, PAIR, PLAIN
from qvec_deploy.research.study.analysis.study_summary import SUMMARY_VERSION, PublishedFigure
from qvec_deploy.research.study.analysis.summarize import summarize
from qvec_deploy.research.study.pages import notation, pair_sections, result_sections, setting_sections
from qvec_deploy.research.study.pages.conclusions import answers, remarks
from qvec_deploy.research.study.pages.study_page import (
    REPORT_VERSION,
    StudyReport,
    pairs_csv,
    study_page,
    to_json,
    trials_csv,
    write_study,
)
from qvec_deploy.tensors import Scheme

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parents[1] / "golden" / "study.md"
markdown = partial(render_markdown, figures_in="study.html")
RUN = {
    "version": 1,
    "name": "example",
    "versions": {"python": "3.11.9", "torch": "2.9.0"},
    "wall_seconds": 750.0,
    "counts": {"cell": {"total": 36, "made": 35}},
    "failures": [],
}
SECTIONS = (
    "results",
    "controls",
    "gains",
    "candidates",
    "lambda",
    "wins",
    "selection",
    "failures",
    "similarity",
    "prediction",
    "costs",
    "paper",
    "tests",
    "terms",
    "environment",
)


@cache
def summary(images=60):
    return summarize(make_cells(images=images), make_fine_tunes())


def studied(**changes):
    return replace(StudyReport("example", summary(), "name: example\nversion: 1\n", RUN), **changes)


def lead(page, style):
    return [block.text for block in page.lead if block.style == style]


def parts(section):
    """A section's blocks by what they are."""
    found = SimpleNamespace(sentences=[], listings=[], folded=[], figures=[], facts=[])
    for block in section.blocks:
        if isinstance(block, Prose):
            found.sentences.append(block.text)
        elif isinstance(block, Table):
            (found.folded if block.folded else found.listings).append(block)
        elif isinstance(block, Facts):
            found.facts += block.entries
        elif isinstance(block, Figure):
            found.figures.append(block)
    return found


def names(summary):
    return [name for _, name, _ in notation.numbered(summary)]


def having(shown, better, worse, **changes):
    """The summary with other results of one comparison, in every setting."""
    settings = []
    for setting in shown.settings:
        comparisons = tuple(
            replace(one, **changes) if str(one.better) == better and str(one.worse).startswith(worse) else one
            for one in setting.comparisons
        )
        settings.append(replace(setting, comparisons=comparisons))
    return replace(shown, settings=tuple(settings))


@cache
def page():
    return study_page(studied())


def lines(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_the_golden_study(check_golden):
    shown = summarize(make_cells((1,), TASKS[:2], images=60), make_fine_tunes())
    text = markdown(study_page(studied(summary=shown)))
    check_golden(GOLDEN, text.replace(version("qvec-deploy"), "VERSION"))


def test_every_section_is_there_and_none_is_empty():
    assert tuple(section.name for section in page().shown) == SECTIONS
    html = render_html(page())
    for name in SECTIONS:
        assert html.count(f'<section id="{name}">') == 1
        assert f'<a href="#{name}">' in html
    assert "<script" not in html and "http://" not in html and "https://" not in html


def test_every_figure_is_named_once_and_carries_its_numbers():
    figures = [figure for section in page().shown for figure in parts(section).figures]
    names = [figure.name for figure in figures]
    assert len(set(names)) == len(names) >= 16
    for figure in figures:
        assert figure.samples and all(len(line) == len(figure.columns) for line in figure.samples)
        assert figure.csv.startswith("data:text/csv")


def test_every_row_of_every_table_has_all_its_cells():
    for section in page().shown:
        for table in (*parts(section).listings, *parts(section).folded):
            assert table.rows, table.title
            assert len(table.columns) == len(table.alignment), table.title
            assert {len(row) for row in table.rows} == {len(table.columns)}, table.title


def test_names_are_escaped_everywhere():
    shown = summary()
    odd = replace(shown, settings=(replace(shown.settings[0], model="<b>&|x"), *shown.settings[1:]))
    page = study_page(studied(name="a<script>b", summary=odd, recipe="x: <i>"))
    html, text = render_html(page), markdown(page)
    assert "<script" not in html and "a&lt;script&gt;b" in html and "&lt;b&gt;&amp;|x" in html and "&lt;i&gt;" in html
    assert "<script" not in text and r"&lt;b>&amp;\|x" in text


def test_without_similarity_costs_and_controls_their_sections_are_left_out():
    shown = summary()
    bare = [
        replace(
            setting,
            rows=tuple(row for row in setting.rows if row.key.kind != "control"),
            comparisons=tuple(one for one in setting.comparisons if one.worse.kind != "control"),
            similarities=(),
            costs=(),
            prediction=None,
            curves=(),
        )
        for setting in shown.settings
    ]
    page = study_page(studied(summary=replace(shown, settings=tuple(bare), published=())))
    assert not {"controls", "similarity", "costs", "prediction", "lambda", "paper"} & {one.name for one in page.shown}
    assert "No control took a donor's place" in " ".join(lead(page, "remark"))


@pytest.mark.parametrize(
    ("adjusted", "difference", "said"),
    [
        (0.01, 3.0, "is better than plain PTQ"),
        (0.01, -3.0, "is worse than plain PTQ"),
        (0.05, 3.0, "is not shown to differ from plain PTQ"),
        (0.6, -3.0, "is not shown to differ from plain PTQ"),
        (None, 3.0, "on too few receivers to test"),
    ],
)
def test_an_answer_says_what_the_test_shows(adjusted, difference, said):
    value = Estimate(difference, difference - 1, difference + 1)
    shown = having(summary(), "pair/lambda_1", "plain", t_adjusted=adjusted, difference=value)
    told = answers(shown)
    assert len(told) == len(shown.settings)
    assert all(said in sentence for sentence in told)


def test_a_control_that_is_not_beaten_is_named():
    certain = having(summary(), "pair/lambda_1", "control/", t_adjusted=0.001, difference=Estimate(3.0, 2.0, 4.0))
    assert remarks(certain)[0].startswith("In every setting it is better than each of the 4 controls of its norm.")
    doubtful = having(certain, "pair/lambda_1", "control/random", t_adjusted=0.2)
    assert "not shown to be better than random control" in remarks(doubtful)[0]
    assert "better than each of" not in remarks(doubtful)[0]
    worse = having(certain, "pair/lambda_1", "control/shuffle", difference=Estimate(-3.0, -4.0, -2.0))
    assert "not shown to be better than shuffled control" in remarks(worse)[0]


def test_methods_without_a_vector_are_told_by_verdict():
    shown = having(summary(), "mean/lambda_1", "", t_adjusted=0.2)
    shown = having(shown, "mean/lambda_1", "gptq/images", t_adjusted=0.01, difference=Estimate(-5.0, -6.0, -4.0))
    shown = having(shown, "mean/lambda_1", "awq/images", t_adjusted=0.01, difference=Estimate(5.0, 4.0, 6.0))
    told = next(remark for remark in remarks(shown) if remark.startswith("Against methods"))
    assert "better than AWQ (+5.0 points)," in told and "worse than GPTQ (−5.0 points)." in told
    assert "not told apart from" in told


def test_many_settings_are_counted():
    shown = having(summary(), "pair/lambda_1", "plain", t_adjusted=0.01, difference=Estimate(3.0, 2.0, 4.0))
    many = replace(shown, settings=shown.settings * 3)
    least, most = (notation.points(one.row(PAIR).gain.value) for one in shown.settings)
    assert answers(many) == (
        "One donor's vector at λ = 1, against plain PTQ on the same grid: better in 6 of 6 settings; mean gains are "
        f"{least} to {most} points.",
    )
    assert len(set(names(many))) == 6


def test_one_seed_and_missing_cells_are_said():
    shown = summary()
    weak = tuple(replace(one, seeds=(0,), missing=("lower, seed 1",)) for one in shown.settings)
    told = " ".join(remarks(replace(shown, settings=weak)))
    assert "One seed: nothing here says" in told and "2 cells are missing" in told
    page = study_page(studied(summary=replace(shown, settings=weak)))
    assert "Missing: lower, seed 1." in markdown(page)


def test_two_seeds_are_said_to_be_few():
    shown = summary()
    for seeds, said in (((0,), False), ((0, 1), True), ((0, 1, 2), False)):
        told = " ".join(remarks(replace(shown, settings=tuple(replace(one, seeds=seeds) for one in shown.settings))))
        assert ("Two seeds: an interval over seeds rests on one difference" in told) == said


def with_gaps(setting, gap, trained=True):
    """The setting with another gap for every receiver."""
    headroom = tuple(
        replace(one, gap=gap, own_qat_top1=one.own_qat_top1 if trained else None) for one in setting.headroom
    )
    return replace(setting, headroom=headroom)


def test_a_setting_without_headroom_cannot_answer():
    shown = summary()
    first, second = shown.settings
    assert "recover" not in " ".join(remarks(shown))
    assert "recover" not in " ".join(remarks(replace(shown, settings=(with_gaps(first, 2.0), second))))
    told = remarks(replace(shown, settings=(with_gaps(first, 0.43), second)))[-1]
    assert told == (
        "3 bits per tensor, MSE clipping: the receivers' own QAT less plain PTQ is +0.4 points on average. There is "
        "next to nothing to recover: the question cannot be answered there."
    )
    told = remarks(replace(shown, settings=(with_gaps(first, -0.5, trained=False), second)))[-1]
    assert "MSE clipping: float less plain PTQ is −0.5 points on average. There is next to nothing" in told
    told = remarks(replace(shown, settings=(*(with_gaps(first, 0.4),) * 4, second)))[-1]
    assert told.startswith("In 4 of 5 settings own QAT (or float) less plain PTQ is below 2 points on average. There")


def test_one_seed_and_one_receiver_can_be_reported():
    shown = summarize(make_cells(grids=(0,), receivers=("lower",), seeds=(0,), images=40), ())
    page = study_page(StudyReport("small", shown))
    assert "too few receivers to test" in lead(page, "headline")[0]
    assert "costs" not in {section.name for section in page.shown}
    assert render_html(page) and markdown(page)


def test_published_figures_are_beside_the_studys_or_have_a_reason():
    same = PublishedFigure("J", "win rate", "%", "ViT-B, 3 bits", 76.6, 71.25, 65.0, 78.0, "other images")
    other = PublishedFigure(
        "J", "mean gain", "points", "ViT-B, 3 bits", 9.7, None, None, None, "not comparable: other model"
    )
    section = parts(setting_sections.paper(replace(summary(), published=(same, other))))
    assert section.sentences[0].startswith("1 of 2 published figures has its like in this study")
    assert section.listings[0].rows == (
        ("win rate", "76.6 %", "71.2 % [65, 78]", "ViT-B, 3 bits", "other images", "J"),
    )
    assert "95 % interval" in section.listings[0].note
    assert section.folded[0].rows[0][2:5] == ("–", "ViT-B, 3 bits", "other model")
    alone = parts(setting_sections.paper(replace(summary(), published=(other,))))
    assert alone.sentences[0].startswith("None of 1 published figure")
    assert not setting_sections.paper(replace(summary(), published=())).blocks


MAKERS = {
    "results": result_sections.results,
    "controls": result_sections.controls,
    "candidates": result_sections.candidates,
    "selection": result_sections.selection,
    "tests": result_sections.tests,
    "gains": pair_sections.matrices,
    "lambda": pair_sections.lambdas,
    "failures": pair_sections.failures,
    "similarity": pair_sections.similarities,
    "costs": setting_sections.costs,
}


def section(shown, name):
    return parts(MAKERS[name](shown))


@cache
def few(receivers):
    return summarize(make_cells(grids=(0,), receivers=receivers, seeds=(0,), images=40), ())


def test_where_there_is_no_interval_none_is_printed():
    shown = few(("lower", "upper"))
    similar = section(shown, "similarity")
    told = [row[3] for row in similar.listings[0].rows]
    assert any("[" not in text for text in told) and "too few tasks, or a pair is missing" in similar.figures[0].caption
    alone = few(("lower",))
    assert {row[3] for row in section(alone, "tests").folded[0].rows} <= {
        notation.points(one.difference.value) for one in alone.settings[0].comparisons
    }
    controls = section(alone, "controls").figures[0]
    assert {line[2:] for line in controls.samples} == {(None, None)} and "interval" not in controls.caption
    for part in study_page(studied(summary=alone)).shown:
        for table in (*parts(part).listings, *parts(part).folded):
            for row in table.rows:
                assert not [
                    text for text in row if "[" in text and len(set(text.strip("]").split("[")[-1].split(", "))) == 1
                ]


def test_a_row_without_any_spread_has_no_interval_over_images():
    setting = summary().settings[1]
    none = replace(setting.row(MSE).gain, value=0.0, images=Estimate(0.0, 0.0, 0.0), receivers=None)
    rows = tuple(replace(row, gain=none) if row.key == MSE else row for row in setting.rows)
    table = section(replace(summary(), settings=(replace(setting, rows=rows),)), "candidates").listings[0]
    assert next(row for row in table.rows if row[0] == "MSE clipping")[3:6:2] == ("0.0", "–")


def test_where_the_grid_is_mse_clipping_it_is_one_row_and_no_column():
    first, second = (
        [part.listings[index] for part in (section(summary(), "candidates"), parts(result_sections.wins(summary())))]
        for index in (0, 1)
    )
    assert "plain PTQ: MSE clipping" in {row[0] for row in first[0].rows}
    assert "MSE clipping" not in {row[0] for row in first[0].rows} and "over MSE clipping" not in first[1].columns
    assert {"plain PTQ: clip 0.65", "MSE clipping"} <= {row[0] for row in second[0].rows}
    assert "over MSE clipping" in second[1].columns
    drawn = [{line[0] for line in figure.samples} for figure in section(summary(), "results").figures]
    assert ["MSE clipping" in labels for labels in drawn] == [False, True]


def test_highest_means_are_not_said_twice_and_have_their_paired_difference():
    shown = summary()
    setting = shown.settings[1]

    def highest(best):
        """The table where some rows are higher than all others."""
        high = dict.fromkeys(best, 99.0)
        rows = tuple(replace(row, top1=replace(row.top1, value=high.get(str(row.key), 50.0))) for row in setting.rows)
        return section(replace(shown, settings=(replace(setting, rows=rows),)), "results").listings[0].rows

    tested = setting.test(MEAN, row_key("gptaq/generated"))
    rows = highest(("mean/lambda_1", "gptaq/generated"))
    assert [row[1] for row in rows] == ["nothing of the receiver"]
    assert rows[0][2:] == (
        "mean of donors at λ = 1: 99.0 %",
        "asymmetric GPTQ (generated): 99.0 %",
        notation.difference(tested),
    )
    rows = highest(("donor/labelled", "gptaq/images"))
    assert [row[1] for row in rows] == ["nothing of the receiver", "its unlabelled images", "its labelled images"]
    assert rows[2][2] == "labelled donor: 99.0 %" and rows[2][4] == "–"  # no test asked for these two


def test_figures_say_what_their_intervals_are_over():
    for receivers, over in ((("lower",), "test images of one receiver"), (("lower", "upper"), "receivers and seeds")):
        shown = few(receivers)
        figures = (*section(shown, "results").figures, *section(shown, "lambda").figures)
        assert len(figures) == 2
        assert all(f"95 % intervals over {over}" in figure.caption for figure in figures)
    row = few(("lower",)).settings[0].row(PAIR)
    drawn = section(few(("lower",)), "results").figures[0].samples
    assert (row.gain.images.low, row.gain.images.high) in {line[2:] for line in drawn}


def test_remarks_need_no_answer():
    shown = summary()
    bare = tuple(replace(one, rows=tuple(r for r in one.rows if r.key != PAIR)) for one in shown.settings)
    assert remarks(replace(shown, settings=bare)) == ()
    assert render_html(study_page(studied(summary=replace(shown, settings=bare))))


def test_two_models_of_one_timm_name_are_told_apart():
    shown = summary()
    first, second = (replace(shown.settings[0], name=name) for name in ("small_base", "large_base"))
    both = replace(shown, settings=(first, second))
    assert [name.partition(",")[0] for name in names(both)] == ["small_base", "large_base"]
    page = study_page(studied(summary=both))
    assert page.kicker.startswith("small_base (vit_tiny_example) and large_base (vit_tiny_example) · ")
    assert first.model in dict(parts(page.sections[-1]).facts)[names(both)[0]]
    alone = replace(shown, settings=(first,))
    assert study_page(studied(summary=alone)).kicker.startswith("small_base (vit_tiny_example) · ")
    assert study_page(studied()).kicker.startswith(f"{first.model} · ")


def test_a_bin_has_its_mean_with_an_interval_or_without():
    shown = summary()
    setting = shown.settings[0]
    similar = setting.similarities[0]
    bare = replace(similar, bins=tuple(replace(one, gain=2.0, interval=None) for one in similar.bins))
    shown = replace(shown, settings=(replace(setting, similarities=(bare,)),))
    rows = section(shown, "similarity").folded[0].rows
    assert [row[4] for row in rows] == ["+2.0"] * len(similar.bins)
    assert all("[" in row[4] for row in section(summary(), "similarity").folded[0].rows)


def test_every_gain_over_every_baseline_is_in_a_table():
    shown = summary()
    tables = {table.title: table for table in section(shown, "gains").folded}
    for _, name, setting in notation.numbered(shown):
        for matrix in setting.matrices:
            table = tables[f"Every pair at {notation.words(matrix.label)}: {name}"]
            plain = matrix.baseline == PLAIN
            label = "Gain over plain, points" if plain else f"over {matrix.baseline.short}"
            place = table.columns.index(label)
            found = {(row[1], row[0]): row[place] for row in table.rows}
            assert found == {(pair.donor, pair.receiver): notation.points(pair.gain) for pair in matrix.pairs}


def test_a_receiver_is_told_how_many_donors_beat_which_method():
    setting = summary().settings[1]
    table = section(summary(), "gains").listings[1]
    methods = ("plain PTQ", "MSE clipping", "AWQ", "GPTQ", "asymmetric GPTQ")
    assert table.columns == ("Receiver", "Best donor", *(f"over {method}" for method in methods))
    mine = [pair for pair in setting.pairs(baseline=row_key("gptq/images")) if pair.receiver == "lower"]
    best = max(mine, key=lambda pair: pair.gain)
    row = next(row for row in table.rows if row[0] == "lower")
    assert row[1] == best.donor
    assert row[5] == f"{sum(pair.gain > 0 for pair in mine)} of 5, {notation.points(best.gain)}"


def test_with_one_seed_pairs_and_gaps_have_errors_over_images():
    shown = few(TASKS)
    gains = section(shown, "gains")
    assert "standard error over test images" in gains.figures[0].caption
    assert gains.figures[0].columns[3] == "standard error over test images, points"
    errors = {(pair.donor, pair.receiver): pair.image_error for pair in shown.settings[0].pairs()}
    assert {line[:2]: line[3] for line in gains.figures[0].samples} == errors
    assert all(row[4] == "–" and row[5].startswith("± ") for row in gains.folded[0].rows)
    headroom = section(shown, "candidates").folded[0]
    assert [row[-2] for row in headroom.rows] == ["–"] * len(TASKS)
    expected = [notation.error(one.gap_image_error) for one in shown.settings[0].headroom]
    assert [row[-1] for row in headroom.rows] == expected
    assert "over seeds" in section(summary(), "gains").figures[0].caption


def test_images_that_really_chose_are_shown_where_they_are_known():
    shown = summary()
    setting = shown.settings[0]
    headroom = tuple(
        replace(one, selecting=count) for one, count in zip(setting.headroom, (180, *[None] * 5), strict=True)
    )
    shown = replace(shown, settings=(replace(setting, headroom=headroom),))
    rows = section(shown, "candidates").folded[0].rows
    assert [row[2] for row in rows] == ["180", *["–"] * 5]
    assert section(shown, "selection").listings[0].note.startswith("Up to 200 images")


def test_every_way_of_paying_is_in_the_table_and_drawn():
    shown = summary()
    setting = shown.settings[0]
    ways = (*setting.costs, replace(setting.costs[-1], key=MIX, label="label-free mix of 5 donors"))
    assert len(ways) == 7
    costs = section(replace(shown, settings=(replace(setting, costs=ways),)), "costs")
    assert [row[0] for row in costs.listings[0].rows] == [notation.words(one.label) for one in ways]
    drawn = list(dict.fromkeys(line[0] for line in costs.figures[0].samples))
    assert drawn == ["own QAT", *(one.key.short for one in ways)]


def test_failed_work_is_listed():
    failed = {"node": "qat lower", "message": "killed", "hint": "more memory", "because": None}
    text = markdown(study_page(studied(run=RUN | {"failures": [failed]})))
    assert "| qat lower | killed | more memory | – |" in text


def test_trials_have_a_row_each():
    cells = make_cells(grids=(1,), receivers=("lower",), seeds=(0,), images=40)
    found = lines(trials_csv(cells))
    assert len(found) == len(cells[0].trials)
    pair = next(line for line in found if line["kind"] == "pair" and line["lambda"] == "1.0")
    assert float(pair["top1"]) == int(pair["test_right"]) / 40
    assert (pair["bits"], pair["receiver"], pair["donor"], pair["selecting_images"]) == ("2", "lower", "upper", "197")
    assert next(line for line in found if line["kind"] == "float")["divergence_nats"] == ""


def test_pairs_have_a_row_each_with_all_that_was_found():
    shown = summary()
    found = lines(pairs_csv(shown))
    assert len(found) == 2 * len(TASKS) * (len(TASKS) - 1)
    lost = [line for line in found if line["cause"]]
    assert len(lost) == sum(len(setting.failures) for setting in shown.settings) > 0
    assert all(float(line["gain_lambda_1"]) < 0 for line in lost)
    assert all(line["gain_label_free"] and line["prototype_cosine"] for line in found)
    assert {lam for line in found for lam in json.loads(line["lambdas_labelled"])} <= set(LAMBDAS)


def test_the_document_is_versioned_and_the_same_every_time():
    document = json.loads(to_json(studied()))
    assert (document["schema_version"], document["summary"]["version"]) == (REPORT_VERSION, SUMMARY_VERSION)
    assert document["run"] == RUN and document["name"] == "example"
    assert to_json(studied()) == to_json(studied())


def test_files_are_written_whole_and_equal(tmp_path):
    cells = make_cells(grids=(0,), receivers=("lower", "upper"), seeds=(0,), images=40)
    small = StudyReport("small", summarize(cells, ()))
    first, second = write_study(small, cells, tmp_path / "a"), write_study(small, cells, tmp_path / "b")
    assert [path.name for path in first] == ["study.json", "study.md", "study.html", "trials.csv", "pairs.csv"]
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes() and one.stat().st_size > 0
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="file"):
        write_study(small, cells, tmp_path / "file" / "in")


@pytest.mark.parametrize(
    ("grid", "name"),
    [
        (Scheme(3, "tensor", method="mse"), "3 bits per tensor, MSE clipping"),
        (Scheme(3, "channel"), "3 bits per channel, absmax"),
        (Scheme(2, "channel", clip=0.65), "2 bits per channel, clip 0.65"),
        (Scheme(4, "group", 32), "4 bits per group of 32, absmax"),
    ],
)
def test_grids_in_words(grid, name):
    assert notation.grid_words(grid) == name


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0317, "0.0317 s"), (26.0, "26 s"), (230.0, "3.83 min"), (7200.0, "120 min"), (36000.0, "10 h")],
)
def test_durations_in_words(seconds, text):
    assert notation.duration(seconds) == text


def test_numbers_have_signs_and_no_negative_zero():
    assert [notation.points(value) for value in (8.25, -0.04, 0.04, -3.0)] == ["+8.2", "0.0", "0.0", "−3.0"]
    assert notation.percent(-0.001) == "0 %"
    assert notation.share(Estimate(1.0, 1.0, 1.0)) == "100 %"
    assert notation.correlation(Estimate(0.75, -0.001, 1.0)) == "+0.75 [0.00, +1.00]"
    assert notation.correlation(Estimate(1.0, 1.0, 1.0)) == "+1.00"
    assert row_key("gptq/generated").short == "GPTQ (generated)"
    assert row_key("mean+awq/images/label_free").short == "mean at chosen λ + AWQ"

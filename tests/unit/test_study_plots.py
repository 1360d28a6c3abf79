"""A study's figures: what is drawn, what its numbers say, and that every colour is the page's."""

import re

import pytest

from qvec_deploy.research.study.analysis.pair_values import PairGain
from qvec_deploy.research.study.pages.study_plots import (
    LOOKS,
    CurveLine,
    IntervalBar,
    PairPoint,
    colour_limit,
    heatmap,
    interval_plot,
    line_plot,
    scatter_plot,
)

TASKS = ("lower", "upper", "symbols", "digits")


def squares(tasks=TASKS, error=1.25):
    places = [(donor, receiver) for receiver in tasks for donor in tasks if donor != receiver]
    return [PairGain(*place, 3.0 * index - 7.0, error, 0.75, (1.0,)) for index, place in enumerate(places)]


def texts(svg: str) -> list[str]:
    return [re.sub(r"<[^>]*>", "", text).strip() for text in re.findall(r"<text.*?</text>", svg, re.DOTALL)]


@pytest.mark.parametrize(
    ("gains", "end"), [((), 1), ((0.2,), 1), ((-4.0, 3.0), 5), ((41.0,), 50), ((-100.0,), 100), ((0.0,), 1)]
)
def test_the_colour_scale_holds_every_gain(gains, end):
    assert colour_limit(gains) == end


def test_a_heatmap_says_every_gain_with_its_error():
    figure = heatmap("h", "Gains", "", squares(), 30.0)
    shown = texts(figure.svg)
    assert {"−7.0", "−4.0", "+2.0", "+26.0"} <= set(shown)
    assert shown.count("±1.2") == 12
    assert figure.samples[0] == ("upper", "lower", -7.0, 1.25)
    assert len(figure.samples) == 12
    assert "upper for lower: −7.0 points" in figure.svg


def test_with_one_seed_a_heatmap_shows_errors_over_images():
    figure = heatmap("h", "Gains", "", squares(error=None), 30.0)
    assert texts(figure.svg).count("±0.8") == 12
    assert figure.caption.endswith("Small: standard error over test images.")
    assert figure.columns[-1] == "standard error over test images, points"


def test_a_pair_of_one_seed_among_others_has_no_error():
    pairs = [*squares()[:-1], *squares(error=None)[-1:]]
    figure = heatmap("h", "Gains", "", pairs, 30.0)
    assert texts(figure.svg).count("±1.2") == 11 and figure.samples[-1][-1] is None
    assert figure.caption.endswith("Small: standard error over seeds.")


def test_many_tasks_have_no_room_for_numbers_but_losses_are_marked():
    tasks = tuple(f"task{index:02d}" for index in range(22))
    every = squares(tasks)
    figure = heatmap("h", "Gains", "", every, 100.0)
    shown = texts(figure.svg)
    assert shown.count("−") == sum(square.gain < 0 for square in every)
    assert not [text for text in shown if "." in text]
    assert {*tasks} <= set(shown)
    assert len(figure.samples) == 22 * 21
    assert figure.caption.endswith("A minus sign marks a loss.")


@pytest.mark.parametrize(
    "figure",
    [
        heatmap("h", "t", "c", squares(), 30.0),
        interval_plot(
            "g",
            "t",
            "c",
            [IntervalBar(f"row {look}", -1.0, 0.5, 2.0, look) for look in range(len(LOOKS))],
            "gain, points",
        ),
        line_plot(
            "l", "t", "c", [CurveLine("a", ((-0.5, -2.0, -3.0, -1.0), (1.0, 5.0, 4.0, 6.0)))], ("λ", "gain, points")
        ),
        scatter_plot(
            "c",
            "t",
            "c",
            [PairPoint("a", "b", 0.1, -2.0), PairPoint("b", "a", 0.3, 4.0)],
            ("cosine", "gain"),
            equal=True,
        ),
    ],
    ids=lambda figure: figure.name,
)
def test_every_colour_is_the_pages(figure):
    assert "var(--" in figure.svg
    named = re.findall(r"(?:fill|stroke)\s*[:=]\s*\"?(#[0-9a-f]{6})", figure.svg)
    assert set(named) <= {"#000000"}, named
    assert "DejaVu" not in figure.svg


def test_rows_keep_their_numbers_in_full():
    bars = [IntervalBar("one donor", 1.0 / 3, 2.0 / 3, 1.0), IntervalBar("random", -1.0, 0.0, 1.0, 2)]
    figure = interval_plot("g", "t", "c", bars, "gain, points")
    assert figure.samples == (("one donor", 2.0 / 3, 1.0 / 3, 1.0), ("random", 0.0, -1.0, 1.0))
    assert {"one donor", "random"} <= set(texts(figure.svg))


def test_a_row_without_an_interval_is_a_point_alone():
    figure = interval_plot("g", "t", "c", [IntervalBar("one receiver", 2.0, 2.0, 2.0)], "gain, points")
    assert figure.samples == (("one receiver", 2.0, None, None),)
    assert "one receiver: +2.0<" in figure.svg.replace('"', "<") and "[" not in figure.svg.partition(">")[0]


def test_a_curve_is_told_in_words_and_numbers():
    line = CurveLine("pairs", ((-0.5, -2.0, -3.0, -1.0), (1.0, 5.0, 4.0, 6.0)))
    figure = line_plot("l", "t", "c", [line], ("λ", "gain, points"))
    assert "pairs: −2 at −0.5, +5 at 1" in figure.svg
    assert figure.samples == (("pairs", -0.5, -2.0, -3.0, -1.0), ("pairs", 1.0, 5.0, 4.0, 6.0))
    assert "pairs: −2 at −0.5, 5 at 1" in line_plot("l", "t", "c", [line], ("λ", "s"), signed=False).svg


def test_a_prediction_has_the_line_where_it_would_be_right():
    spots = [PairPoint("a", "b", 0.1, 0.2), PairPoint("b", "a", 0.3, 0.4)]
    plain = scatter_plot("c", "t", "c", spots, ("predicted", "measured"))
    with_line = scatter_plot("c", "t", "c", spots, ("predicted", "measured"), equal=True)
    assert with_line.svg.count("stroke-dasharray") == plain.svg.count("stroke-dasharray") + 1

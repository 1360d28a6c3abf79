"""Why pairs lose: the rules, and that they find what is built into the example."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from study_cells import make_cell, make_cells

from qvec_deploy.research.study.analysis.pair_values import LambdaGain, PairGain
from qvec_deploy.research.study.analysis.study_summary import Headroom
from qvec_deploy.research.study.analysis.summarize import summarize
from qvec_deploy.research.study.analysis.task_pairs import cause_of, noise_of

ROOM = Headroom("lower", 400, 92.0, 90.0, 70.0, 20.0, None, 2.0, None)
UP, DOWN = LambdaGain(0.5, 0.3), LambdaGain(0.5, -0.3)
BACK, NOT_BACK = LambdaGain(-0.5, 1.0), LambdaGain(-0.5, 0.0)


@pytest.mark.parametrize(
    ("receiver", "between", "negative", "apart", "cause"),
    [
        (ROOM, UP, BACK, True, "coordinates"),
        (replace(ROOM, plain_top1=88.1), UP, BACK, False, "no headroom"),
        (replace(ROOM, own_qat_top1=None, plain_top1=90.1), UP, BACK, False, "no headroom"),
        (replace(ROOM, float_top1=71.0), UP, BACK, False, "no headroom"),
        (replace(ROOM, plain_top1=88.0), UP, BACK, False, "overshoot"),  # two points are headroom
        (ROOM, UP, BACK, False, "overshoot"),
        (ROOM, DOWN, BACK, False, "anti-aligned"),
        (ROOM, None, BACK, False, "anti-aligned"),
        (ROOM, DOWN, NOT_BACK, False, "useless"),
        (ROOM, None, None, False, "useless"),
    ],
)
def test_the_first_rule_that_applies(
    receiver: Headroom, between: LambdaGain | None, negative: LambdaGain | None, apart: bool, cause: str
) -> None:
    assert cause_of(receiver, between, negative, apart=apart) == cause


def test_noise_is_of_seeds_and_images_together() -> None:
    pair = PairGain("a", "b", -1.0, 3.0, 4.0, (1.0, 1.0, 1.0))
    assert noise_of(pair) == pytest.approx(5 * stats.t.ppf(0.975, 2 * (25 / 9) ** 2))
    assert noise_of(replace(pair, seed_error=None, lambdas=(1.0,))) == pytest.approx(1.959964 * 4)
    assert noise_of(replace(pair, seed_error=0.0)) == pytest.approx(1.959964 * 4)
    two = replace(pair, image_error=0.0, lambdas=(1.0, 1.0))
    assert noise_of(two) == pytest.approx(12.7062 * 3, rel=1e-4)


@pytest.mark.parametrize(("seeds", "of_seeds"), [(2, 1.0), (2, 0.3), (3, 1.0), (5, 0.5)])
def test_noise_reaches_as_far_as_it_says(seeds: int, of_seeds: float) -> None:
    draw, within = np.random.default_rng(seeds), 0
    for _ in range(2000):
        images = draw.standard_normal()  # their error is known well: there are hundreds
        gains = images + of_seeds * math.sqrt(seeds) * draw.standard_normal(seeds)
        error = gains.std(ddof=1) / math.sqrt(seeds)
        within += abs(gains.mean()) <= noise_of(PairGain("a", "b", gains.mean(), error, 1.0, (1.0,) * seeds))
    assert 0.93 <= within / 2000 <= 0.99


@pytest.mark.slow
def test_causes_that_were_built_in_are_found() -> None:
    _, setting = summarize(make_cells()).settings
    found = {(failure.donor, failure.receiver): failure for failure in setting.failures}
    assert {pair: failure.cause for pair, failure in found.items()} == {
        ("photos", "lower"): "anti-aligned",
        ("photos", "upper"): "anti-aligned",
        ("pencils", "symbols"): "overshoot",
        ("pencils", "photos"): "overshoot",
    }
    assert not any(failure.within_noise for failure in found.values())
    gains = [failure.gain for failure in setting.failures]
    assert gains == sorted(gains)
    assert all(gain < 0 for gain in gains)


@pytest.mark.slow
def test_a_small_loss_is_said_to_be_within_noise() -> None:
    setting, _ = summarize(make_cells()).settings
    small = [failure for failure in setting.failures if failure.receiver == "plates"]
    assert small
    assert {failure.cause for failure in small} == {"no headroom"}
    for failure in setting.failures:
        assert failure.within_noise == (abs(failure.gain) <= failure.noise)


def test_pairs_that_were_found_apart_are_said_to_be() -> None:
    cells = make_cells(grids=(1,))
    cell = cells[0]
    assert cell.request.receiver.name == "lower"
    moved = replace(cell.relations["photos"], apart="permuted neurons in blocks.0.mlp")
    cells = (replace(cell, relations=cell.relations | {"photos": moved}), *cells[1:])
    setting = summarize(cells).settings[0]
    causes = {(failure.donor, failure.receiver): failure.cause for failure in setting.failures}
    assert causes["photos", "lower"] == "coordinates"
    assert causes["photos", "upper"] == "anti-aligned"


def test_what_was_not_tried_is_not_given() -> None:
    cell = make_cell(1, "lower", 0)
    at_one = replace(cell, trials=tuple(t for t in cell.trials if t.kind != "pair" or t.lam == 1.0))
    failure = summarize((at_one,)).settings[0].failures[0]
    assert (failure.best_between, failure.best_negative, failure.cause) == (None, None, "useless")

"""Laws of the study's statistics, and of summaries."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from study_cells import TASKS, make_cells

from qvec_deploy.research.study.analysis.costs import break_even
from qvec_deploy.research.study.analysis.study_statistics import holm, mean, paired, qap, ratio
from qvec_deploy.research.study.analysis.summarize import summarize

P_VALUES = st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=12)
NUMBERS = st.floats(-100, 100).map(lambda value: round(value, 3))


@given(P_VALUES)
def test_holm_is_never_below_p_and_keeps_the_order(p_values: list[float | None]) -> None:
    adjusted = holm(p_values)
    known = sorted((p, a) for p, a in zip(p_values, adjusted, strict=True) if p is not None and a is not None)
    assert [a is None for a in adjusted] == [p is None for p in p_values]
    assert all(p <= a <= 1 for p, a in known)
    assert [a for _, a in known] == sorted(a for _, a in known)


@given(P_VALUES, st.randoms(use_true_random=False))
def test_holm_does_not_look_at_the_order(p_values: list[float | None], random: object) -> None:
    order = list(range(len(p_values)))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert holm([p_values[index] for index in order]) == [holm(p_values)[index] for index in order]


def test_qap_p_values_of_noise_are_uniform() -> None:
    draw = np.random.default_rng(6)
    found = np.array([qap(*draw.standard_normal((2, 6, 6))).qap_p for _ in range(300)])  # type: ignore[union-attr]
    for level in (0.05, 0.2, 0.5, 0.8):
        assert abs((found <= level).mean() - level) < 0.08


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(NUMBERS, min_size=2, max_size=2), min_size=2, max_size=5), st.floats(0.5, 4.0))
def test_a_mean_scales_and_lies_in_its_interval(values: list[list[float]], scale: float) -> None:
    table = np.array(values)
    found, scaled = mean(table), mean(scale * table)
    assert found is not None
    assert scaled is not None
    assert found.low - 1e-9 <= found.value <= found.high + 1e-9
    np.testing.assert_allclose(
        [scaled.value, scaled.low, scaled.high], scale * np.array([found.value, found.low, found.high]), atol=1e-9
    )
    np.testing.assert_allclose(found.value, table.mean(), atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0.1, 50), min_size=2, max_size=6), st.integers(0, 2**32 - 1))
def test_a_share_of_itself_is_one(gaps: list[float], seed: int) -> None:
    gap = np.array(gaps)[:, None] + np.random.default_rng(seed).random((len(gaps), 3))
    whole = ratio(gap, gap)
    assert whole is not None
    np.testing.assert_allclose([whole.low, whole.value, whole.high], 1.0)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(st.lists(NUMBERS, min_size=2, max_size=9))
def test_a_paired_test_does_not_care_who_is_better(differences: list[float]) -> None:
    here, there = paired(differences), paired([-value for value in differences])
    assert here.wilcoxon_p == there.wilcoxon_p
    assert (here.t_p is None) == (there.t_p is None)
    np.testing.assert_allclose(here.difference.low, -there.difference.high, atol=1e-9)
    if here.t_p is not None and there.t_p is not None:
        np.testing.assert_allclose(here.t_p, there.t_p)


@given(st.floats(0, 1e4), st.floats(0, 50), st.floats(0, 100))
def test_break_even_is_the_first_receiver_at_which_the_vector_is_no_dearer(
    training: float, receiver: float, own: float
) -> None:
    count = break_even(training, receiver, own)
    if count is None:
        assert own <= receiver + 1e-9
        return
    slack = 1e-6 * max(1.0, training, count * own)
    assert count >= 1
    assert training + count * receiver <= count * own + slack
    if count > 1:
        assert training + (count - 1) * receiver >= (count - 1) * own - slack


@pytest.mark.slow
@settings(max_examples=2, deadline=None)
@given(st.permutations(TASKS[:4]))
def test_the_order_of_receivers_changes_no_mean(order: list[str]) -> None:
    here = summarize(make_cells((1,), TASKS[:4], seeds=(0, 1), images=60)).settings[0]
    there = summarize(make_cells((1,), tuple(order), seeds=(0, 1), images=60)).settings[0]
    for row, other in zip(here.rows, there.rows, strict=True):
        assert row.key == other.key
        np.testing.assert_allclose(
            [row.top1.value, row.top1.seed_error, row.top1.images.low],
            [other.top1.value, other.top1.seed_error, other.top1.images.low],
        )
        assert [(w.wins, w.ties, w.count) for w in row.wins] == [(w.wins, w.ties, w.count) for w in other.wins]
    pairs = [{(p.donor, p.receiver): p.gain for p in setting.matrices[0].pairs} for setting in (here, there)]
    assert pairs[0] == pairs[1]

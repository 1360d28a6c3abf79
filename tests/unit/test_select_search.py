"""Lambda: 0 is always tried, the best is refined, and ties go to the smaller change."""

from __future__ import annotations

import numpy as np
import pytest

from qvec_deploy.builder.select.lambda_search import search
from qvec_deploy.builder.select.mixing_weights import ridge_weights
from qvec_deploy.builder.select.score import divergences, wrong


def test_the_grid_holds_0_and_is_refined_around_its_best() -> None:
    curve = search(lambda lam: (lam - 0.6) ** 2, [0.5, 1.0, 1.5], "rtn")
    tried = [point.lam for point in curve.points]
    assert tried == sorted(tried)
    assert 0.0 in tried
    assert {0.25, 0.75, 0.625} <= set(tried)  # the middles around 0.5, then around 0.5 again
    assert curve.best == 0.625
    assert not curve.at_edge
    assert [point.score for point in curve.points] == [(lam - 0.6) ** 2 for lam in tried]


def test_nothing_is_scored_twice() -> None:
    seen: list[float] = []

    def score(lam: float) -> float:
        seen.append(lam)
        return abs(lam)

    search(score, [-0.5, 0.0, 0.5, 1.0], "rtn")
    assert len(seen) == len(set(seen))


def test_ties_go_to_the_lambda_nearest_to_0() -> None:
    assert search(lambda lam: 1.0, [-1.0, 1.0], "rtn").best == 0.0


@pytest.mark.parametrize(("slope", "best"), [(-1.0, 1.5), (1.0, -0.5)])
def test_an_end_of_the_grid_is_told(slope: float, best: float) -> None:
    curve = search(lambda lam: slope * lam, [-0.5, 0.5, 1.5], "rtn")
    assert (curve.best, curve.at_edge) == (best, True)


def test_lambda_0_is_no_edge() -> None:
    assert not search(lambda lam: lam, [0.0, 1.0], "rtn").at_edge


def test_divergence_is_zero_for_equal_probabilities_and_kl_otherwise() -> None:
    teacher = np.log(np.array([[0.5, 0.25, 0.25], [0.9, 0.05, 0.05]], np.float32))
    shifted = teacher + np.float32(3.0)  # the same probabilities
    assert divergences(teacher, shifted) == pytest.approx(0.0, abs=1e-6)
    student = np.log(np.array([[0.25, 0.5, 0.25], [0.9, 0.05, 0.05]], np.float32))
    by_hand = 0.5 * np.log(2) + 0.25 * np.log(0.5)
    assert divergences(teacher, student) == pytest.approx([by_hand, 0.0], abs=1e-6)


def test_wrong_counts_images() -> None:
    logits = np.array([[1, 0], [0, 1], [1, 0]], np.float32)
    assert wrong(np.array([0, 0, 0]), logits).tolist() == [0.0, 1.0, 0.0]


def test_ridge_finds_the_donor_that_undoes_the_damage() -> None:
    rng = np.random.default_rng(0)
    plain, damage, other = (rng.standard_normal((50, 4)).astype(np.float32) for _ in range(3))
    weights = ridge_weights(plain + damage, plain, [plain + damage, plain + other])
    assert weights[0] > 0.85  # 1 but for the ridge
    assert abs(weights[1]) < 0.1


def test_ridge_does_not_see_a_constant_added_to_all_logits() -> None:
    rng = np.random.default_rng(1)
    target, plain, alone = (rng.standard_normal((20, 3)).astype(np.float32) for _ in range(3))
    shift = rng.standard_normal((20, 1)).astype(np.float32)
    assert ridge_weights(target + shift, plain, [alone]) == pytest.approx(
        ridge_weights(target, plain, [alone]), rel=1e-4
    )


def test_donors_that_move_nothing_get_no_weight() -> None:
    plain = np.ones((5, 3), np.float32)
    assert ridge_weights(plain * 2, plain, [plain, plain]) == (0.0, 0.0)

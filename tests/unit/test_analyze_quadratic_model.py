"""Where the quadratic model has no answer, none is given."""

from __future__ import annotations

import numpy as np
import pytest

from qvec_deploy.research.analyze.quadratic_model import Alignment, GradientEstimate, gradient_estimate
from qvec_deploy.research.analyze.response import LambdaResponse, QuantizedLoss


def test_the_numbers_of_proposition_1() -> None:
    found = Alignment(cross=3.0, donor=4.0, own=9.0)
    assert (found.lambda_star, found.cos_squared) == (0.75, 0.25)
    assert found.share_at(1.0) == pytest.approx(2 / 9)


@pytest.mark.parametrize(
    ("alignment", "missing"),
    [
        (Alignment(1.0, -2.0, 1.0), ("lambda_star", "cos_squared")),
        (Alignment(1.0, 0.0, 1.0), ("lambda_star", "cos_squared")),
        (Alignment(1.0, 2.0, -1.0), ("cos_squared",)),
    ],
)
def test_negative_curvature_has_no_best_lambda(alignment: Alignment, missing: tuple[str, ...]) -> None:
    assert {name for name in ("lambda_star", "cos_squared") if getattr(alignment, name) is None} == set(missing)
    assert (alignment.share_at(1.0) is None) is (alignment.own < 0)


def test_a_vector_that_changes_no_logit_has_no_estimate() -> None:
    assert GradientEstimate(0.0, 0.0, 0.0).lambda_hat is None
    assert GradientEstimate(0.0, 0.0, 0.0).sign == "unclear"


@pytest.mark.parametrize(("mean", "sign"), [(-0.5, "helps"), (0.5, "harms"), (0.05, "unclear")])
def test_the_sign_is_believed_from_two_standard_errors_on(mean: float, sign: str) -> None:
    slopes = np.tile([-1.0, 1.0], 50) + mean
    estimate = gradient_estimate(slopes, 0.25)
    assert estimate.slope_error == pytest.approx(np.std(slopes, ddof=1) / 10)
    assert estimate.lambda_hat == pytest.approx(-mean / 0.25)
    assert estimate.sign == sign


def _response(
    plain: float, own: float, curve: dict[float, float], top1: dict[float, float] | None = None
) -> LambdaResponse:
    def measured(loss: float, right: float | None) -> QuantizedLoss:
        return QuantizedLoss(loss, loss, right)

    rights = top1 or {}
    points = {lam: measured(loss, rights.get(lam)) for lam, loss in curve.items()}
    return LambdaResponse(measured(plain, 0.5 if top1 else None), measured(own, 0.9 if top1 else None), points)


def test_shares_are_of_the_gap_to_the_receivers_own_qat() -> None:
    response = _response(1.0, 0.2, {0.0: 1.0, 0.5: 0.6, 1.0: 0.4, 1.5: 1.2}, {0.0: 0.5, 0.5: 0.6, 1.0: 0.8, 1.5: 0.4})
    assert response.best == 1.0
    assert [response.share(lam) for lam in response.curve] == pytest.approx([0, 0.5, 0.75, -0.25])
    assert [response.share_top1(lam) for lam in response.curve] == pytest.approx([0, 0.25, 0.75, -0.25])


def test_without_a_gap_there_is_no_share() -> None:
    response = _response(0.2, 0.2, {0.0: 0.2, 1.0: 0.1})
    assert response.share(1.0) is None
    assert response.share_top1(1.0) is None
    assert response.best == 1.0


def test_of_equal_lambdas_the_one_nearest_to_zero_is_best() -> None:
    assert _response(1.0, 0.0, {-1.0: 0.5, 0.0: 0.7, 0.25: 0.5, 1.5: 0.5}).best == 0.25

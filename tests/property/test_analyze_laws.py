"""The algebra of lambda* and cos^2: what scaling, parallel vectors and Cauchy-Schwarz demand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from qvec_deploy.research.analyze.network import gauss_newton_form
from qvec_deploy.research.analyze.quadratic_model import Alignment, gradient_estimate

SHAPE = (5, 4)
TINY = 1e-4
law = settings(derandomize=True, deadline=None, max_examples=60)
changes = arrays.arrays(np.float64, SHAPE, elements=st.floats(-3, 3, width=32)).map(torch.from_numpy)
scales = st.floats(0.05, 20).flatmap(lambda size: st.sampled_from([size, -size]))


def _alignment(logits: Tensor, donor: Tensor, own: Tensor) -> Alignment:
    pairs = [(donor, own), (donor, donor), (own, own)]
    found = Alignment(*(gauss_newton_form(logits, first, second) for first, second in pairs))
    assume(min(found.donor, found.own) > TINY)
    return found


@law
@given(changes, changes)
def test_gauss_newton_is_positive_semidefinite(logits: Tensor, change: Tensor) -> None:
    assert gauss_newton_form(logits, change, change) >= 0


@law
@given(changes, changes, changes)
def test_gauss_newton_is_symmetric_and_blind_to_a_shift_of_all_logits(logits: Tensor, u: Tensor, v: Tensor) -> None:
    form = gauss_newton_form(logits, u, v)
    assert gauss_newton_form(logits, v, u) == pytest.approx(form, rel=1e-9, abs=1e-12)
    assert gauss_newton_form(logits, u + 2.5, v) == pytest.approx(form, rel=1e-9, abs=1e-9)


@law
@given(changes, changes, changes)
def test_no_vector_recovers_more_than_the_receivers_own(logits: Tensor, donor: Tensor, own: Tensor) -> None:
    cos_squared = _alignment(logits, donor, own).cos_squared
    assert cos_squared is not None and 0 <= cos_squared <= 1 + 1e-9


@law
@given(changes, changes, scales)
def test_a_multiple_of_the_own_vector_is_divided_back(logits: Tensor, own: Tensor, scale: float) -> None:
    found = _alignment(logits, scale * own, own)
    assert found.lambda_star == pytest.approx(1 / scale, rel=1e-9)
    assert found.cos_squared == pytest.approx(1, rel=1e-9)


@law
@given(changes, changes, changes, scales)
def test_scaling_the_donor_scales_lambda_alone(logits: Tensor, donor: Tensor, own: Tensor, scale: float) -> None:
    plain, scaled = _alignment(logits, donor, own), _alignment(logits, scale * donor, own)
    assert scaled.lambda_star == pytest.approx(plain.lambda_star / scale, rel=1e-9, abs=1e-12)  # type: ignore[operator]
    assert scaled.cos_squared == pytest.approx(plain.cos_squared, rel=1e-9, abs=1e-12)


@law
@given(changes, changes, changes, st.floats(-2, 2))
def test_lambda_star_is_the_best_lambda_and_recovers_cos_squared(
    logits: Tensor, donor: Tensor, own: Tensor, lam: float
) -> None:
    found = _alignment(logits, donor, own)
    assert found.lambda_star is not None
    best, there = found.share_at(found.lambda_star), found.share_at(lam)
    assert best == pytest.approx(found.cos_squared, rel=1e-9, abs=1e-12)
    assert best is not None and there is not None and there <= best + 1e-9 * (1 + abs(there))


@law
@given(changes, changes, changes)
def test_a_fixed_lambda_helps_below_twice_lambda_star_and_nowhere_else(
    logits: Tensor, donor: Tensor, own: Tensor
) -> None:
    found = _alignment(logits, donor, own)
    assert found.lambda_star is not None
    assume(abs(found.lambda_star) > TINY)
    for multiple, helps in ((0.01, True), (1.99, True), (2.01, False), (-0.01, False)):
        share = found.share_at(multiple * found.lambda_star)
        assert share is not None and (share > 0) is helps


@law
@given(arrays.arrays(np.float64, 12, elements=st.floats(-2, 2, width=32)), st.floats(0.01, 10), scales)
def test_the_gradients_estimate_scales_as_lambda_star_does(slopes: np.ndarray, curvature: float, scale: float) -> None:
    plain, scaled = gradient_estimate(slopes, curvature), gradient_estimate(scale * slopes, scale**2 * curvature)
    assert scaled.lambda_hat == pytest.approx(plain.lambda_hat / scale, rel=1e-9, abs=1e-12)  # type: ignore[operator]
    opposite = {"helps": "harms", "harms": "helps", "unclear": "unclear"}
    assume(abs(abs(plain.slope) - 1.96 * plain.slope_error) > 1e-9)
    assert scaled.sign == (plain.sign if scale > 0 else opposite[plain.sign])

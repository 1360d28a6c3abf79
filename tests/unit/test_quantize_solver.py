"""GPTQ's loop against the textbook's elimination, and the ridge solve against least squares on the rows themselves."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.quantize import reference, solver
from qvec_deploy.tensors import Float32, Scheme

SCHEMES = [
    Scheme(3, "tensor", method="mse"),
    Scheme(2, "channel"),
    Scheme(4, "group", 8),
    Scheme(3, "channel", clip=0.65),
]


def data(rows: int = 200, out: int = 12, columns: int = 24) -> tuple[Float32, torch.Tensor]:
    """Weights, and correlated inputs as floats64 (rows, columns)."""
    generator = np.random.default_rng(0)
    weight = generator.normal(0, 0.1, (out, columns)).astype(np.float32)
    blend = generator.normal(0, 1, (columns, columns)) / columns**0.5 + np.eye(columns)
    return weight, torch.from_numpy(generator.normal(0, 1, (rows, columns)) @ blend)


def textbook(weight: Float32, moment: np.ndarray, scheme: Scheme) -> np.ndarray:
    """OBQ in natural order: round a column, correct the others by the inverse moments, eliminate it from them."""
    scale = reference.quantize(weight, scheme).scale.repeat(weight.shape[1] // scheme.groups(weight.shape[1]), axis=1)
    work, codes = weight.astype(np.float64), np.empty(weight.shape, np.int8)
    inverse = np.linalg.inv(moment + 0.01 * np.diag(moment).mean() * np.eye(len(moment)))
    for column in range(weight.shape[1]):
        rounded = np.clip(np.rint(work[:, column] / scale[:, column]), scheme.qmin, scheme.qmax)
        codes[:, column] = rounded
        error = (work[:, column] - rounded * scale[:, column]) / inverse[column, column]
        work -= np.outer(error, inverse[column])
        inverse -= np.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    return codes


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_gptq_is_the_textbooks(scheme: Scheme, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, inputs = data()
    moment = inputs.T @ inputs
    expected = textbook(weight, moment.numpy(), scheme)
    for block in (5, 128):  # blocks are for speed alone
        monkeypatch.setattr(solver, "_BLOCK", block)
        found = solver.round_for_inputs(torch.from_numpy(weight), moment, scheme)
        np.testing.assert_array_equal(found.codes, expected)
    np.testing.assert_array_equal(found.scale, reference.quantize(weight, scheme).scale)
    assert found.codes.dtype == np.int8 and found.codes.min() >= scheme.qmin and found.codes.max() <= scheme.qmax


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_outputs_are_closer_than_those_of_the_nearest_codes(scheme: Scheme) -> None:
    weight, inputs = data()

    def error(values: Float32) -> float:
        return float(((inputs.numpy() @ (values - weight).T) ** 2).sum())

    found = solver.round_for_inputs(torch.from_numpy(weight), inputs.T @ inputs, scheme)
    assert error(found.dequantize()) < 0.9 * error(reference.quantize(weight, scheme).dequantize())


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_the_moments_stay_as_they_are(value: float) -> None:
    weight, inputs = data()
    moment = inputs.T @ inputs
    moment[3, 3] += value
    before = moment.clone()
    with contextlib.suppress(IncompatibleError):
        solver.round_for_inputs(torch.from_numpy(weight), moment, SCHEMES[0])
        solver.move_toward(torch.from_numpy(weight), torch.from_numpy(weight), moment, 0.1)
    assert torch.equal(moment.nan_to_num(7), before.nan_to_num(7))


def test_a_factor_on_the_moments_changes_nothing() -> None:
    weight, inputs = data()
    moment = (inputs.T @ inputs).float()
    codes = [solver.round_for_inputs(torch.from_numpy(weight), moment * f, SCHEMES[0]).codes for f in (1.0, 1024.0)]
    np.testing.assert_array_equal(*codes)


@pytest.mark.parametrize("moment", [torch.zeros(24, 24), torch.eye(24), torch.diag(torch.arange(24.0))])
def test_independent_inputs_leave_the_nearest_codes(moment: torch.Tensor) -> None:
    weight, _ = data()
    found = solver.round_for_inputs(torch.from_numpy(weight), moment, SCHEMES[1])
    np.testing.assert_array_equal(found.codes, reference.quantize(weight, SCHEMES[1]).codes)


def test_one_input_and_dead_inputs_are_enough_to_go_on() -> None:
    weight, inputs = data(rows=1)
    inputs[:, ::3] = 0
    nearest = reference.quantize(weight, SCHEMES[1])
    found = solver.round_for_inputs(torch.from_numpy(weight), inputs.T @ inputs, SCHEMES[1])
    np.testing.assert_array_equal(found.codes[:, ::3], nearest.codes[:, ::3])
    assert not np.array_equal(found.codes, nearest.codes)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e9])
def test_moments_of_nothing_finite_are_refused(value: float) -> None:
    weight, inputs = data()
    moment = inputs.T @ inputs
    moment[3, 3] = value
    with pytest.raises(IncompatibleError, match="cannot be inverted"):
        solver.round_for_inputs(torch.from_numpy(weight), moment, SCHEMES[0])


def test_ridge_solve_is_least_squares_on_the_rows() -> None:
    weight, inputs = data()
    generator = np.random.default_rng(1)
    wanted = torch.from_numpy(generator.normal(0, 1, (len(inputs), len(weight))))
    gap = (wanted - inputs @ torch.from_numpy(weight).double().T).T @ inputs
    found = solver.move_toward(torch.from_numpy(weight), gap, inputs.T @ inputs, 0.1).numpy()
    # The ridge as rows of its own: they ask for the old weights.
    pull = (0.1 * float((inputs**2).sum(0).mean())) ** 0.5 * np.eye(24)
    rows, targets = np.vstack([inputs.numpy(), pull]), np.vstack([wanted.numpy(), pull @ weight.T])
    np.testing.assert_allclose(found, np.linalg.lstsq(rows, targets)[0].T, atol=1e-9)

"""Rounding one weight matrix for its inputs: GPTQ's error feedback, and the ridge solve that precedes it in gptaq.

Both see the inputs through second moments (in, in) only, so that no activation has to be kept.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.quantize.nearest import quantize
from qvec_deploy.tensors import QuantizedTensor, Scheme

DAMPING = 0.01
"""Added to the moments' diagonal before GPTQ inverts them, as a share of its mean (GPTQ, arXiv 2210.17323)."""

_BLOCK = 128
"""Columns that get each other's errors one by one, and those of all columns before them in one product."""

_TRIES = 4
"""Each try damps ten times as much."""


def round_for_inputs(weight: Tensor, moment: Tensor, scheme: Scheme) -> QuantizedTensor:
    """Round a weight matrix so that its outputs, not its weights, stay close (GPTQ).

    The grid is that of `weight` itself under the scheme. Columns are taken in their natural order.

    Args:
        weight: (out, in).
        moment: (in, in), sum or mean of x x' over the inputs x; a common factor changes nothing.

    Returns:
        int8 codes (out, in) and float32 scales (out, groups).
    """
    grid = quantize(weight.detach().float().cpu().numpy(), scheme)
    scale = torch.from_numpy(grid.scale).to(moment.device)
    codes = feed_back(weight.detach().double(), feedback_factor(moment), scale.double(), scheme)
    return QuantizedTensor(codes.cpu().numpy(), grid.scale, scheme)


def move_toward(weight: Tensor, gap: Tensor, moment: Tensor, ridge: float) -> Tensor:
    """The weights whose outputs on x_q are closest to other outputs, in least squares: W + gap (H + ridge)^-1.

    Args:
        weight: W (out, in).
        gap: (out, in), sum of (wanted output - output of W on x_q) x_q'.
        moment: H (in, in), sum of x_q x_q'.
        ridge: Added to H's diagonal, as a share of its mean.

    Returns:
        (out, in) float64.
    """
    return weight.double() + torch.cholesky_solve(gap.double().T, _damped_cholesky(moment, ridge)).T


def feedback_factor(moment: Tensor) -> Tensor:
    """How much of the errors before a column that column takes over: the unit upper U of moments U D U'.

    What GPTQ reads from the Cholesky factor of the damped moments' inverse, without inverting anything: errors are
    passed on by U's columns instead of by the rows of its inverse, which comes to the same weights.

    Args:
        moment: (in, in).

    Returns:
        (in, in) float64.
    """
    factor = _damped_cholesky(moment.flip(0, 1), DAMPING).flip(0, 1)
    return factor.div_(factor.diagonal().clone())


def feed_back(weight: Tensor, factor: Tensor, scale: Tensor, scheme: Scheme) -> Tensor:
    """GPTQ's loop: round a column, and let the columns after it make up for its error.

    Args:
        weight: (out, in).
        factor: (in, in), what `feedback_factor` gave.
        scale: (out, groups).

    Returns:
        (out, in) int8 codes.
    """
    errors = weight.T.contiguous()  # a column of the weights is a row here; it becomes the column's error
    steps = scale.T.contiguous()
    codes = torch.empty(errors.shape, dtype=torch.int8, device=errors.device)
    columns, width = len(errors), len(errors) // len(steps)
    for start in range(0, columns, _BLOCK):
        end = min(start + _BLOCK, columns)
        corner = factor[start:end, start:end]
        block = torch.addmm(errors[start:end], factor[:start, start:end].T, errors[:start])
        for row, wanted in enumerate(block):
            step = steps[(start + row) // width]
            rounded = torch.clamp(torch.round(wanted / step), scheme.qmin, scheme.qmax)
            codes[start + row] = rounded
            error = errors[start + row].addcmul_(rounded, step, value=-1)
            block[row + 1 :].addr_(corner[row, row + 1 :], error)
    return codes.T.contiguous()


def _damped_cholesky(moment: Tensor, damping: float) -> Tensor:
    """Lower Cholesky factor of the damped moments; inputs that are always zero become independent of the rest."""
    matrix = moment.double()
    diagonal = matrix.diagonal().clone()
    mean = float(diagonal.mean()) or 1.0
    try:
        for attempt in range(_TRIES):
            matrix.diagonal().copy_(diagonal + damping * mean * 10**attempt)
            lower, failed = torch.linalg.cholesky_ex(matrix)
            if not failed and lower.isfinite().all():
                return cast(Tensor, lower)
    finally:
        matrix.diagonal().copy_(diagonal)  # the moments may be the caller's: a copy of a wide Linear's is large
    raise IncompatibleError(
        "the second moments of a layer's inputs cannot be inverted",
        hint="its activations overflow or are not finite: check the checkpoint and the images' normalisation",
    )

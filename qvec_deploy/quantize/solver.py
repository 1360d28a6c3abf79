"""Rounding one weight matrix for its inputs: GPTQ's error feedback, and the ridge solve that precedes it in gptaq.

Both see the inputs through second moments (in, in) only, so that no activation has to be kept.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.quantize.modelopt import quantize
from qvec_deploy.tensors import QuantizedTensor, Scheme

DAMPING = 0.01
"""Added to the moments' diagonal before GPTQ inverts them, as a share of its mean (GPTQ, arXiv 2210.17323)."""

_BLOCK = 128
"""Columns whose errors are fed back one by one; the columns after them get the block's errors in one product."""

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
    codes = feed_back(weight.detach().double(), inverse_factor(moment), scale.double(), scheme)
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


def inverse_factor(moment: Tensor) -> Tensor:
    """The upper Cholesky factor (in, in) float64 of the damped moments' inverse."""
    inverse = torch.cholesky_inverse(_damped_cholesky(moment, DAMPING))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def feed_back(weight: Tensor, factor: Tensor, scale: Tensor, scheme: Scheme) -> Tensor:
    """GPTQ's loop: round a column, and let the columns after it make up for its error.

    Args:
        weight: (out, in).
        factor: (in, in), upper Cholesky factor of the inverse moments.
        scale: (out, groups).

    Returns:
        (out, in) int8 codes.
    """
    work = weight.T.contiguous()  # a column of the weights is a row here, contiguous in memory
    steps = scale.T.contiguous()
    codes = torch.empty(work.shape, dtype=torch.int8, device=work.device)
    columns, width = len(work), len(work) // len(steps)
    for start in range(0, columns, _BLOCK):
        block, corner = work[start : start + _BLOCK], factor[start : start + _BLOCK, start : start + _BLOCK]
        errors = torch.empty_like(block)
        for row in range(len(block)):
            step = steps[(start + row) // width]
            rounded = torch.clamp(torch.round(block[row] / step), scheme.qmin, scheme.qmax)
            codes[start + row] = rounded.to(torch.int8)
            errors[row] = (block[row] - rounded * step) / corner[row, row]
            block[row + 1 :].addr_(corner[row, row + 1 :], errors[row], alpha=-1)
        after = start + len(block)
        work[after:].addmm_(factor[start:after, after:].T, errors, alpha=-1)
    return codes.T.contiguous()


def _damped_cholesky(moment: Tensor, damping: float) -> Tensor:
    """Lower Cholesky factor of the damped moments; inputs that are always zero become independent of the rest."""
    matrix = moment.double()
    mean = float(matrix.diagonal().mean()) or 1.0
    for attempt in range(_TRIES):
        damped = matrix.clone()
        damped.diagonal().add_(damping * mean * 10**attempt)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed and lower.isfinite().all():
            return cast(Tensor, lower)
    raise IncompatibleError(
        "the second moments of a layer's inputs cannot be inverted",
        hint="its activations overflow or are not finite: check the checkpoint and the images' normalisation",
    )

"""The reference quantizer in numpy: short enough to check by eye, the oracle for everything else.

Symmetric round-to-nearest without zero point, as in arXiv 2604.03420 (vectors are tied to this grid):
scale = clip * max(absmax, 1e-8) / (2^(bits-1) - 1), code = clamp(round_half_even(w / scale)). All in float32.
"""

from __future__ import annotations

import numpy as np

from qvec_deploy.tensors import Float32, QuantizedTensor, Scheme

ABSMAX_FLOOR = np.float32(1e-8)

CLIP_GRID: Float32 = (np.arange(50, 4, -1) / 50).astype(np.float32)
"""Clip ratios that method `mse` tries, 1.00 down to 0.10 by 0.02; on a tie the widest range wins."""


def quantize(weight: Float32, scheme: Scheme, clip: Float32 | None = None) -> QuantizedTensor:
    """Put a weight matrix on the grid.

    Args:
        clip: What `clip_ratios` gives, where it is known.

    Returns:
        int8 codes (out, in) and float32 scales (out, groups).
    """
    rows = as_rows(weight, scheme)
    absmax = np.maximum(np.abs(rows).max(axis=1, keepdims=True), ABSMAX_FLOOR)
    if clip is None:
        clip = clip_ratios(weight, scheme) if scheme.searched else np.full((1, 1), scheme.clip, np.float32)
    scale = (clip * absmax) / np.float32(scheme.qmax)
    codes = _codes(rows, scale, scheme).astype(np.int8).reshape(weight.shape)
    return QuantizedTensor(codes, _spread(scale, weight, scheme), scheme)


def clip_ratios(weight: Float32, scheme: Scheme) -> Float32:
    """The clip ratio of CLIP_GRID with the least squared error, for everything that shares a scale.

    Returns:
        (rows, 1) float32, where a row is a group, an output channel, or the whole tensor.
    """
    rows = as_rows(weight, scheme)
    absmax = np.maximum(np.abs(rows).max(axis=1, keepdims=True), ABSMAX_FLOOR)
    losses = []
    for clip in CLIP_GRID:
        scale = (clip * absmax) / np.float32(scheme.qmax)
        error = rows - _codes(rows, scale, scheme) * scale
        losses.append((error * error).sum(axis=1, dtype=np.float64))
    best: Float32 = CLIP_GRID[np.argmin(np.stack(losses), axis=0)][:, None]
    return best


def relative_error(weight: Float32, quantized: QuantizedTensor) -> float:
    """Relative L2 error of the dequantized weights: ||w - w_q|| / ||w||, 0.0 for an all-zero matrix."""
    norm = float(np.linalg.norm(weight))
    return float(np.linalg.norm(weight - quantized.dequantize())) / norm if norm else 0.0


def as_rows(weight: Float32, scheme: Scheme) -> Float32:
    """Reshape so that one row shares one scale."""
    if scheme.granularity == "tensor":
        return weight.reshape(1, -1)
    return weight.reshape(weight.shape[0] * scheme.groups(weight.shape[1]), -1)


def _codes(rows: Float32, scale: Float32, scheme: Scheme) -> Float32:
    codes: Float32 = np.clip(np.rint(rows / scale), scheme.qmin, scheme.qmax)
    return codes


def _spread(scale: Float32, weight: Float32, scheme: Scheme) -> Float32:
    """Scales as (out, groups); the single scale of granularity `tensor` is repeated."""
    out, columns = weight.shape
    if scheme.granularity == "tensor":
        return np.repeat(scale, out, axis=0)
    return scale.reshape(out, scheme.groups(columns))

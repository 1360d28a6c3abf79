"""The clip ratios that ModelOpt's MSE calibrator chooses, found with a tenth of its work and without loading it.

A row is what shares one scale. Measure its weights in hundredths of an unclipped step: the weight w is at the
position v = 100 qmax w / absmax. Under the clip ratio h/100 the code q stands for the position h q, so the squared
error of w is

    f_h(v) = (v - h q)^2   with   q = clamp(round(v / h)).

f_h is continuous, and a parabola between its breaks at h (q + 1/2). All ratios of CLIP_GRID have an even h, so every
break is an integer. Between the integers b and b + 1 the parabola is, at b + t, its linear interpolation less t (1 -
t), which is the same for every h and decides nothing. The loss of ratio h is therefore, but for a common constant,

    loss_h = sum over the row of (1 - t) f_h(b) + t f_h(b + 1):

two weighted lookups in a table of f_h at integers give it for all ratios at once (`embedding_bag`), and nothing is
divided, rounded or squared for every pair of a weight and a ratio.

ModelOpt's search rounds at every step, so its losses differ a little from the exact ones and may have their smallest
elsewhere. The difference is bounded. Let u = 2^-24 be float32's rounding, n the number of weights in a row and T the
norm of its positions. The distance of a point from the nearest level changes by no more than the point is moved; so
the root of a loss changes by no more than the norm of all moves. In ModelOpt's search the quotient of weight and
scale is off by 4u of itself, so the code is that of a point 4u |v| away (8u |v| in the error); scale and product are
off by 4u of h |q| <= 2 |v|; difference and square by less than 2u |v|: below 18u T in the root. Here a position is
off by 2u |v|, or by u where it is just below zero. With room for errors so small that their squares underflow, both
losses are that of one set of points with a root that is off by at most

    d = 20u T + 4u sqrt(n).

Here also the table, the weights t and float32 sums of 128 terms, none of them negative, are off by less than 140u of
the loss. So ModelOpt's loss and the constant are within 2 d sqrt(loss) + d^2 + 140u loss of the loss that is found
here. Ratios whose interval lies wholly above another's cannot win. Where more than one is left, ModelOpt's arithmetic
decides among those, step by step, and takes the first of equals, so the outcome is that of its search of the whole
grid.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from qvec_deploy.quantize.reference import ABSMAX_FLOOR, CLIP_GRID
from qvec_deploy.tensors import Scheme

_PIECE = 1 << 18  # weights that are looked at together: they stay in the cache
_SUMMED = 128  # terms of a float32 sum; the sums of those are added in float64
_STEPS = np.rint(100 * CLIP_GRID.astype(np.float64))  # of the ratios, in positions: even
_UNIT = 2.0**-24
_LARGEST = 1e19  # squares of larger weights overflow


def search_clips(rows: Tensor, absmax: Tensor, scheme: Scheme) -> Tensor:
    """The ratios of CLIP_GRID with the least squared error by ModelOpt's arithmetic; on a tie the first wins.

    Args:
        rows: What shares a scale, (rows, weights) float32 on the CPU.
        absmax: (rows, 1), as the scale uses it.

    Returns:
        (rows, 1) clip ratios.
    """
    grid, clips = torch.from_numpy(CLIP_GRID), torch.empty_like(absmax)
    doubts, rivals = [], torch.zeros(len(grid), dtype=torch.bool)
    step = max(1, _PIECE // rows.shape[1])
    for start in range(0, len(rows), step):
        piece = slice(start, start + step)
        best, unsure, possible = _narrow(rows[piece], absmax[piece], scheme)
        clips[piece] = grid[best]
        doubts.append(start + unsure)
        rivals[: possible.shape[1]] |= possible.any(dim=0)
    unsure = torch.cat(doubts)
    if len(unsure):
        clips[unsure] = _try_all(rows[unsure], absmax[unsure], scheme, grid[rivals])
    return clips


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Sums come out the same on any number of cores, and short loops do not wait for a busy one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _try_all(rows: Tensor, absmax: Tensor, scheme: Scheme, grid: Tensor) -> Tensor:
    """What ModelOpt's calibrator computes: the error of every ratio of a grid, and the first of the smallest."""
    losses = []
    for clip in grid:
        scale = (clip * absmax) / float(scheme.qmax)
        values = torch.div(rows, scale).round_().clamp_(scheme.qmin, scheme.qmax).mul_(scale)
        losses.append((rows - values).square_().double().sum(dim=1))
    return grid[torch.stack(losses).argmin(dim=0)][:, None]


def _narrow(rows: Tensor, absmax: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor, Tensor]:
    """What is left to choose from.

    Returns:
        Numbers (rows, 1) of the best ratios; numbers of the rows where another may win in ModelOpt's arithmetic; and
        the ratios (unsure rows, ratios) that may win there.
    """
    usual = (absmax > float(ABSMAX_FLOOR)) & (absmax < _LARGEST)
    loss, norm = _losses(rows, absmax, _table(scheme.bits, _width(scheme, rows.shape[1]) if usual.all() else None))
    best = torch.from_numpy(loss.numpy().argmin(axis=1))[:, None]  # NaN is less than any number, as for ModelOpt
    least = loss.gather(1, best).double()
    apart = _UNIT * (21 * norm + 4 * rows.shape[1] ** 0.5)  # 21: the norm itself is rounded
    inexact = _UNIT * (_SUMMED + 12)
    upper = (least.sqrt() + apart).square() + inexact * least
    # The largest root r whose r^2 less its margin, 2 apart r + apart^2 + inexact r^2, is no more than `upper`.
    root = (apart + (apart.square() + (1 - inexact) * (upper + apart.square())).sqrt()) / (1 - inexact)
    limit = torch.where(absmax < _LARGEST, root.square(), torch.inf)
    second = loss.scatter(1, best, torch.inf).amin(dim=1, keepdim=True)
    unsure = torch.nonzero((second <= limit) & (norm > 0))[:, 0]  # of zeros alone: a tie, and the first wins
    return best, unsure, loss[unsure] <= limit[unsure]


def _losses(rows: Tensor, absmax: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """The losses of all ratios plus a constant (rows, ratios), and the norms of the positions (rows, 1) float64."""
    pieces = torch.split(rows, _PIECE, dim=1) if len(rows) == 1 else [rows]
    parts = [_sums(piece, absmax, table) for piece in pieces]
    loss = torch.cat([loss for loss, _ in parts], dim=1)
    squares = torch.cat([squares for _, squares in parts], dim=1).sum(dim=1, keepdim=True, dtype=torch.float64)
    return loss.sum(dim=1, dtype=torch.float64) if loss.shape[1] > 1 else loss[:, 0], squares.sqrt()


def _sums(rows: Tensor, absmax: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Losses (rows, sums, ratios) of every _SUMMED weights, and the squared norms of the positions (rows, 1)."""
    reach, length = len(table) // 2 - 1, rows.shape[1]
    position = rows * (reach / absmax)
    squares = torch.linalg.vector_norm(position, dim=1, keepdim=True).square()
    edge = torch.floor(position)
    above = position.sub_(edge).reshape(-1)
    index = edge.add_(reach + 1).to(torch.int32).clamp_(0, len(table) - 2).reshape(-1)  # NaN has no place of its own
    starts = torch.arange(0, rows.numel(), length)[:, None] + torch.arange(0, length, _SUMMED)
    starts = starts.to(torch.int32).reshape(-1)
    loss = embedding_bag(index, table[1:], starts, mode="sum", per_sample_weights=above)
    loss += embedding_bag(index, table[:-1], starts, mode="sum", per_sample_weights=above.neg_().add_(1))
    return loss.reshape(len(rows), -1, table.shape[1]), squares


def _width(scheme: Scheme, length: int) -> int:
    """How many of the ratios can win: smaller ones clip the largest weight by more than all are off under ratio 1.0."""
    clipped = 100 * scheme.qmax - _STEPS * (scheme.qmax + 1)  # or more, where the largest weight is positive
    return int((clipped < 51 * length**0.5).sum())  # 50 is half a step; the rest is room for rounding


@cache
def _table(bits: int, width: int | None = None) -> Tensor:
    """Squared errors (positions, ratios) at the integers from one below -100 qmax to one above 100 qmax."""
    qmax = (1 << (bits - 1)) - 1
    position = torch.arange(-100 * qmax - 1, 100 * qmax + 2, dtype=torch.float64)[:, None]
    step = torch.from_numpy(_STEPS[:width])
    code = torch.clamp(torch.round(position / step), -qmax - 1, qmax)
    return (position - step * code).square().float()

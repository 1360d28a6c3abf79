"""The symmetries of a vision transformer, one place at a time: which of them lies between two sketches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from qvec_deploy.tensors import Float32, Scheme
from qvec_deploy.vectors.matching import (
    Indices,
    Match,
    Units,
    match_channels,
    match_heads,
    match_neurons,
    similarity,
)
from qvec_deploy.vectors.sketch import LinearSketch, Sketch
from qvec_deploy.vectors.undo import TensorChange, change_columns, change_rows

if TYPE_CHECKING:
    from qvec_deploy.vectors.symmetric_places import Attention, Mlp

NEURONS = "permutation of MLP neurons"
HEADS = "permutation of attention heads"
CHANNELS = "permutation of channels inside attention heads"
SIGNS_QK = "sign flips of q and k"
SIGNS_VP = "sign flips of v and proj"
SCALE_QK = "positive row scaling between q and k"
SCALE_VP = "positive scaling between v and proj"
ROOT = "1/sqrt(d) folded into q"
GAIN = "LayerNorm gain folded into the next Linear"

_GAIN_MOVED = 0.02  # rms of the log ratio of two gains; fine-tuning leaves 0.006
_ROOT_SLACK = 0.2  # of a log ratio that is -log(8) for heads of 64 channels

Squares = tuple[float, float]
"""Squared norms: of the difference between receiver and donor, and of the donor."""


@dataclass(frozen=True)
class Explained:
    """What lies between receiver and donor at one place.

    Attributes:
        found: Symmetry to how many neurons, heads or channels it moves.
        squares: What is left of the difference once those are accounted for, by Linear.
    """

    found: Mapping[str, int] = field(default_factory=dict)
    squares: Mapping[str, Squares] = field(default_factory=dict)
    changes: Mapping[str, TensorChange] = field(default_factory=dict)


def commutes(symmetry: str, scheme: Scheme) -> bool:
    """Whether quantizing on `scheme` and applying `symmetry` come out the same in either order.

    Only then does undoing the symmetry leave the receiver's own quantized model as it was.
    """
    if symmetry in (NEURONS, HEADS, CHANNELS):
        return scheme.granularity != "group"
    if symmetry in (SIGNS_QK, SIGNS_VP):
        return not scheme.searched and scheme.clip == 1.0
    if symmetry in (SCALE_QK, ROOT):
        return scheme.granularity != "tensor"
    return False  # the others scale columns


def gain_moved(receiver: Sketch, donor: Sketch, norm: str, linear: str) -> bool:
    """Whether the columns of a Linear grew by just what the gain of the norm before it lost."""
    if norm not in donor.gains:
        return False
    lost = _log_ratio(donor.gains[norm], receiver.gains[norm])
    grown = _log_ratio(receiver.linears[linear].column_norms, donor.linears[linear].column_norms)
    return _rms(lost) > _GAIN_MOVED and _rms(grown - lost) < 0.5 * _rms(lost)


def examine_mlp(receiver: Sketch, donor: Sketch, mlp: Mlp) -> Explained:
    """Look for permuted neurons; GELU lets them be neither flipped nor scaled."""
    ours, theirs = (_neurons(model.linears[mlp.fc1], model.linears[mlp.fc2]) for model in (donor, receiver))
    match = match_neurons(ours, theirs)
    left, right = _squares_of(theirs, ours, match)
    squares = {mlp.fc1: left, mlp.fc2: right}
    if not match.moved:
        return Explained(squares=squares)
    changes = {**change_rows(mlp.fc1, match.order), **change_columns(mlp.fc2, match.order)}
    return Explained({NEURONS: match.moved}, squares, changes)


def examine_attention(receiver: Sketch, donor: Sketch, attention: Attention) -> Explained:
    """Look for heads and channels that are permuted, flipped or scaled."""
    ours, theirs = (_channels(model, attention) for model in (donor, receiver))
    heads = match_heads([np.abs(similarity(*pair)) for pair in zip(ours, theirs, strict=True)], attention.heads)
    width = len(ours[0].left) // attention.heads
    root = np.float32(width**0.5 if _root_folded(ours[0], theirs[0], heads) else 1)
    theirs = (theirs[0].scaled_left(root), theirs[1])
    qk, vp = (match_channels(mine, other, heads) for mine, other in zip(ours, theirs, strict=True))
    found = {
        HEADS: int((heads != np.arange(attention.heads)).sum()),
        CHANNELS: _moved_inside(qk, heads) + _moved_inside(vp, heads),
        SIGNS_QK: qk.flipped,
        SIGNS_VP: vp.flipped,
        SCALE_QK: qk.scaled,
        SCALE_VP: vp.scaled,
        ROOT: len(qk.order) if root != 1 else 0,
    }
    found = {symmetry: units for symmetry, units in found.items() if units}
    (q, k), (v, proj) = _squares_of(theirs[0], ours[0], qk), _squares_of(theirs[1], ours[1], vp)
    squares = {attention.qkv: (q[0] + k[0] + v[0], q[1] + k[1] + v[1]), attention.proj: proj}
    if not found:
        return Explained(squares=squares)
    size = len(qk.order)
    rows = np.concatenate([qk.order, size + qk.order, 2 * size + vp.order])
    factors = np.concatenate([qk.left * root, qk.right, vp.left])
    changes = {**change_rows(attention.qkv, rows, factors), **change_columns(attention.proj, vp.order, vp.right)}
    if attention.table:
        changes[attention.table] = TensorChange(columns=heads)
    return Explained(found, squares, changes)


def squares_between(receiver: Float32, donor: Float32) -> Squares:
    """Squared norms of a difference and of the donor's part in it."""
    return float(np.square(receiver - donor, dtype=np.float64).sum()), float(np.square(donor, dtype=np.float64).sum())


def _neurons(fc1: LinearSketch, fc2: LinearSketch) -> Units:
    return Units(fc1.rows, fc2.columns, fc1.row_norms, fc2.column_norms)


def _channels(model: Sketch, attention: Attention) -> tuple[Units, Units]:
    """The channels of q and k, and those of v and proj."""
    qkv, proj = model.linears[attention.qkv], model.linears[attention.proj]
    q, k, v = np.split(qkv.rows, 3)
    q_norms, k_norms, v_norms = np.split(qkv.row_norms, 3)
    return Units(q, k, q_norms, k_norms), Units(v, proj.columns, v_norms, proj.column_norms)


def _root_folded(donor: Units, receiver: Units, heads: Indices) -> bool:
    """Whether the products of q and k shrank by the square root of a head's width, scales between them aside."""
    order = match_channels(donor, receiver, heads).order
    left = _log_ratio(receiver.left_norms[order], donor.left_norms)
    right = _log_ratio(receiver.right_norms[order], donor.right_norms)
    width = len(order) // len(heads)
    return width > 1 and abs(float(np.median(left + right)) + 0.5 * np.log(width)) < _ROOT_SLACK


def _moved_inside(match: Match, heads: Indices) -> int:
    """Channels that are elsewhere in their head, wherever the head is."""
    width = len(match.order) // len(heads)
    expected = (heads[:, None] * width + np.arange(width)).ravel()
    return int((match.order != expected).sum())


def _squares_of(receiver: Units, donor: Units, match: Match) -> tuple[Squares, Squares]:
    left = receiver.left[match.order] * match.left[:, None]
    right = receiver.right[match.order] * match.right[:, None]
    return squares_between(left, donor.left), squares_between(right, donor.right)


def _log_ratio(above: Float32, below: Float32) -> Float32:
    tiny = np.float32(1e-7)
    ratio: Float32 = np.log(np.maximum(np.abs(above), tiny) / np.maximum(np.abs(below), tiny))
    return ratio


def _rms(values: Float32) -> float:
    return float(np.sqrt(np.square(values, dtype=np.float64).mean()))

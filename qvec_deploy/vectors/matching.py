"""Which unit of a receiver is which unit of a donor, when units may be permuted, flipped and scaled.

A unit is what a symmetry moves: a neuron of an MLP (a row of fc1, a column of fc2), a channel of q and k, a channel of
v and proj. Its signature is a pair of sketches, `left` and `right`, which an honest symmetry maps to
(s * a * left, s / a * right) with a sign s and a scale a > 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qvec_deploy.tensors import Float32

SURE = 0.8
"""Cosine from which two units are the same one: fine-tuning keeps it above 0.95, chance leaves it below 0.7."""

_SCALED = 1.25  # factors nearer to 1 than this are fine-tuning

Indices = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Units:
    """Signatures of n units.

    Attributes:
        left: (n, 16) sketches.
        left_norms: (n,) norms of what `left` sketches.
    """

    left: Float32
    right: Float32
    left_norms: Float32
    right_norms: Float32

    def scaled_left(self, factor: np.float32) -> Units:
        """The same with their left halves multiplied."""
        return Units(self.left * factor, self.right, self.left_norms * factor, self.right_norms)


@dataclass(frozen=True, eq=False)
class Match:
    """How a receiver's units become the donor's.

    Attributes:
        order: (n,) the receiver's unit that belongs in each place.
        left: (n,) factors of the left halves, applied after `order`.
        right: (n,) factors of the right halves.
    """

    order: Indices
    left: Float32
    right: Float32

    @property
    def moved(self) -> int:
        """Units that are not in their place."""
        return int((self.order != np.arange(len(self.order))).sum())

    @property
    def flipped(self) -> int:
        """Units whose sign is the other one."""
        return int((self.left < 0).sum())

    @property
    def scaled(self) -> int:
        """Units whose two halves are scaled against each other."""
        return int((np.abs(np.abs(self.left) - 1) > 1e-6).sum())


def similarity(donor: Units, receiver: Units) -> Float32:
    """(n, n) mean cosine of both halves of every donor's unit (rows) with every receiver's unit (columns)."""
    left = _directions(donor.left) @ _directions(receiver.left).T
    right = _directions(donor.right) @ _directions(receiver.right).T
    both: Float32 = (left + right) * np.float32(0.5)
    return both


def assign(score: Float32) -> Indices:
    """Which of the receiver's units belongs in each place.

    Units that are surely in their place stay. Of the others, each surest pair is taken first; what is left over
    fits nowhere, as dead units do not, stays where it can and fills the free places where it cannot.

    Args:
        score: (n, n), donor by receiver.
    """
    order = np.arange(len(score))
    astray = np.flatnonzero(np.diagonal(score) < SURE)
    if len(astray) == 0:
        return order
    among = score[np.ix_(astray, astray)]
    best, found = among.argmax(axis=1), among.max(axis=1)
    surest = np.argsort(-found, kind="stable")[: int((found > SURE).sum())]
    taken, first = np.unique(best[surest], return_index=True)  # the first is the surest
    placed = surest[first]
    order[astray[placed]] = astray[taken]
    free = np.setdiff1d(np.arange(len(astray)), taken)
    homeless = np.setdiff1d(np.arange(len(astray)), placed)
    staying = np.intersect1d(free, homeless)
    order[astray[np.setdiff1d(homeless, staying)]] = astray[np.setdiff1d(free, staying)]
    return order


def match_neurons(donor: Units, receiver: Units) -> Match:
    """Match units that can only be permuted, as the neurons of an MLP with GELU."""
    ones = np.ones(len(donor.left), np.float32)
    return Match(assign(similarity(donor, receiver)), ones, ones)


def match_heads(scores: list[Float32], heads: int) -> Indices:
    """The receiver's head for every donor's head.

    Args:
        scores: `similarity` of the q/k channels and of the v/proj channels, in absolute value, each (n, n).
    """
    width = len(scores[0]) // heads
    blocks = [score.reshape(heads, width, heads, width).max(axis=3).mean(axis=1) for score in scores]
    return assign(sum(blocks[1:], start=blocks[0]) / np.float32(len(blocks)))


def match_channels(donor: Units, receiver: Units, heads: Indices) -> Match:
    """Match channels, which may be permuted inside their head, flipped and scaled; `heads` is known by then."""
    score = similarity(donor, receiver)
    width = len(score) // len(heads)
    order = np.empty(len(score), np.intp)
    for head, other in enumerate(heads):
        rows, columns = slice(head * width, (head + 1) * width), slice(other * width, (other + 1) * width)
        order[rows] = other * width + assign(np.abs(score[rows, columns]))
    found = score[np.arange(len(score)), order]
    sure = np.abs(found) > SURE
    sign = np.where(sure & (found < 0), np.float32(-1), np.float32(1))
    ratio = _ratio(receiver.left_norms[order], donor.left_norms) / _ratio(
        receiver.right_norms[order], donor.right_norms
    )
    scale = np.sqrt(ratio)
    scale = np.where(sure & (np.maximum(scale, 1 / scale) > _SCALED), scale, np.float32(1))
    return Match(order, (sign / scale).astype(np.float32), (sign * scale).astype(np.float32))


def _directions(rows: Float32) -> Float32:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    directions: Float32 = (rows / np.maximum(norms, 1e-12)).astype(np.float32)
    return directions


def _ratio(above: Float32, below: Float32) -> Float32:
    tiny = np.float32(1e-7)  # a unit of norm 0 has no scale: 1
    ratio: Float32 = (np.maximum(above, tiny) / np.maximum(below, tiny)).astype(np.float32)
    return ratio

"""The pretraining mix: 212 classes of procedural images that give a tiny network its base weights.

128 fractals of iterated function systems, 36 glyphs, 7 shapes in 4 textures, 20 gratings: all bright on dark
like the tasks, and no image from anywhere.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

from qvec_deploy.datasets.strokes import (
    IMAGE,
    MASK,
    SHAPES,
    Images,
    Jitter,
    Masks,
    colour,
    figure_masks,
    glyph_masks,
    view,
)

FRACTALS = 128
GLYPHS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
TEXTURES = 4
ORIENTATIONS, FREQUENCIES = 5, (2.0, 3.2, 5.0, 8.0)
CLASSES = FRACTALS + len(GLYPHS) + len(SHAPES) * TEXTURES + ORIENTATIONS * len(FREQUENCIES)

_POINTS = 3000
_SYSTEMS_SEED = 20260404
"""Which fractals exist; the seeds of images are separate, so every split sees the same 128 classes."""


@functools.cache
def _fractal_masks() -> Masks:
    """Masks (128, 64, 64): the attractors of seeded random iterated function systems."""
    rng = np.random.default_rng(_SYSTEMS_SEED)
    masks = np.empty((FRACTALS, MASK, MASK), np.float32)
    found = 0
    while found < FRACTALS:
        mask = _attractor(rng)
        # Attractors that are nearly a point or nearly a disc would be one class under several names.
        if 0.08 < float((mask > 0.1).mean()) < 0.45:
            masks[found] = mask
            found += 1
    return masks


def _attractor(rng: np.random.Generator) -> Masks:
    """One random system's attractor as a (64, 64) mask, filling the frame's middle."""
    maps = int(rng.integers(2, 5))
    turns = rng.uniform(0, 2 * math.pi, (2, maps))
    singular = rng.uniform(0.3, 0.85, (2, maps))
    shifts = rng.uniform(-1, 1, (maps, 2))
    first = np.stack([np.cos(turns[0]), -np.sin(turns[0]), np.sin(turns[0]), np.cos(turns[0])], -1)
    second = np.stack([np.cos(turns[1]), -np.sin(turns[1]), np.sin(turns[1]), np.cos(turns[1])], -1)
    linear = first.reshape(maps, 2, 2) * singular.T[:, None, :] @ second.reshape(maps, 2, 2)
    weight = np.abs(np.linalg.det(linear)) + 0.05
    bounds = np.cumsum(weight / weight.sum())
    moves = np.hstack([linear.reshape(maps, 4), shifts]).T
    x = y = np.zeros(_POINTS)
    for _ in range(24):  # every point plays the chaos game by itself: 24 steps, not 3000
        chosen = np.searchsorted(bounds / bounds[-1], rng.random(_POINTS), side="right")
        xx, xy, yx, yy, right, down = moves.take(chosen, axis=1)
        x, y = xx * x + xy * y + right, yx * x + yy * y + down
    points = np.stack([x, y], axis=1)
    low, high = np.quantile(points, [0.01, 0.99], axis=0)
    scaled = (points - (low + high) / 2) / max(float((high - low).max()), 1e-3)
    pixel = np.floor(scaled * 46 + MASK / 2).astype(np.int64)
    pixel = pixel[((pixel >= 0) & (pixel < MASK)).all(axis=1)]
    counts = np.bincount(pixel[:, 1] * MASK + pixel[:, 0], minlength=MASK * MASK).reshape(MASK, MASK)
    mask: Masks = np.minimum(counts / 1.5, 1.0).astype(np.float32)
    return mask


def _texture(kind: NDArray[np.int64], rng: np.random.Generator) -> Masks:
    """Textures (N, 32, 32) in [0, 1]: plain, stripes, checks, dots."""
    count = len(kind)
    axis = np.arange(IMAGE, dtype=np.float32)
    angle = rng.uniform(0, math.pi, count).astype(np.float32)[:, None, None]
    phase = rng.uniform(0, 2 * math.pi, (2, count)).astype(np.float32)[:, :, None, None]
    across = np.cos(angle) * axis[None, None, :] + np.sin(angle) * axis[None, :, None]
    along = np.cos(angle) * axis[None, :, None] - np.sin(angle) * axis[None, None, :]
    wave = np.float32(2 * math.pi / 6)
    first, second = np.sin(wave * across + phase[0]), np.sin(wave * along + phase[1])
    choices = np.stack([np.ones_like(first), first > 0, first * second > 0, np.minimum(first, second) > 0])
    picked: Masks = choices[kind, np.arange(count)].astype(np.float32)
    return np.float32(0.25) + np.float32(0.75) * picked


def _gratings(kind: NDArray[np.int64], rng: np.random.Generator) -> Masks:
    """Gratings (N, 32, 32) in [0, 1] of 5 orientations and 4 frequencies (cycles per image)."""
    count = len(kind)
    axis = np.linspace(0, 1, IMAGE, dtype=np.float32)
    wobble = rng.uniform(-0.12, 0.12, count)
    angle = (math.pi * (kind // len(FREQUENCIES)) / ORIENTATIONS + wobble).astype(np.float32)[:, None, None]
    cycles = np.asarray(FREQUENCIES)[kind % len(FREQUENCIES)] * rng.uniform(0.92, 1.08, count)
    phase = rng.uniform(0, 2 * math.pi, count).astype(np.float32)[:, None, None]
    across = np.cos(angle) * axis[None, None, :] + np.sin(angle) * axis[None, :, None]
    waves = 0.5 + 0.5 * np.sin(2 * math.pi * cycles.astype(np.float32)[:, None, None] * across + phase)
    return waves.astype(np.float32, copy=False)


def draw_mix(labels: NDArray[np.int64], rng: np.random.Generator) -> Images:
    """Draw one image of each given class.

    Args:
        labels: (N,) in [0, 212).

    Returns:
        (N, 32, 32, 3) uint8.
    """
    jitter = Jitter()
    coverage = np.empty((len(labels), IMAGE, IMAGE), np.float32)
    starts = np.cumsum([0, FRACTALS, len(GLYPHS), len(SHAPES) * TEXTURES])
    family = np.searchsorted(starts, labels, side="right") - 1
    for number in range(4):
        rows = np.flatnonzero(family == number)
        if not len(rows):
            continue
        kind = labels[rows] - starts[number]
        if number == 0:
            coverage[rows] = view(_fractal_masks()[kind], jitter, rng)
        elif number == 1:
            glyphs = glyph_masks(GLYPHS)
            coverage[rows] = view(glyphs[kind, rng.integers(glyphs.shape[1], size=len(rows))], jitter, rng)
        elif number == 2:
            shapes = view(figure_masks(SHAPES, filled=True)[kind // TEXTURES, 0], jitter, rng)
            coverage[rows] = shapes * _texture(kind % TEXTURES, rng)
        else:
            coverage[rows] = _gratings(kind, rng)
    return colour(coverage, jitter, rng)

"""Stroke world: glyphs, outlines and handwritten digits, bright on dark, tinted and jittered. All seeded.

A figure is a 64x64 coverage mask, rasterised once. An image is a mask seen through a random affine map and a
slow warp, averaged down to 32x32, coloured, and given a shaded background and noise. One domain for all tasks is
on purpose: a quantization vector carries over between tasks of one visual domain and hardly between domains.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Masks = NDArray[np.float32]
Images = NDArray[np.uint8]

IMAGE = 32
MASK = 64
_CANVAS = 256
"""Masks are drawn at four times their size and averaged down: PIL does not smooth the edges of lines."""
_GLYPH_WEIGHTS = (0, 5, 10)
_LINE_WEIGHTS = (9, 15, 21)


@dataclass(frozen=True)
class Jitter:
    """How far a figure is moved and how much is laid over it; each bound is drawn from uniformly.

    Attributes:
        shift: Largest shift either way, in pixels of the 32x32 image.
        warp: Largest displacement of the slow sinusoidal warp, in pixels.
        noise: Smallest and largest standard deviation of the pixel noise, as a share of full white.
    """

    degrees: float = 12.0
    scale: tuple[float, float] = (0.75, 1.1)
    shear: float = 0.15
    shift: float = 3.0
    warp: float = 0.8
    noise: tuple[float, float] = (0.02, 0.08)


def _shrink(canvas: NDArray[np.uint8]) -> Masks:
    """Average a (256, 256) drawing down to a (64, 64) mask in [0, 1]."""
    step = _CANVAS // MASK
    mean: Masks = canvas.reshape(MASK, step, MASK, step).mean(axis=(1, 3), dtype=np.float32) / np.float32(255.0)
    return mean


@functools.cache
def glyph_masks(texts: tuple[str, ...]) -> Masks:
    """Masks (len(texts), weights, 64, 64) of short texts in Pillow's own font, in three stroke weights."""
    from PIL import Image, ImageDraw, ImageFont

    masks = np.empty((len(texts), len(_GLYPH_WEIGHTS), MASK, MASK), np.float32)
    for row, text in enumerate(texts):
        font = ImageFont.load_default(190 if len(text) == 1 else 140)
        for column, weight in enumerate(_GLYPH_WEIGHTS):
            image = Image.new("L", (_CANVAS, _CANVAS))
            draw = ImageDraw.Draw(image)
            left, top, right, bottom = draw.textbbox((0, 0), text, font=font, stroke_width=weight)
            corner = ((_CANVAS - left - right) / 2, (_CANVAS - top - bottom) / 2)
            draw.text(corner, text, fill=255, font=font, stroke_width=weight)
            masks[row, column] = _shrink(np.asarray(image))
    return masks


def _ring(sides: int, *, turn: float = 0.0, inner: float = 1.0, squash: float = 1.0) -> list[tuple[float, float]]:
    """Corners of a regular polygon, or of a star where `inner` < 1, on a circle of radius 1."""
    points = []
    for corner in range(sides):
        angle = 2 * math.pi * corner / sides + turn - math.pi / 2
        radius = inner if corner % 2 else 1.0
        points.append((radius * math.cos(angle), squash * radius * math.sin(angle)))
    return points


def _arc(start: float, end: float, *, radius: float = 1.0, centre: float = 0.0) -> list[tuple[float, float]]:
    """Points along an arc, degrees clockwise from three o'clock, shifted right by `centre`."""
    angles = np.radians(np.linspace(start, end, 40))
    return [(centre + radius * math.cos(a), radius * math.sin(a)) for a in angles]


def _figures() -> dict[str, list[tuple[float, float]]]:
    """The 17 closed figures, as corners in [-1, 1], x right and y down."""
    cross = [(-1, -0.35), (-0.35, -0.35), (-0.35, -1), (0.35, -1), (0.35, -0.35), (1, -0.35)]
    arrow = [(-1, -0.3), (0.1, -0.3), (0.1, -0.8), (1, 0), (0.1, 0.8), (0.1, 0.3), (-1, 0.3)]
    heart = [
        (math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16)
        for t in np.linspace(0, 2 * math.pi, 40)
    ]
    return {
        "circle": _ring(48),
        "square": _ring(4, turn=math.pi / 4),
        "triangle": _ring(3),
        "diamond": [(0, -1), (0.6, 0), (0, 1), (-0.6, 0)],
        "pentagon": _ring(5),
        "star": _ring(10, inner=0.45),
        "cross": cross + [(-x, -y) for x, y in cross],
        "ellipse": _ring(48, squash=0.5),
        "rectangle": [(-1, -0.5), (1, -0.5), (1, 0.5), (-1, 0.5)],
        "hexagon": _ring(6),
        "octagon": _ring(8, turn=math.pi / 8),
        "sparkle": _ring(8, inner=0.35),
        "asterisk": _ring(12, inner=0.5),
        "half": _arc(180, 360),
        "crescent": _arc(60, 300) + _arc(300, 60, radius=0.75, centre=0.35),
        "arrow": arrow,
        "heart": heart,
    }


OUTLINES = tuple(_figures())
SHAPES = OUTLINES[:7]
"""The figures that the pretraining mix fills with textures."""


@functools.cache
def figure_masks(names: tuple[str, ...], *, filled: bool) -> Masks:
    """Masks (len(names), weights, 64, 64) of closed figures: outlined in three widths, or filled (one)."""
    from PIL import Image, ImageDraw

    figures = _figures()
    weights = (0,) if filled else _LINE_WEIGHTS
    masks = np.empty((len(names), len(weights), MASK, MASK), np.float32)
    for row, name in enumerate(names):
        corners = [(_CANVAS * (0.5 + 0.36 * x), _CANVAS * (0.5 + 0.36 * y)) for x, y in figures[name]]
        for column, weight in enumerate(weights):
            image = Image.new("L", (_CANVAS, _CANVAS))
            draw = ImageDraw.Draw(image)
            if filled:
                draw.polygon(corners, fill=255)
            else:
                draw.line([*corners, *corners[:2]], fill=255, width=weight, joint="curve")
            masks[row, column] = _shrink(np.asarray(image))
    return masks


@functools.cache
def digit_masks() -> tuple[Masks, NDArray[np.int64]]:
    """scikit-learn's 1797 handwritten digits as masks (1797, 64, 64) and labels (1797,)."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    masks = np.zeros((len(digits.images), MASK, MASK), np.float32)
    for row, image in enumerate(digits.images):
        grown = Image.fromarray((image * (255.0 / 16.0)).astype(np.uint8)).resize((48, 48), Image.Resampling.BICUBIC)
        masks[row, 8:56, 8:56] = np.asarray(grown, np.float32) / np.float32(255.0)
    return masks, digits.target.astype(np.int64)


def view(masks: Masks, jitter: Jitter, rng: np.random.Generator, drawn: int | None = None) -> Masks:
    """See each mask through its own random affine map and warp.

    Args:
        masks: (N, 64, 64) coverage.
        drawn: So many maps are drawn, and the first N used; N if None.

    Returns:
        (N, 32, 32) coverage in [0, 1].
    """
    count, used = drawn or len(masks), len(masks)
    angle = np.radians(rng.uniform(-jitter.degrees, jitter.degrees, count))[:used]
    zoom = (rng.uniform(*jitter.scale, (2, count)) ** -0.5 * rng.uniform(*jitter.scale, count) ** -0.5)[:, :used]
    shear = rng.uniform(-jitter.shear, jitter.shear, count)[:used]
    shift = rng.uniform(-jitter.shift, jitter.shift, (2, count))[:, :used] * (MASK / IMAGE)
    phase = rng.uniform(0, 2 * math.pi, (2, count))[:, :used]
    bend = rng.uniform(-jitter.warp, jitter.warp, (2, count))[:, :used] * (MASK / IMAGE)

    axis = np.arange(MASK, dtype=np.float32) - (MASK - 1) / 2
    y, x = (grid[None] for grid in np.meshgrid(axis, axis, indexing="ij"))

    def each(values: NDArray[np.float64]) -> NDArray[np.float32]:
        return values.astype(np.float32)[:, None, None]

    wave = np.float32(2 * math.pi / 40)
    x, y = (
        x - each(shift[0]) + each(bend[0]) * np.sin(wave * y + each(phase[0])),
        y - each(shift[1]) + each(bend[1]) * np.sin(wave * x + each(phase[1])),
    )
    cos, sin = each(np.cos(angle)), each(np.sin(angle))
    source_x = each(zoom[0]) * (cos * x + sin * y) + each(shear) * y
    source_y = each(zoom[1]) * (cos * y - sin * x)
    seen = _sample(masks, source_x + (MASK - 1) / 2, source_y + (MASK - 1) / 2)
    half: Masks = seen.reshape(used, IMAGE, 2, IMAGE, 2).mean(axis=(2, 4), dtype=np.float32)
    return half


def _sample(masks: Masks, x: NDArray[np.float32], y: NDArray[np.float32]) -> Masks:
    """Bilinear lookup of masks (N, 64, 64) at x, y (N, 64, 64); nothing lies outside."""
    padded = np.pad(masks, ((0, 0), (1, 1), (1, 1)))
    side = MASK + 2
    x = np.clip(x + 1, 0, side - 1.001)
    y = np.clip(y + 1, 0, side - 1.001)
    left, top = x.astype(np.int32), y.astype(np.int32)
    dx, dy = x - left, y - top
    flat = padded.reshape(-1)
    start = (np.arange(len(masks), dtype=np.int32) * (side * side))[:, None, None] + top * side + left
    upper = flat[start] * (1 - dx) + flat[start + 1] * dx
    lower = flat[start + side] * (1 - dx) + flat[start + side + 1] * dx
    blended: Masks = upper * (1 - dy) + lower * dy
    return blended


def colour(coverage: Masks, jitter: Jitter, rng: np.random.Generator, drawn: int | None = None) -> Images:
    """Paint coverage bright on a dark, shaded, noisy background.

    Bright on dark always: with random polarity a network this small does not start to learn.

    Args:
        coverage: (N, 32, 32) in [0, 1].
        drawn: So many colours are drawn, and the first N used; N if None.

    Returns:
        (N, 32, 32, 3) uint8.
    """
    count, used = drawn or len(coverage), len(coverage)
    dark = rng.uniform(0.0, 0.25, (count, 1, 1, 3)).astype(np.float32)[:used]
    bright = rng.uniform(0.55, 1.0, (count, 1, 1, 3)).astype(np.float32)[:used]
    slope = rng.uniform(-0.1, 0.1, (2, count, 1, 1, 1)).astype(np.float32)[:, :used]
    sigma = rng.uniform(*jitter.noise, (count, 1, 1, 1)).astype(np.float32)[:used]
    noise = rng.standard_normal((used, IMAGE, IMAGE, 3), np.float32)
    ramp = np.linspace(-1, 1, IMAGE, dtype=np.float32)
    shade = slope[0] * ramp[None, :, None, None] + slope[1] * ramp[None, None, :, None]
    painted = dark + shade + coverage[..., None] * (bright - dark) + sigma * noise
    image: Images = np.clip(painted * 255.0 + 0.5, 0, 255).astype(np.uint8)
    return image

"""Images made up on the spot, for calibrating and selecting where no image of the task is at hand.

Structured on purpose: fractals, strokes, figures and gratings give a network's layers inputs like those that real
images give, which noise does not. They carry no labels. At the size of the bundled tasks an image is one bright thing
on a dark ground, as theirs are; larger ones hold several things, of either polarity.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from qvec_deploy.datasets.spec import SPLITS, DataConfig, DatasetSpec, DrawnDataset, Float32, Int64
from qvec_deploy.errors import RecipeError

PREFIX = "generated/"
NAME = "generated/structured"

_SEED = 2605
"""Not that of the pretraining mix: no fractal here is among the ones it trains on."""
_COUNT = 256
_SYSTEMS = 64
_CLOUD = 3000
_LARGE = 64
"""Pixels from which on an image is a scene and not a single thing."""

Plane = NDArray[np.float64]
Images = NDArray[np.uint8]


class GeneratedDataset(DrawnDataset):
    """Seeded images without labels: `classes` is 0 and every label is 0."""

    @functools.cached_property
    def pixels(self) -> Images:
        """All images (N, C, H, W) uint8. Each has a seed of its own: it does not depend on how many there are."""
        seeds = ([_SEED, SPLITS.index(self.split), row] for row in range(self._count))
        return np.stack([_draw(self._config.input_size, np.random.default_rng(seed)) for seed in seeds])

    def take(self, rows: Sequence[int] | Int64) -> tuple[Float32, Int64]:
        """Images (B, C, H, W) float32, normalised, of the given rows, and zeros (B,) for labels."""
        chosen = np.asarray(rows, np.int64)
        return self.normalised(self.pixels[chosen]), np.zeros(len(chosen), np.int64)


def open_generated(spec: DatasetSpec, config: DataConfig) -> GeneratedDataset:
    """Open `generated/structured`, at the size and with the normalisation of a model."""
    if spec.name != NAME:
        raise RecipeError(f"there are no generated images `{spec.name}`", hint=f"the name is `{NAME}`")
    if spec.root is not None:
        raise RecipeError(f"{NAME} is drawn and reads no folder", hint="leave out `root`")
    return GeneratedDataset(spec, config, spec.limit or _COUNT)


def _draw(shape: tuple[int, int, int], rng: np.random.Generator) -> Images:
    """One image (C, H, W): bright things painted one over another on a dark, shaded ground, and a little noise."""
    channels, height, width = shape
    side = max(height, width)
    large = side >= _LARGE
    canvas = np.tile(_tint(0.0, 0.25, channels, rng), (1, side, side))
    for _ in range(int(rng.integers(2, 6)) if large else 1):
        kind = _KINDS[int(rng.choice(len(_KINDS), p=_SHARES))]
        coverage = kind(side, rng).astype(np.float32)
        canvas += coverage * (_tint(0.2 if large else 0.55, 1.0, channels, rng) - canvas)
    if large and rng.random() < 0.5:
        canvas = 1 - canvas
    slope, axis = rng.uniform(-0.1, 0.1, 2), np.linspace(-1, 1, side)
    canvas += (slope[0] * axis[:, None] + slope[1] * axis).astype(np.float32)
    sigma = rng.uniform(0.01, 0.04) if large else rng.uniform(0.02, 0.08)
    canvas += np.float32(sigma) * rng.standard_normal(canvas.shape, np.float32)
    top, left = (side - height) // 2, (side - width) // 2
    cropped = canvas[:, top : top + height, left : left + width]
    image: Images = np.clip(cropped * np.float32(255) + np.float32(0.5), 0, 255).astype(np.uint8)
    return image


def _tint(low: float, high: float, channels: int, rng: np.random.Generator) -> Float32:
    """A random colour (C, 1, 1)."""
    return rng.uniform(low, high, (channels, 1, 1)).astype(np.float32)


def _place(side: int, rng: np.random.Generator) -> tuple[Plane, float]:
    """Centre (x, y) and radius, in pixels, of the next thing: nearly all of a small image, some part of a large one."""
    large = side >= _LARGE
    radius = side * (rng.uniform(0.15, 0.5) if large else rng.uniform(0.3, 0.44))
    spread = 0.4 if large else 0.08
    return side * (0.5 + rng.uniform(-spread, spread, 2)), radius


def _fractal(side: int, rng: np.random.Generator) -> Plane:
    """An attractor's points, turned, stretched and counted on a grid of twice the resolution."""
    points = _attractor(int(rng.integers(_SYSTEMS)))
    centre, radius = _place(side, rng)
    angle, stretch = rng.uniform(0, 2 * math.pi), rng.uniform(0.8, 1.25)
    cos, sin = math.cos(angle), math.sin(angle)
    turn = np.array([[cos, -sin], [sin, cos]]) * np.array([[stretch], [1 / stretch]])
    # As many points as give each covered cell of a small image, or of a large one, about three.
    used = points[: max(_CLOUD, int(0.7 * (2 * radius) ** 2))]
    pixel = np.floor(2 * (used @ turn.T * (2 * radius) + centre)).astype(np.int64)
    pixel = pixel[((pixel >= 0) & (pixel < 2 * side)).all(axis=1)]
    counts = np.bincount(pixel[:, 1] * (2 * side) + pixel[:, 0], minlength=4 * side * side)
    fine = np.minimum(counts / 1.5, 1.0).reshape(2 * side, 2 * side)
    coverage: Plane = (fine[::2, ::2] + fine[::2, 1::2] + fine[1::2, ::2] + fine[1::2, 1::2]) / 4
    return coverage


@functools.cache
def _attractor(number: int) -> Plane:
    """Points (N, 2), about within [-0.5, 0.5], of the attractor of a seeded random iterated function system."""
    rng = np.random.default_rng([_SEED, len(SPLITS), number])
    while True:
        maps = int(rng.integers(2, 5))
        turns = rng.uniform(0, 2 * math.pi, (maps, 2))
        stretches = rng.uniform(0.3, 0.85, (maps, 2))
        shifts = rng.uniform(-1, 1, (maps, 2))
        linear = _rotations(turns[:, 0]) * stretches[:, None, :] @ _rotations(turns[:, 1])
        weight = stretches.prod(axis=1) + 0.05
        play = functools.partial(_play, linear=linear, shifts=shifts, shares=weight / weight.sum(), rng=rng)
        cloud = play(np.zeros((_CLOUD, 2)), steps=20)
        low, high = np.quantile(cloud, [0.01, 0.99], axis=0)
        middle, extent = (low + high) / 2, max(float((high - low).max()), 1e-3)
        cells = np.unique(np.floor((cloud - middle) / extent * 32) @ [1000.0, 1.0])
        if 0.12 < len(cells) / 32**2 < 0.6:  # neither nearly a point nor a disc
            # Copies of a point that part here are different points of the attractor a few steps later.
            points = play(np.repeat(cloud, 10, axis=0), steps=3)
            return rng.permutation((points - middle) / extent)


def _play(points: Plane, *, steps: int, linear: Plane, shifts: Plane, shares: Plane, rng: np.random.Generator) -> Plane:
    """The chaos game, each point by itself: at each step one of the maps, drawn by its share."""
    bounds = np.cumsum(shares)[:-1]
    for _ in range(steps):
        chosen = np.searchsorted(bounds, rng.random(len(points)))
        points = (linear[chosen] * points[:, None, :]).sum(-1) + shifts[chosen]
    return points


def _rotations(angles: Plane) -> Plane:
    """Matrices (N, 2, 2)."""
    cos, sin = np.cos(angles), np.sin(angles)
    return np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)


def _strokes(side: int, rng: np.random.Generator) -> Plane:
    """One to four connected curves of one width: writing in no alphabet."""
    from PIL import Image, ImageDraw

    zoom = 4 if side < _LARGE else 2
    centre, radius = _place(side, rng)
    width = max(1, round(zoom * radius * rng.uniform(0.12, 0.3)))
    image = Image.new("L", (zoom * side, zoom * side))
    draw = ImageDraw.Draw(image)
    start = rng.uniform(-0.9, 0.9, 2)
    time = np.linspace(0, 1, 16)[:, None]
    for _ in range(int(rng.integers(1, 5))):
        bend, end = rng.uniform(-0.9, 0.9, (2, 2))
        curve = (1 - time) ** 2 * start + 2 * time * (1 - time) * bend + time**2 * end
        draw.line([(x, y) for x, y in zoom * (centre + radius * curve)], fill=255, width=width, joint="curve")
        start = end if rng.random() < 0.6 else rng.uniform(-0.9, 0.9, 2)
    return np.asarray(image.reduce(zoom), np.float64) / 255.0


def _figure(side: int, rng: np.random.Generator) -> Plane:
    """A closed wavy outline, or its inside: plain, striped, checked or dotted."""
    centre, radius = _place(side, rng)
    y, x = np.meshgrid(np.arange(side) + 0.5 - centre[1], np.arange(side) + 0.5 - centre[0], indexing="ij")
    angle = np.arctan2(y, x)
    lobes, phases = rng.integers(2, 8, 2), rng.uniform(0, 2 * math.pi, 2)
    swings = rng.uniform(0.05, 0.3, 2)
    border = 1 + swings[0] * np.cos(lobes[0] * angle + phases[0]) + swings[1] * np.cos(lobes[1] * angle + phases[1])
    inside = 0.75 * radius * border - np.hypot(x, y)  # in pixels; negative outside
    outlined = rng.random() < 0.5
    if outlined:
        inside = radius * rng.uniform(0.06, 0.14) - np.abs(inside)
    coverage: Plane = np.clip(inside + 0.5, 0, 1)
    return coverage if outlined else coverage * _texture(x / radius, y / radius, rng)


def _texture(x: Plane, y: Plane, rng: np.random.Generator) -> Plane:
    """Plain, stripes, checks or dots, in [0.25, 1]."""
    angle, waves = rng.uniform(0, math.pi), rng.uniform(4, 9)
    phases = rng.uniform(0, 2 * math.pi, 2)
    first = np.sin(waves * (math.cos(angle) * x + math.sin(angle) * y) + phases[0])
    second = np.sin(waves * (math.cos(angle) * y - math.sin(angle) * x) + phases[1])
    pattern = (np.ones_like(first), first > 0, first * second > 0, np.minimum(first, second) > 0)[int(rng.integers(4))]
    texture: Plane = 0.25 + 0.75 * pattern
    return texture


def _grating(side: int, rng: np.random.Generator) -> Plane:
    """Waves of any direction, over all of the image or fading out around a point."""
    centre, radius = _place(side, rng)
    y, x = np.meshgrid(np.arange(side) - centre[1], np.arange(side) - centre[0], indexing="ij")
    angle, phase = rng.uniform(0, math.pi), rng.uniform(0, 2 * math.pi)
    cycles = rng.uniform(2, 8 if side < _LARGE else 24)
    waves: Plane = 0.5 + 0.5 * np.sin(2 * math.pi * cycles / side * (math.cos(angle) * x + math.sin(angle) * y) + phase)
    if side < _LARGE and rng.random() < 0.5:
        return waves
    faded: Plane = waves * np.exp(-(x**2 + y**2) / radius**2)
    return faded


_KINDS: tuple[Callable[[int, np.random.Generator], Plane], ...] = (_fractal, _strokes, _figure, _grating)
_SHARES = (0.4, 0.25, 0.2, 0.15)

"""The bundled tasks: stroke world's six and the pretraining mix, drawn when asked for, from fixed seeds."""

from __future__ import annotations

import difflib
import functools
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qvec_deploy.datasets import pretraining_mix as mix
from qvec_deploy.datasets import strokes
from qvec_deploy.datasets.spec import SPLITS, DataConfig, DatasetSpec, DrawnDataset, Float32, Int64, Split
from qvec_deploy.datasets.strokes import IMAGE, Images, Jitter
from qvec_deploy.errors import RecipeError

PREFIX = "tiny/"

_SEED = 2604
_CHUNK = 250
"""Images are drawn in chunks with a seed each: the first ones do not depend on how many are asked for."""

_LOWER = tuple("abcdefghijklmnopqrstuvwxyz")
_UPPER = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_SYMBOLS = tuple("!#$%&()*+/<=>?@[]^{}~")
_PAIRS = tuple(first + second for first in "AEKS" for second in "2579")
_DIGITS = tuple("0123456789")

Draw = Callable[[Int64, Split, np.random.Generator, int], tuple[Images, Int64]]
"""From image numbers (N,), split, generator and the number of images that are wanted, to these first images and their
labels. Random numbers are drawn for all N."""


@dataclass(frozen=True)
class TinyTask:
    """One bundled task.

    Attributes:
        names: Of the classes, by label; empty for the mix, whose classes have none.
        bounded: Splits that hold no more than their usual number of distinct originals.
    """

    classes: int
    sizes: dict[Split, int]
    names: tuple[str, ...]
    draw: Draw
    bounded: tuple[Split, ...] = ()


def _draw_glyphs(
    texts: tuple[str, ...], rows: Int64, split: Split, rng: np.random.Generator, wanted: int
) -> tuple[Images, Int64]:
    return _draw_masks(strokes.glyph_masks(texts), len(rows), rng, wanted)


def _draw_outlines(rows: Int64, split: Split, rng: np.random.Generator, wanted: int) -> tuple[Images, Int64]:
    return _draw_masks(strokes.figure_masks(strokes.OUTLINES, filled=False), len(rows), rng, wanted)


def _draw_masks(masks: strokes.Masks, count: int, rng: np.random.Generator, wanted: int) -> tuple[Images, Int64]:
    """The first of `count` jittered images of masks (classes, weights, 64, 64), label and stroke weight at random."""
    labels = rng.integers(masks.shape[0], size=count)[:wanted]
    weights = rng.integers(masks.shape[1], size=count)[:wanted]
    return _painted(masks[labels, weights], count, rng), labels


def _painted(masks: strokes.Masks, count: int, rng: np.random.Generator) -> Images:
    """Masks as the first of `count` images."""
    jitter = Jitter()
    return strokes.colour(strokes.view(masks, jitter, rng, count), jitter, rng, count)


DIGIT_TEST, DIGIT_VAL = 500, 200


@functools.cache
def digit_split(split: Split) -> NDArray[np.int64]:
    """Which of scikit-learn's 1797 digits belong to a split; the splits share none.

    The split is of scans, before any jitter. Writers are not known, so one writer's digits are in all splits.
    """
    order = np.random.default_rng(_SEED).permutation(1797)
    bounds = {
        "test": (0, DIGIT_TEST),
        "val": (DIGIT_TEST, DIGIT_TEST + DIGIT_VAL),
        "train": (DIGIT_TEST + DIGIT_VAL, 1797),
    }
    low, high = bounds[split]
    return order[low:high]


def _draw_digits(rows: Int64, split: Split, rng: np.random.Generator, wanted: int) -> tuple[Images, Int64]:
    """The split's scans by number, jittered; numbers beyond the last scan start again with other jitter."""
    masks, labels = strokes.digit_masks()
    pool = digit_split(split)
    scans = pool[rows[:wanted] % len(pool)]
    return _painted(masks[scans], len(rows), rng), labels[scans]


def _draw_mix(rows: Int64, split: Split, rng: np.random.Generator, wanted: int) -> tuple[Images, Int64]:
    labels = rng.integers(mix.CLASSES, size=len(rows))
    return mix.draw_mix(labels, rng)[:wanted], labels[:wanted]


_SIZES: dict[Split, int] = {"train": 4000, "val": 400, "test": 500}
_DIGIT_SIZES: dict[Split, int] = {"train": 4000, "val": DIGIT_VAL, "test": DIGIT_TEST}
_MIX_SIZES: dict[Split, int] = {"train": 60_000, "val": 1000, "test": 2000}

TASKS: dict[str, TinyTask] = {
    "lower": TinyTask(len(_LOWER), _SIZES, _LOWER, functools.partial(_draw_glyphs, _LOWER)),
    "upper": TinyTask(len(_UPPER), _SIZES, _UPPER, functools.partial(_draw_glyphs, _UPPER)),
    "symbols": TinyTask(len(_SYMBOLS), _SIZES, _SYMBOLS, functools.partial(_draw_glyphs, _SYMBOLS)),
    "realdigits": TinyTask(10, _DIGIT_SIZES, _DIGITS, _draw_digits, bounded=("val", "test")),
    "pairs": TinyTask(len(_PAIRS), _SIZES, _PAIRS, functools.partial(_draw_glyphs, _PAIRS)),
    "outline": TinyTask(len(strokes.OUTLINES), _SIZES, strokes.OUTLINES, _draw_outlines),
    "mix": TinyTask(mix.CLASSES, _MIX_SIZES, (), _draw_mix),
}


class TinyDataset(DrawnDataset):
    """A bundled task's split: drawn at first use, kept as bytes, normalised when taken."""

    def __init__(self, spec: DatasetSpec, config: DataConfig, count: int) -> None:
        super().__init__(spec, config, count)
        self._key = spec.name.removeprefix(PREFIX)
        self._task = TASKS[self._key]
        self.classes, self.class_names = self._task.classes, self._task.names

    @functools.cached_property
    def pixels(self) -> tuple[Images, Int64]:
        """All images (N, 32, 32, 3) uint8 as drawn, and labels (N,)."""
        images = np.empty((self._count, IMAGE, IMAGE, 3), np.uint8)
        labels = np.empty(self._count, np.int64)
        for start in range(0, self._count, _CHUNK):
            key = [_SEED, zlib.crc32(self._key.encode()), SPLITS.index(self.split), start]
            rows, stop = np.arange(start, start + _CHUNK), min(start + _CHUNK, self._count)
            drawn = self._task.draw(rows, self.split, np.random.default_rng(key), stop - start)
            images[start:stop], labels[start:stop] = drawn
        return images, labels

    def take(self, rows: Sequence[int] | Int64) -> tuple[Float32, Int64]:
        """Images (B, 3, 32, 32) float32, normalised, and labels (B,) int64, of the given rows."""
        images, labels = self.pixels
        chosen = np.asarray(rows, np.int64)
        return self.normalised(images[chosen].transpose(0, 3, 1, 2)), labels[chosen]


def open_tiny(spec: DatasetSpec, config: DataConfig) -> TinyDataset:
    """Open a bundled task."""
    name = spec.name.removeprefix(PREFIX)
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=1, cutoff=0.0)
        raise RecipeError(
            f"there is no bundled task `{spec.name}`",
            hint=f"did you mean `{PREFIX}{near[0]}`? There are {', '.join(PREFIX + task for task in TASKS)}",
        )
    if spec.root is not None:
        raise RecipeError(f"{spec.name} is bundled and reads no folder", hint="leave out `root`")
    if config.input_size != (3, IMAGE, IMAGE):
        raise RecipeError(
            f"{spec.name} has images of 3x{IMAGE}x{IMAGE}, the model takes {config.input_size}",
            hint="bundled tasks are for the demo's model; give your own images for this one",
        )
    task = TASKS[name]
    count = spec.limit or task.sizes[spec.split]
    if spec.split in task.bounded:
        count = min(count, task.sizes[spec.split])
    return TinyDataset(spec, config, count)

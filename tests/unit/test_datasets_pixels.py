"""Pixels come back exactly from what they were normalised to."""

from __future__ import annotations

import numpy as np
import pytest
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from qvec_deploy.datasets.pixels import pixels_of
from qvec_deploy.datasets.standalone_run import ImagePreprocessor


@pytest.mark.parametrize(
    ("mean", "std"), [((0.5,) * 3, (0.5,) * 3), (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD), ((0.0,) * 3, (1.0,) * 3)]
)
def test_every_byte_comes_back(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    pixels = np.random.default_rng(0).permutation(np.arange(256 * 3) % 256).astype(np.uint8).reshape(16, 16, 3)
    config = {"input_size": (3, 16, 16), "crop_pct": 1.0, "crop_mode": "center", "interpolation": "bicubic"}
    images = ImagePreprocessor({**config, "mean": mean, "std": std}).normalised(pixels)[None]
    assert np.array_equal(pixels_of(images, mean, std), pixels[None])


def test_what_no_pixel_gives_becomes_the_nearest_one() -> None:
    images = np.full((2, 3, 1, 1), -9.0, np.float32)
    images[1] = 9.0
    assert pixels_of(images, (0.5,) * 3, (0.5,) * 3).ravel().tolist() == [0, 0, 0, 255, 255, 255]

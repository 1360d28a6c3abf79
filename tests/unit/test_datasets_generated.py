"""Generated images are the same everywhere, structured, of any size, and carry no labels."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qvec_deploy.datasets import SPLITS, DataConfig, DatasetSpec, batches, open_dataset
from qvec_deploy.datasets.generated import GeneratedDataset, open_generated
from qvec_deploy.errors import RecipeError

NAME = "generated/structured"
FIRST_IMAGES = {
    32: "ef8c80edf82cee2a7cd9e91611f62afeffe537b40da00bc360e08aadf18ac8fd",
    80: "0454ebbb6f9fd70bb98d5c84a63b66ca2eac2fbd0157f1c09e90fad40ba3d7b5",
}
"""SHA-256 of the first 8 test images; numpy 2.4 with and without AVX-512 gives these."""


def drawn(limit: int | None = 8, size: tuple[int, int, int] = (3, 32, 32), split: str = "test") -> GeneratedDataset:
    return open_generated(DatasetSpec(NAME, split, limit=limit), DataConfig(input_size=size))  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(3, 32, 32), (1, 28, 28), (3, 48, 96), (3, 100, 70), (4, 16, 16)])
def test_any_size(size: tuple[int, int, int]) -> None:
    data = open_dataset(DatasetSpec(NAME, limit=12), DataConfig(input_size=size, mean=(0.5,), std=(0.5,)))
    images, labels = data.take(np.arange(12))
    assert images.shape == (12, *size) and images.dtype == np.float32 and images.flags.c_contiguous
    assert images.min() >= -1 and images.max() <= 1
    assert labels.tolist() == [0] * 12 and labels.dtype == np.int64
    assert (data.name, data.split, data.classes, len(data)) == (NAME, "test", 0, 12)


def test_normalised_as_the_model_wants_it() -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    data = open_dataset(DatasetSpec(NAME, limit=3), DataConfig(mean=mean, std=std))
    images, _ = data.take([2, 0])
    expected = (drawn(3).pixels[[2, 0]] / 255.0 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    np.testing.assert_allclose(images, expected, atol=1e-5)


def test_first_images_do_not_depend_on_the_number() -> None:
    many = drawn(20).pixels
    np.testing.assert_array_equal(drawn(5).pixels, many[:5])
    assert len(drawn(None)) == 256
    assert sum(len(images) for images, _ in batches(drawn(20), 8)) == 20


def test_images_and_splits_differ() -> None:
    pixels = np.concatenate([drawn(20, split=split).pixels for split in SPLITS])
    assert len(np.unique(pixels.reshape(60, -1), axis=0)) == 60


@pytest.mark.parametrize(("side", "share"), [(32, 0.5), (96, 0.8)])
def test_structure_and_not_noise(side: int, share: float) -> None:
    """Neighbouring pixels are alike: in noise the correlation is 0."""
    pixels = drawn(60, (3, side, side)).pixels.astype(np.float64).mean(axis=1)
    left, right = pixels[:, :, :-1].reshape(60, -1), pixels[:, :, 1:].reshape(60, -1)
    correlations = [np.corrcoef(a, b)[0, 1] for a, b in zip(left, right, strict=True)]
    assert np.mean(correlations) > share
    assert pixels.std(axis=(1, 2)).min() > 4  # none is empty


def test_small_images_are_bright_on_dark() -> None:
    pixels = drawn(100).pixels.astype(np.float64)
    assert np.median(pixels, axis=(1, 2, 3)).mean() < 90
    assert (np.quantile(pixels, 0.99, axis=(1, 2, 3)) > 100).mean() > 0.95


@pytest.mark.parametrize("side", FIRST_IMAGES)
def test_pinned_images(side: int) -> None:
    assert hashlib.sha256(drawn(8, (3, side, side)).pixels.tobytes()).hexdigest() == FIRST_IMAGES[side]


def test_another_process_draws_the_same_and_loads_no_torch() -> None:
    script = (
        "import hashlib, sys\n"
        "from qvec_deploy.datasets import DataConfig, DatasetSpec, open_dataset\n"
        f"data = open_dataset(DatasetSpec('{NAME}', limit=8), DataConfig())\n"
        "print(hashlib.sha256(data.pixels.tobytes()).hexdigest(), 'torch' in sys.modules)\n"
    )
    env = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [FIRST_IMAGES[32], "False"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (DatasetSpec("generated/noise"), "no generated images `generated/noise`"),
        (DatasetSpec(NAME, root=Path("somewhere")), "reads no folder"),
    ],
)
def test_refusals(spec: DatasetSpec, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        open_dataset(spec, DataConfig())


def test_accuracy_on_them_is_refused() -> None:
    with pytest.raises(RecipeError, match="0 classes"):
        open_dataset(DatasetSpec(NAME), DataConfig(), expected_classes=10)

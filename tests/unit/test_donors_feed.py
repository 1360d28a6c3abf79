"""Batches: in the order of the seed, the same whoever reads them, augmented the same for every run."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qvec_deploy.datasets import DataConfig, Dataset, DatasetSpec, open_dataset
from qvec_deploy.donors.feed import Augmented, augmented, feed
from qvec_deploy.errors import RecipeError, StorageError

CONFIG = DataConfig()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of three classes, 40 x 48 pixels of noise."""
    root = tmp_path_factory.mktemp("images") / "train"
    rng = np.random.default_rng(0)
    for label in "abc":
        (root / label).mkdir(parents=True)
        for number in range(4):
            pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / label / f"{number}.png")
    shutil.copy(root / "a" / "0.png", root / "b" / "0.png")  # image 4 is image 0
    return root.parent


@pytest.fixture
def spec(folder: Path) -> DatasetSpec:
    return DatasetSpec("folder", "train", folder)


@pytest.fixture
def plain(spec: DatasetSpec) -> Dataset:
    return open_dataset(spec, CONFIG)


@pytest.fixture
def data(plain: Dataset, spec: DatasetSpec) -> Augmented:
    return augmented(plain, spec, CONFIG, seed=3)


ROWS = np.array([7, 0, 11, 3])


def test_an_image_depends_on_seed_step_and_number_alone(data: Augmented, plain: Dataset, spec: DatasetSpec):
    images, labels = data.draw(5, ROWS)
    torch.manual_seed(99)
    random.seed(99)
    again, same_labels = data.draw(5, ROWS[::-1])
    assert np.array_equal(images, again[::-1])
    assert labels.tolist() == same_labels.tolist()[::-1] == plain.take(ROWS)[1].tolist()
    others = [data.draw(6, ROWS), augmented(plain, spec, CONFIG, seed=4).draw(5, ROWS), plain.take(ROWS)]
    for other, _ in others:
        assert not np.array_equal(images, other)
    assert images.shape == (4, 3, 32, 32)
    assert images.dtype == np.float32


def test_all_images_of_a_batch_are_augmented_apart(data: Augmented):
    images, _ = data.draw(0, np.array([2, 2]))
    assert np.array_equal(images[0], images[1])  # one number, one step
    twins, _ = data.draw(0, np.array([0, 4]))
    assert not np.array_equal(twins[0], twins[1])
    first, second = (data.draw(step, np.array([2]))[0] for step in (0, 1))
    assert not np.array_equal(first, second)


def test_the_random_numbers_of_others_stay_where_they_were(data: Augmented):
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    data.draw(0, ROWS)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_it_is_a_dataset(data: Augmented):
    assert (len(data), data.name, data.split, data.classes) == (12, "folder", "train", 3)
    assert np.array_equal(data.take([1, 2])[0], data.draw(0, np.array([1, 2]))[0])


def test_a_bundled_task_is_not_augmented():
    spec = DatasetSpec("tiny/lower", "train", limit=4)
    with pytest.raises(RecipeError, match="tiny/lower is drawn with its own jitter"):
        augmented(open_dataset(spec, CONFIG), spec, CONFIG, seed=0)


def test_worker_processes_read_the_same_and_leave_the_random_numbers_alone(data: Augmented):
    plan = [(0, ROWS), (1, np.array([1, 2])), (2, ROWS)]
    here = list(feed(data, plan, workers=0))
    before = torch.get_rng_state()
    there = list(feed(data, iter(plan), workers=1))
    assert torch.equal(torch.get_rng_state(), before)
    assert len(here) == len(there) == 3
    for (images, labels), (others, their) in zip(here, there, strict=True):
        assert np.array_equal(images, others)
        assert np.array_equal(labels, their)
        assert (others.dtype, their.dtype) == (np.float32, np.int64)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read(tmp_path: Path, workers: int):
    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "train" / "a" / "broken.png").write_bytes(b"no image")
    data = open_dataset(DatasetSpec("folder", "train", tmp_path), CONFIG)
    with pytest.raises(StorageError, match=r"broken\.png cannot be read") as caught:
        list(feed(data, [(0, np.array([0]))], workers))
    assert caught.value.hint == "repair or remove the file"

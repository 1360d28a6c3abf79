"""The bundled tasks are the same images everywhere, and folders come through timm unshuffled and unskipped."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qvec_deploy.datasets import SPLITS, DataConfig, Dataset, DatasetSpec, Split, batches, open_dataset
from qvec_deploy.datasets.pretraining_mix import draw_mix
from qvec_deploy.datasets.timm_factory import TimmDataset
from qvec_deploy.datasets.tiny import TASKS, TinyDataset, digit_split, open_tiny
from qvec_deploy.errors import IncompatibleError, RecipeError, StorageError

CONFIG = DataConfig()
IMAGENET = DataConfig(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CLASSES = {"lower": 26, "upper": 26, "symbols": 21, "realdigits": 10, "pairs": 16, "outline": 17, "mix": 212}
"""All tasks: a changed number of classes would make published checkpoints useless."""
FIRST_IMAGES = {
    "lower": "a15598ce86e4df1961db4186f49fbe51949767cec731ad46f65b7b874e0a8d4c",
    "outline": "29e9ed2a4744ec35eb35c35cfd7225749c6c1c52572bc71a1d8472acb93c5f9f",
    "realdigits": "0cf243192f0c6838f6d610c68bd27853c9b5594c777a0b3497f4598ea0b30a0b",
    "mix": "548e12668b01f1bfbf2cb8fbe792c4eae30de2ee6e4432b7e7ea2a7dd60b7aa4",
}
"""SHA-256 of the first 16 test images. Pillow 10.4 and 13.0, and numpy with and without AVX-512, give these."""


@functools.cache
def tiny(name: str, split: Split = "test", limit: int | None = None, config: DataConfig = CONFIG) -> TinyDataset:
    return open_tiny(DatasetSpec(f"tiny/{name}", split, limit=limit), config)


def digest(name: str) -> str:
    return hashlib.sha256(tiny(name, limit=16).pixels[0].tobytes()).hexdigest()


# The bundled tasks


def test_the_tasks():
    assert {name: task.classes for name, task in TASKS.items()} == CLASSES


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", CLASSES)
def test_images_and_labels(name, split):
    data = open_dataset(DatasetSpec(f"tiny/{name}", split, limit=250), CONFIG, expected_classes=CLASSES[name])
    assert (data.name, data.split, data.classes) == (f"tiny/{name}", split, CLASSES[name])
    assert len(data) == (200 if (name, split) == ("realdigits", "val") else 250)
    images, labels = data.take(np.arange(len(data)))
    assert images.shape == (len(data), 3, 32, 32)
    assert images.dtype == np.float32
    assert images.flags.c_contiguous
    assert -1.0 <= images.min() < -0.9  # bytes 0 to 255 become -1 to 1
    assert 0.9 < images.max() <= 1.0
    assert (images.std(axis=(1, 2, 3)) > 0.02).all()  # no image is empty
    assert labels.shape == (len(data),)
    assert labels.dtype == np.int64
    assert labels.min() >= 0
    assert labels.max() < data.classes
    if name != "mix":
        assert set(labels.tolist()) == set(range(data.classes))


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("lower", (4000, 400, 500)),
        ("outline", (4000, 400, 500)),
        ("realdigits", (4000, 200, 500)),
        ("mix", (60_000, 1000, 2000)),
    ],
)
def test_usual_sizes(name, sizes):
    assert tuple(len(tiny(name, split)) for split in SPLITS) == sizes


def test_every_family_of_the_mix_has_its_classes():
    images = draw_mix(np.arange(CLASSES["mix"]), np.random.default_rng(0))
    assert images.shape == (212, 32, 32, 3)
    assert (images.std(axis=(1, 2, 3)) > 5).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CLASSES if name != "mix"])
def test_labels_are_those_of_the_images(name):
    """The nearest class mean, which knows nothing of strokes, is right three times as often as chance."""
    images, labels = tiny(name, "train", 1000).take(np.arange(1000))
    means = np.stack([images[labels == label].mean(axis=(0, 1)) for label in range(CLASSES[name])])
    unseen, truth = tiny(name, "val", 200).take(np.arange(200))

    def flat(values: np.ndarray) -> np.ndarray:
        rows = values.reshape(len(values), -1)
        rows = rows - rows.mean(axis=1, keepdims=True)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    guesses = (flat(unseen.mean(axis=1)) @ flat(means).T).argmax(axis=1)
    assert (guesses == truth).mean() > 3 / CLASSES[name]


@pytest.mark.parametrize("name", FIRST_IMAGES)
def test_pinned_images(name):
    assert digest(name) == FIRST_IMAGES[name]


@pytest.mark.slow
def test_another_process_draws_the_same_images():
    script = (
        "import hashlib, json, sys\n"
        "from qvec_deploy.datasets import DataConfig, DatasetSpec, open_dataset\n"
        "drawn = {n: open_dataset(DatasetSpec('tiny/' + n, limit=16), DataConfig()).pixels for n in sys.argv[1:]}\n"
        "hashes = {n: hashlib.sha256(i.tobytes()).hexdigest() for n, (i, _) in drawn.items()}\n"
        "labels = {n: l.tolist() for n, (_, l) in drawn.items()}\n"
        "print(json.dumps([hashes, labels, 'torch' in sys.modules]))\n"
    )
    other_order = list(reversed(CLASSES))  # what was drawn before must not matter
    result = subprocess.run(
        [sys.executable, "-c", script, *other_order],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    hashes, labels, torch_loaded = json.loads(result.stdout)
    assert hashes == {name: digest(name) for name in CLASSES}
    assert labels == {name: tiny(name, limit=16).pixels[1].tolist() for name in CLASSES}
    assert not torch_loaded


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_first_images_do_not_depend_on_the_limit(name):
    most, most_labels = tiny(name, "train", 300).pixels
    for limit in (1, 7, 250, 260):
        images, labels = tiny(name, "train", limit).pixels
        assert np.array_equal(images, most[:limit])
        assert np.array_equal(labels, most_labels[:limit])


@pytest.mark.parametrize("name", CLASSES)
def test_no_image_occurs_twice(name):
    """Across splits, across chunks, and across images of one chunk."""
    hashes = [
        hashlib.sha256(image.tobytes()).digest() for split in SPLITS for image in tiny(name, split, 300).pixels[0]
    ]
    assert len(hashes) >= 800
    assert len(set(hashes)) == len(hashes)


def test_take_gives_the_rows_in_the_order_asked_for():
    data = tiny("symbols", limit=20)
    images, labels = data.take(range(20))
    chosen = [3, 19, 3, 0]
    some, some_labels = data.take(chosen)
    assert np.array_equal(some, images[chosen])
    assert np.array_equal(some_labels, labels[chosen])


def test_bundled_images_are_normalised_as_the_model_wants():
    pixels, _ = tiny("lower", limit=4).pixels
    images, _ = tiny("lower", limit=4, config=IMAGENET).take([0, 1, 2, 3])
    by_hand = (pixels / 255.0 - np.array(IMAGENET.mean)) / np.array(IMAGENET.std)
    np.testing.assert_allclose(images, by_hand.transpose(0, 3, 1, 2), atol=1e-6)


def test_the_digits_of_the_splits_are_disjoint_and_complete():
    parts = {split: digit_split(split) for split in SPLITS}
    assert {split: len(part) for split, part in parts.items()} == {"train": 1097, "val": 200, "test": 500}
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(1797))


@pytest.mark.parametrize("split", SPLITS)
def test_the_digits_are_the_scans_of_the_split(split):
    from sklearn.datasets import load_digits

    _, labels = tiny("realdigits", split, 200).pixels
    assert np.array_equal(labels, load_digits().target[digit_split(split)[:200]])


def test_held_out_digits_are_bounded_and_others_are_not():
    assert len(tiny("realdigits", "test", 100_000)) == 500
    assert len(tiny("realdigits", "val", 100_000)) == 200
    assert len(tiny("realdigits", "train", 5000)) == 5000
    assert len(tiny("lower", "test", 600)) == 600


def test_digits_beyond_the_last_scan_start_again_with_other_jitter():
    images, labels = tiny("realdigits", "train", 1147).pixels
    assert np.array_equal(labels[1097:], labels[:50])
    assert all(not np.array_equal(images[1097 + row], images[row]) for row in range(50))


@pytest.mark.parametrize(
    ("name", "near"), [("tiny/lowr", "tiny/lower"), ("tiny/digits", "tiny/realdigits"), ("tiny/", "tiny/")]
)
def test_an_unknown_task_names_the_nearest(name, near):
    with pytest.raises(RecipeError, match=f"no bundled task `{name}`") as caught:
        open_dataset(DatasetSpec(name), CONFIG)
    assert f"did you mean `{near}" in caught.value.hint
    assert all(f"tiny/{task}" in caught.value.hint for task in CLASSES)


def test_a_bundled_task_reads_no_folder(tmp_path):
    with pytest.raises(RecipeError, match="bundled and reads no folder"):
        open_dataset(DatasetSpec("tiny/lower", root=tmp_path), CONFIG)


@pytest.mark.parametrize("size", [(3, 224, 224), (3, 32, 64), (1, 32, 32)])
def test_a_model_of_another_input_size(size):
    with pytest.raises(RecipeError, match="3x32x32"):
        open_dataset(DatasetSpec("tiny/lower"), DataConfig(input_size=size))


# What all datasets share


@pytest.mark.slow
@pytest.mark.parametrize("name", ["folder", "tiny/lower", "tiny/realdigits", "generated/structured"])
@pytest.mark.parametrize("limit", [1, 5, 10_000])
def test_a_dataset_limited_is_one_opened_with_the_limit(folder, name, limit):
    spec = DatasetSpec(name, "val", root=folder if name == "folder" else None)
    opened = open_dataset(spec, CONFIG)
    limited, expected = opened.limited(limit), open_dataset(replace(spec, limit=min(limit, len(opened))), CONFIG)
    assert len(limited) == len(expected) == min(limit, len(opened))
    rows = range(min(5, len(limited)))
    for one, other in zip(limited.take(rows), expected.take(rows), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (limited.name, limited.split, limited.classes) == (opened.name, opened.split, opened.classes)
    assert limited.identity == expected.identity


def test_an_unknown_split():
    with pytest.raises(RecipeError, match="no split `dev`") as caught:
        DatasetSpec("tiny/lower", "dev")  # type: ignore[arg-type]
    assert caught.value.hint == "choose train, val, test"


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_that_leaves_no_image(limit):
    with pytest.raises(RecipeError, match=f"limit {limit} leaves no image"):
        DatasetSpec("tiny/lower", limit=limit)


def test_labels_that_the_head_does_not_have(folder):
    with pytest.raises(RecipeError, match="tiny/lower has 26 classes and the model's head 10; of tiny/lower: a, b, c"):
        open_dataset(DatasetSpec("tiny/lower"), CONFIG, expected_classes=10)
    with pytest.raises(
        RecipeError, match="has 3 classes and the model's head 1000; with pictures: cat, dog, eel; without: none"
    ):
        open_dataset(DatasetSpec("folder", root=folder), CONFIG, expected_classes=1000)
    assert open_dataset(DatasetSpec("tiny/lower"), CONFIG).classes == 26


class Rows:
    """Eleven images that are their own numbers, and a record of what was taken."""

    name, split, classes = "rows", "test", 100

    def __init__(self) -> None:
        self.taken: list[list[int]] = []

    def __len__(self) -> int:
        return 11

    def take(self, rows: Any) -> tuple[np.ndarray, np.ndarray]:
        self.taken.append(list(map(int, rows)))
        labels = np.asarray(rows, np.int64)
        return labels.astype(np.float32).reshape(-1, 1, 1, 1), labels


@pytest.mark.parametrize(("size", "sizes"), [(4, [4, 4, 3]), (11, [11]), (64, [11]), (1, [1] * 11)])
def test_batches_cover_all_images_once_and_in_order(size, sizes):
    data = Rows()
    drawn = list(batches(data, size))
    assert [len(labels) for _, labels in drawn] == sizes
    assert [row for rows in data.taken for row in rows] == list(range(11))
    assert np.concatenate([labels for _, labels in drawn]).tolist() == list(range(11))
    assert np.concatenate([images for images, _ in drawn]).ravel().tolist() == list(range(11))


def test_batches_are_taken_when_asked_for():
    data = Rows()
    next(batches(data, 4))
    assert data.taken == [[0, 1, 2, 3]]


def test_preprocessing_in_timms_words():
    values = {
        "input_size": [3, 224, 224],
        "interpolation": "bilinear",
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "crop_pct": 0.9,
        "crop_mode": "squash",
    }
    expected = DataConfig((3, 224, 224), "bilinear", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.9, "squash")
    assert DataConfig.from_mapping({**values, "test_input_size": (3, 288, 288)}) == expected
    with pytest.raises(RecipeError, match="input_size is \\(224, 224\\)"):
        DataConfig.from_mapping({**values, "input_size": [224, 224]})
    del values["mean"], values["crop_mode"]
    with pytest.raises(RecipeError, match="lacks mean, crop_mode"):
        DataConfig.from_mapping(values)


# Folders through timm


def write_image(path: Path, *, seed: int = 0, size: tuple[int, int] = (32, 32), mode: str = "RGB") -> np.ndarray:
    """Write a PNG of random pixels; the pixels as RGB (H, W, 3)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    image.save(path)
    return np.asarray(image.convert("RGB"))


def write_classes(folder: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        for number in range(count):
            write_image(folder / name / f"{number}.png", seed=number)
    return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 6, 4 and 2 images; do not write to it."""
    return write_classes(tmp_path_factory.mktemp("images"), {"cat": 6, "dog": 4, "eel": 2})


def open_folder(root: Path | None, split: Split = "test", limit: int | None = None, name: str = "folder") -> Dataset:
    return open_dataset(DatasetSpec(name, split, root=root, limit=limit), IMAGENET)


@pytest.mark.parametrize("name", ["folder", "", "torch/image_folder", "Torch/folder"])
def test_an_image_folder(folder, name):
    data = open_folder(folder, name=name)
    assert (data.name, data.split, data.classes, len(data)) == (name or "folder", "test", 3, 12)
    images, labels = data.take(range(12))
    assert images.shape == (12, 3, 32, 32)
    assert images.dtype == np.float32
    assert labels.dtype == np.int64
    assert labels.tolist() == [0] * 6 + [1] * 4 + [2] * 2


def test_images_of_the_models_size_are_normalised_and_nothing_else(tmp_path):
    pixels = [write_image(tmp_path / "a" / f"{seed}.png", seed=seed) for seed in range(3)]
    images, _ = open_folder(tmp_path).take([2, 0, 1])
    by_hand = (np.stack(pixels)[[2, 0, 1]] / 255.0 - np.array(IMAGENET.mean)) / np.array(IMAGENET.std)
    np.testing.assert_allclose(images, by_hand.transpose(0, 3, 1, 2), atol=1e-6)


def test_other_sizes_are_resized_and_cropped_in_the_middle(tmp_path):
    """A picture in three plain stripes, twice as wide as high: the model sees the middle one."""
    stripes = np.zeros((64, 128, 3), np.uint8)
    stripes[:, :28], stripes[:, 28:100], stripes[:, 100:] = 255, 128, 0
    (tmp_path / "a").mkdir()
    Image.fromarray(stripes).save(tmp_path / "a" / "x.png")
    images, _ = open_dataset(DatasetSpec("folder", root=tmp_path), CONFIG).take([0])
    assert images.shape == (1, 3, 32, 32)
    np.testing.assert_allclose(images, (128 / 255 - 0.5) / 0.5, atol=0.05)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "CMYK"])
def test_every_kind_of_picture_becomes_colour(tmp_path, mode):
    path = tmp_path / "a" / ("x.jpg" if mode == "CMYK" else "x.png")
    write_image(path, mode=mode)
    with Image.open(path) as stored:
        assert stored.mode == mode
        pixels = np.asarray(stored.convert("RGB"))
    images, _ = open_folder(tmp_path).take([0])
    by_hand = (pixels / 255.0 - np.array(IMAGENET.mean)) / np.array(IMAGENET.std)
    np.testing.assert_allclose(images[0], by_hand.transpose(2, 0, 1), atol=1e-6)


@pytest.mark.parametrize(
    ("limit", "labels"),
    [
        (1, [0]),
        (3, [0, 0, 1]),
        (4, [0, 0, 1, 1]),
        (6, [0, 0, 0, 1, 1, 2]),
        (12, [0] * 6 + [1] * 4 + [2] * 2),
        (99, [0] * 6 + [1] * 4 + [2] * 2),
    ],
)
def test_a_limit_spreads_over_the_folder(folder, limit, labels):
    data = open_folder(folder, limit=limit)
    images, found = data.take(range(len(data)))
    assert found.tolist() == labels
    whole, _ = open_folder(folder).take([number * 12 // len(labels) for number in range(len(labels))])
    assert np.array_equal(images, whole)


def test_numbered_folders_are_sorted_by_number(tmp_path):
    root = write_classes(tmp_path, {"10": 1, "9": 2, "1": 3})
    _, labels = open_folder(root).take(range(6))
    assert labels.tolist() == [0, 0, 0, 1, 1, 2]


@pytest.mark.parametrize(
    ("inner", "split"),
    [
        ("train", "train"),
        ("training", "train"),
        ("val", "val"),
        ("valid", "val"),
        ("validation", "val"),
        ("eval", "val"),
        ("evaluation", "val"),
        ("test", "test"),
        ("Testing", "test"),
        ("TRAIN", "train"),
        ("Dev", "val"),
    ],
)
def test_a_root_with_a_folder_per_split(tmp_path, inner, split):
    write_classes(tmp_path / inner, {"a": 1, "b": 1})
    write_classes(tmp_path / ("test" if split == "train" else "train"), {"a": 3, "b": 3})
    data = open_folder(tmp_path, split)
    assert (len(data), data.classes) == (2, 2)


def test_a_class_may_be_called_like_a_split(tmp_path):
    write_classes(tmp_path / "test", {"bus": 1, "test": 1, "train": 2})
    data = open_folder(tmp_path)
    assert data.classes == 3
    assert data.take(range(4))[1].tolist() == [0, 1, 2, 2]


def test_the_folder_of_a_split_named_itself(tmp_path):
    write_classes(tmp_path / "val", {"a": 2, "b": 1})
    assert len(open_folder(tmp_path / "val", "test")) == 3


def test_a_folder_is_needed():
    with pytest.raises(RecipeError, match="`folder` needs a folder"):
        open_folder(None)


def test_a_missing_folder(tmp_path):
    with pytest.raises(StorageError, match="no such folder"):
        open_folder(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="no such folder"):
        open_folder(tmp_path / "file")


@pytest.mark.parametrize("name", ["folder", "torch/image_folder"])
def test_an_empty_folder(tmp_path, name):
    with pytest.raises(StorageError, match="cannot open"):
        open_folder(tmp_path, name=name)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("no image")
    with pytest.raises(StorageError, match="cannot open"):
        open_folder(tmp_path, name=name)


def test_a_folder_without_the_split(tmp_path):
    write_classes(tmp_path / "train", {"a": 1})
    write_classes(tmp_path / "validation", {"a": 1})
    with pytest.raises(StorageError, match="has train, val and no test"):
        open_folder(tmp_path, "test")


def test_a_class_that_is_called_as_a_split(tmp_path):
    write_classes(tmp_path, {"bus": 1, "car": 1, "train": 2})
    found = open_dataset(DatasetSpec("folder", split="test", root=tmp_path), IMAGENET, expected_classes=3)
    assert found.take(range(4))[1].tolist() == [0, 1, 2, 2]
    (tmp_path / "two").mkdir()
    write_classes(tmp_path / "two", {"train": 1, "test": 1})  # without labels, as competitions give them
    for names in ((), ("test",)):
        spec = DatasetSpec("folder", split="test", root=tmp_path / "two", class_names=names)
        with pytest.raises(StorageError, match="no images"):
            open_dataset(spec, IMAGENET, expected_classes=2)


def test_splits_of_other_names_are_no_classes(tmp_path):
    for split in ("part1", "part2"):
        write_classes(tmp_path / split, {"a": 1, "b": 2})
    with pytest.raises(StorageError, match="seems to hold splits: part1, part2"):
        open_folder(tmp_path, "test")
    assert len(open_folder(tmp_path / "part2", "test")) == 3


@pytest.mark.parametrize("names", [("Training_set", "test-images"), ("train2017", "Part A")])
def test_splits_of_other_names_are_told_from_nested_classes(tmp_path, names):
    """Also where there are as many splits as classes, and beside other files and folders."""
    for split in names:
        write_classes(tmp_path / split, {"a": 1, "b": 1})
        (tmp_path / split / "labels.csv").touch()
    (tmp_path / "docs").mkdir()
    (tmp_path / ".cache" / "x").mkdir(parents=True)
    with pytest.raises(StorageError, match="seems to hold splits"):
        open_dataset(DatasetSpec("folder", root=tmp_path), IMAGENET, expected_classes=2)
    unlabelled = open_dataset(DatasetSpec("folder", root=tmp_path, labelled=False), IMAGENET)
    assert len(unlabelled) == 4


def test_classes_whose_pictures_lie_deeper_are_no_splits(tmp_path):
    for label in ("cat", "dog", "owl"):
        write_classes(tmp_path / label, {"s1": 1, "s2": 1})
    with pytest.raises(StorageError, match="seems to hold splits: cat, dog, owl"):
        open_folder(tmp_path)
    by_count = open_dataset(DatasetSpec("folder", root=tmp_path), IMAGENET, expected_classes=3)
    by_name = open_dataset(DatasetSpec("folder", root=tmp_path, class_names=("owl", "dog", "cat", "x")), IMAGENET)
    assert by_count.take(range(6))[1].tolist() == [0, 0, 1, 1, 2, 2]
    assert by_name.take(range(6))[1].tolist() == [2, 2, 1, 1, 0, 0] and by_name.missing == ("x",)


def test_several_folders_of_one_split_are_told_from_each_other(tmp_path):
    for name in ("val", "Validation", "test"):
        write_classes(tmp_path / name, {"a": 1})
    with pytest.raises(StorageError, match="several folders for val: val, Validation"):
        open_folder(tmp_path, "val")
    assert len(open_folder(tmp_path, "test")) == 1


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1500])


def altered(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[600:620] = b"\xff" * 20
    path.write_bytes(data)


def text(path: Path) -> None:
    path.write_text("not an image")


def nothing(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("name", ["folder", "torch/image_folder"])
@pytest.mark.parametrize("damage", [cut_short, altered, text, nothing])
def test_a_broken_image_is_named_and_not_skipped(tmp_path, damage: Callable[[Path], None], name):
    root = write_classes(tmp_path, {"a": 3})
    damage(root / "a" / "1.png")
    data = open_folder(root, name=name)
    assert len(data) == 3
    assert data.take([0, 2])[1].tolist() == [0, 0]
    with pytest.raises(StorageError, match=r"a/1\.png cannot be read" if name == "folder" else "cannot be read"):
        data.take([0, 1, 2])


def test_an_image_that_vanished(tmp_path):
    root = write_classes(tmp_path, {"a": 2})
    data = open_folder(root)
    (root / "a" / "1.png").unlink()
    with pytest.raises(StorageError, match=r"a/1\.png cannot be read"):
        data.take([1])


@pytest.mark.parametrize("name", ["wds/images", "tfds/mnist", "hfids/mnist", "TFDS/mnist"])
def test_streams_are_refused(folder, name):
    with pytest.raises(RecipeError, match="is a stream and has no fixed order"):
        open_folder(folder, name=name)


def test_hugging_face_datasets_are_not_required(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(IncompatibleError, match="hfds/mnist needs Hugging Face datasets"):
        open_folder(None, name="hfds/mnist")


def test_a_dataset_that_torchvision_does_not_have(folder):
    with pytest.raises(StorageError, match="cannot open `torch/mnits`"):
        open_folder(folder, name="torch/mnits")


class Read(list):
    """A dataset of timm's, which has a reader of open files beside its images."""

    def __init__(self, path: Path, label: Any) -> None:
        super().__init__([None])
        self.reader = self
        self.path, self.label = path, label

    def __getitem__(self, row: int) -> Any:
        return self.path.open("rb"), self.label


@pytest.mark.parametrize("label", [3, -1, "cat", 1.0, None])
def test_labels_outside_the_datasets_own_classes(folder, label):
    for inner in ([(Image.new("RGB", (4, 4)), label)], Read(folder / "cat" / "0.png", label)):
        data = TimmDataset(DatasetSpec("hfds/odd"), inner, transform=None, classes=3)
        with pytest.raises(RecipeError, match="hfds/odd has the label"):
            data.take([0])

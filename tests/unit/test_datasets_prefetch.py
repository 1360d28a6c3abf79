"""Reading ahead changes nothing but when images are read; and what a dataset says of itself."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qvec_deploy.datasets import DataConfig, DatasetSpec, open_dataset
from qvec_deploy.datasets import prefetch as module
from qvec_deploy.datasets.prefetch import AHEAD, prefetched
from qvec_deploy.datasets.timm_factory import TimmDataset
from qvec_deploy.errors import QvecError, RecipeError, StorageError


class Numbered:
    """Images that are their own numbers; some cannot be read."""

    name, split, classes, class_names, identity = "numbered", "test", 100, (), "numbers"

    def __init__(self, count: int, parallel: bool = True, broken: dict[int, Exception] | None = None) -> None:
        self.count, self.parallel, self.broken = count, parallel, broken or {}
        self.taken: list[int] = []
        self.threads: set[int] = set()

    def __len__(self) -> int:
        return self.count

    def take(self, rows: Any) -> tuple[np.ndarray, np.ndarray]:
        for row in map(int, rows):
            if row in self.broken:
                raise self.broken[row]
        self.taken += map(int, rows)
        self.threads.add(threading.get_ident())
        labels = np.asarray(rows, np.int64)
        return labels.astype(np.float32).reshape(-1, 1, 1, 1), labels


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_usable_cores", lambda: 4)


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize(
    ("size", "first", "sizes"),
    [(4, 0, [4, 4, 3]), (11, 0, [11]), (64, 0, [11]), (1, 0, [1] * 11), (4, 8, [3]), (3, 6, [3, 2]), (4, 11, [])],
)
def test_order_is_kept_and_every_image_read_once(parallel: bool, size: int, first: int, sizes: list[int]) -> None:
    data = Numbered(11, parallel)
    drawn = list(prefetched(data, size, rows=np.arange(first, len(data))))
    assert [len(labels) for _, labels in drawn] == sizes
    rest = list(range(first, 11))
    assert sorted(data.taken) == rest
    assert [row for _, labels in drawn for row in labels.tolist()] == rest
    assert [pixel for images, _ in drawn for pixel in images.ravel().tolist()] == rest


def test_a_dataset_that_does_not_gain_is_read_by_one_thread_in_order() -> None:
    data = Numbered(50, parallel=False)
    list(prefetched(data, 4))
    assert data.taken == list(range(50)) and len(data.threads) == 1
    assert threading.get_ident() not in data.threads


@pytest.mark.parametrize("parallel", [False, True])
def test_no_more_than_a_few_batches_are_read_ahead(parallel: bool) -> None:
    data = Numbered(1000, parallel)
    batches = prefetched(data, 10)
    next(batches)
    batches.close()  # waits for what has begun
    assert 10 <= len(data.taken) <= 10 * (1 + AHEAD)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("images")]


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("error", [StorageError("x.png cannot be read", hint="repair it"), RecipeError("9", hint="0")])
def test_an_error_comes_in_its_turn_with_its_class_and_hint(parallel: bool, error: QvecError) -> None:
    batches = prefetched(Numbered(40, parallel, {17: error}), 5)
    assert [next(batches)[1][0] for _ in range(3)] == [0, 5, 10]
    with pytest.raises(type(error)) as caught:
        next(batches)
    assert caught.value is error
    assert list(batches) == []


# What a dataset says of itself

CONFIG = DataConfig()


def tiny(name: str) -> Any:
    return open_dataset(DatasetSpec(f"tiny/{name}"), CONFIG)


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("lower", "a", "z"),
        ("upper", "A", "Z"),
        ("symbols", "!", "~"),
        ("realdigits", "0", "9"),
        ("pairs", "A2", "S9"),
        ("outline", "circle", "heart"),
    ],
)
def test_class_names_of_the_bundled_tasks(name: str, first: str, last: str) -> None:
    data = tiny(name)
    assert (data.class_names[0], data.class_names[-1], len(data.class_names)) == (first, last, data.classes)


def test_classes_without_names() -> None:
    assert tiny("mix").class_names == ()
    assert open_dataset(DatasetSpec("generated/structured"), CONFIG).class_names == ()


class Torchvision(list[Any]):
    """What torchvision's datasets may have."""


def named(**attributes: Any) -> TimmDataset:
    inner = Torchvision([None])
    inner.__dict__.update(attributes)
    return TimmDataset(DatasetSpec("torch/x"), inner, None, classes=3)


@pytest.mark.parametrize(
    ("attributes", "names"),
    [
        ({"class_to_idx": {"b": 1, "a": 0, "c": 2}}, ("a", "b", "c")),
        ({"class_to_idx": {"tench": 0, "Tinca tinca": 0, "shark": 1}}, ("tench", "shark")),
        ({"class_to_idx": {"a": 1, "b": 2}}, ()),
        ({"classes": ["x", "y"]}, ("x", "y")),
        ({}, ()),
    ],
)
def test_class_names_of_torchvision(attributes: dict[str, Any], names: tuple[str, ...]) -> None:
    assert named(**attributes).class_names == names


@pytest.mark.parametrize(
    ("wanted", "names", "labels"),
    [
        (("c", "a", "b"), ("c", "a", "b"), [1, 2, 0]),
        (("a", "b", "c"), ("a", "b", "c"), [0, 1, 2]),
        (("x", "y", "z"), ("a", "b", "c"), [0, 1, 2]),  # other names for the same labels
        ((), ("a", "b", "c"), [0, 1, 2]),
    ],
)
def test_labels_of_torchvision_follow_the_names_of_the_models_classes(
    wanted: tuple[str, ...], names: tuple[str, ...], labels: list[int]
) -> None:
    image = Image.new("RGB", (32, 32))
    inner = Torchvision([(image, label) for label in range(3)])
    inner.class_to_idx = {"a": 0, "b": 1, "c": 2}
    data = TimmDataset(DatasetSpec("torch/x", class_names=wanted), inner, np.asarray, classes=3)
    assert data.class_names == names and data.take([0, 1, 2])[1].tolist() == labels


def write_images(root: Path, names: list[str]) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (len(name), 0, 0)).save(root / name)
    return root


def folder(root: Path, limit: int | None = None) -> Any:
    return open_dataset(DatasetSpec("folder", root=root, limit=limit), CONFIG)


def test_a_folder_tells_its_names_and_files_and_not_where_it_lies(tmp_path: Path) -> None:
    files = ["10/a.png", "9/b.png", "9/c.png"]
    one, same = (folder(write_images(tmp_path / place, files)) for place in ("one", "two"))
    assert one.class_names == ("9", "10") and one.parallel
    assert one.identity == same.identity
    other = folder(write_images(tmp_path / "three", ["10/a.png", "9/b.png", "9/d.png"]))
    assert one.identity != other.identity
    assert folder(tmp_path / "one", limit=2).identity != one.identity


def test_other_pixels_under_the_same_names_are_other_images(tmp_path: Path) -> None:
    files = ["a/x.png", "b/y.png"]
    one, copy, other, grown = (write_images(tmp_path / place, files) for place in ("one", "two", "three", "four"))
    pixels = (other / "a/x.png").read_bytes()
    (other / "a/x.png").write_bytes(pixels[:-1] + bytes([pixels[-1] ^ 1]))  # another picture of the same size
    (grown / "a/x.png").write_bytes(pixels + b"more")
    assert folder(one).contents() == folder(copy).contents() != folder(other).contents()
    assert folder(one).identity == folder(other).identity != folder(grown).identity
    before = folder(one).modified()
    os.utime(one / "a/x.png", ns=(1, 1))
    assert folder(one).modified() != before and folder(one, limit=1).modified() != before
    assert folder(one).contents() == folder(copy).contents()


def test_an_image_that_vanished_is_named(tmp_path: Path) -> None:
    data = folder(write_images(tmp_path, ["a/x.png", "b/y.png"]))
    (tmp_path / "b/y.png").unlink()
    for ask in (lambda: data.identity, data.modified, data.contents):
        with pytest.raises(StorageError, match=r"y\.png"):
            ask()


def test_a_folder_is_read_by_several_threads_as_by_one(tmp_path: Path) -> None:
    data = folder(write_images(tmp_path, [f"{'x' * (1 + i % 3)}/{'y' * i}.png" for i in range(1, 12)]))
    whole, labels = data.take(range(11))
    drawn = list(prefetched(data, 4))
    assert np.array_equal(np.concatenate([images for images, _ in drawn]), whole)
    assert np.concatenate([found for _, found in drawn]).tolist() == labels.tolist()

"""predictions.safetensors: what is written is read, byte for byte the same, and nothing else is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from qvec_deploy.bench.accuracy import Accuracy
from qvec_deploy.bench.predictions import (
    Predictions,
    describe_images,
    predictions_of,
    read_predictions,
    write_predictions,
)
from qvec_deploy.bundle.compare_stored import bundle_predictions
from qvec_deploy.datasets import DataConfig, DatasetSpec, open_dataset
from qvec_deploy.errors import IncompatibleError, IntegrityError, StorageError

CONFIG = DataConfig()
LABELS = np.array([0, 1, 2, 1], np.int32)


def example() -> Predictions:
    predicted = {"pico: 3 bits, ü": np.array([0, 1, 2, 2], np.int32), "float": LABELS}
    return Predictions(LABELS, predicted, "ab" * 32, "tiny/lower", "test")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_predictions(tmp_path / "p", example())
    found = read_predictions(tmp_path / "p")
    assert (found.images, found.dataset, found.split) == ("ab" * 32, "tiny/lower", "test")
    assert np.array_equal(found.labels, LABELS)
    assert {name: array.tolist() for name, array in found.predicted.items()} == {
        "pico: 3 bits, ü": [0, 1, 2, 2],
        "float": [0, 1, 2, 1],
    }
    assert all(array.dtype == np.int32 for array in (found.labels, *found.predicted.values()))


def test_the_same_predictions_give_the_same_bytes(tmp_path: Path) -> None:
    one = example()
    backwards = dict(reversed(one.predicted.items()))
    write_predictions(tmp_path / "a", one)
    write_predictions(tmp_path / "b", Predictions(one.labels[::1], backwards, one.images, one.dataset, one.split))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with safe_open(tmp_path / "a", framework="numpy") as file:
        assert list(file.metadata()) == ["qvec"]
        assert json.loads(file.metadata()["qvec"])["count"] == 4


def answered(labels: list[int]) -> dict[str, Accuracy]:
    array = np.array(labels, np.int32)
    return {"a": Accuracy(array, array, None, np.ones(len(array), np.float32))}


def images(name: str = "lower", limit: int = 4, split: Any = "test") -> Any:
    return open_dataset(DatasetSpec(f"tiny/{name}", split, limit=limit), CONFIG)


def test_the_hash_tells_images_apart() -> None:
    base = predictions_of(answered([0, 1, 2, 1]), images(), CONFIG)
    assert base.images == predictions_of(answered([0, 1, 2, 1]), images(), CONFIG).images
    others = [
        predictions_of(answered([0, 1, 2, 2]), images(), CONFIG),
        predictions_of(answered([0, 1, 2, 1]), images("upper"), CONFIG),
        predictions_of(answered([0, 1, 2, 1]), images(limit=5), CONFIG),
        predictions_of(answered([0, 1, 2, 1]), images(split="val"), CONFIG),
        predictions_of(answered([0, 1, 2, 1]), images(), DataConfig(mean=(0.4, 0.5, 0.5))),
    ]
    assert len({base.images, *(other.images for other in others)}) == 6
    assert (base.dataset, base.split) == ("tiny/lower", "test")


def test_images_are_described_without_a_path(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "secret" / "a").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(tmp_path / "secret" / "a" / "x.png")
    data = open_dataset(DatasetSpec("folder", root=tmp_path / "secret"), CONFIG)
    assert "secret" not in json.dumps(describe_images(data, CONFIG))


def test_other_pixels_are_other_images(tmp_path: Path) -> None:
    from PIL import Image

    opened = []
    for place, color in (("one", 1), ("two", 1), ("three", 2)):
        (tmp_path / place / "a").mkdir(parents=True)
        Image.new("RGB", (32, 32), (color, 0, 0)).save(tmp_path / place / "a" / "x.png", compress_level=0)
        opened.append(open_dataset(DatasetSpec("folder", root=tmp_path / place), CONFIG))
    first, same, other = (predictions_of(answered([0]), data, CONFIG).images for data in opened)
    assert describe_images(opened[0], CONFIG) == describe_images(opened[2], CONFIG), "names and sizes are the same"
    assert first == same != other


# Damage


def header(**changes: Any) -> dict[str, str]:
    values = {
        "format": "qvec-predictions",
        "version": "1.0.0",
        "dataset": "tiny/lower",
        "split": "test",
        "count": 4,
        "images": "ab" * 32,
    } | changes
    return {"qvec": json.dumps({key: value for key, value in values.items() if value is not None})}


def written(path: Path, metadata: dict[str, str] | None = None, **arrays: Any) -> Path:
    tensors = {"labels": LABELS, "predicted:a": LABELS} | {key.replace("__", ":"): arrays[key] for key in arrays}
    save_file({key: value for key, value in tensors.items() if value is not None}, path, metadata or header())
    return path


def test_the_example_of_this_test_is_sound(tmp_path: Path) -> None:
    assert list(read_predictions(written(tmp_path / "p")).predicted) == ["a"]


@pytest.mark.parametrize(
    "change",
    [
        {"labels": None},
        {"predicted__a": None},
        {"labels": LABELS.astype(np.int64)},
        {"labels": LABELS[:3]},
        {"labels": LABELS.reshape(2, 2)},
        {"labels": LABELS - 1},
        {"predicted__a": LABELS.astype(np.float32)},
        {"predicted__a": LABELS[:0]},
        {"predicted__a": LABELS - 3},
        {"other": LABELS},
        {"metadata": header(count=5)},
        {"metadata": header(count=0)},
        {"metadata": header(count="4")},
        {"metadata": header(count=True)},
        {"metadata": header(images=None)},
        {"metadata": header(images=7)},
        {"metadata": header(more=1)},
        {"metadata": {"qvec": "[]"}},
        {"metadata": {"qvec": "[" * 100_000}},
        {"metadata": {"qvec": "{}"}},
        {"metadata": {"other": "x"}},
    ],
)
def test_odd_files_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError, match="p is damaged"):
        read_predictions(written(tmp_path / "p", **change))


def test_another_kind_of_file(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="is a qvec-packed file"):
        read_predictions(written(tmp_path / "p", header(format="qvec-packed")))


def test_a_later_major_version(tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError, match=r"predictions format 2\.0\.0"):
        read_predictions(written(tmp_path / "p", header(version="2.0.0")))


@pytest.mark.parametrize(
    "damage",
    [lambda data: b"", lambda data: data[:-1], lambda data: data + b"\0", lambda data: b"\xff" * 8 + data[8:]],
)
def test_damaged_files_are_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = written(tmp_path / "p")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(IntegrityError, match="p is damaged"):
        read_predictions(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="does not exist"):
        read_predictions(tmp_path / "p")


def test_a_bundle_without_predictions_or_with_unlisted_ones_has_none(tmp_path: Path) -> None:
    class Listed:
        directory = tmp_path

        class manifest:
            files: dict[str, Any] = {}  # noqa: RUF012

    write_predictions(tmp_path / "predictions.safetensors", example())
    assert bundle_predictions(Listed()) is None  # type: ignore[arg-type]
    Listed.manifest.files["predictions.safetensors"] = None
    found = bundle_predictions(Listed())  # type: ignore[arg-type]
    assert found is not None and sorted(found.predicted) == ["float", "pico: 3 bits, ü"]

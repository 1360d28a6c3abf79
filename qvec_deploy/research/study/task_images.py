"""TaskImages of a task, decoded once in a process; those that choose are kept apart from those that judge."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qvec_deploy.datasets import DataConfig, DatasetSpec, OpenedDataset, open_dataset
from qvec_deploy.datasets.generated import NAME as GENERATED
from qvec_deploy.datasets.prefetch import prefetched
from qvec_deploy.datasets.splits import BATCH, MIN_IMAGES
from qvec_deploy.errors import RecipeError
from qvec_deploy.io.files import sha256_bytes
from qvec_deploy.research.study.cell_values import TaskData
from qvec_deploy.tensors import Float32

Labels = NDArray[np.int64]

_KEPT = 4
"""Decoded sets that a process keeps: 500 images of 224 x 224 are 300 MB."""


@dataclass(frozen=True, eq=False)
class TaskImages:
    """Decoded images with their labels.

    Attributes:
        batches: (B, C, H, W) float32, normalised.
        labels: (N,) int64.
    """

    batches: list[Float32]
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)


def judging_images(task: TaskData, config: DataConfig, classes: int, count: int) -> TaskImages:
    """At most `count` images that judge, in the dataset's order."""
    spec = DatasetSpec(task.dataset, task.testing_split, _root(task), count)
    images, labels = _read(spec, config, classes)
    _require_enough(task, len(labels), task.testing_split)
    return TaskImages(_cut(images), labels)


def choosing_images(
    task: TaskData, config: DataConfig, classes: int | None, count: int, judges: TaskImages | None
) -> TaskImages:
    """At most `count` images that choose and calibrate: no two alike, none that `judges` holds.

    Args:
        classes: Outputs of the model's head; None leaves the labels unchecked.
        count: Images before copies are left out.
    """
    spec = DatasetSpec(task.dataset, task.selecting_split, _root(task), count)
    images, labels = _read(spec, config, classes)
    seen = {sha256_bytes(image.tobytes()) for batch in (judges.batches if judges else ()) for image in batch}
    rows = list(_new_rows(images, seen))
    _require_enough(task, len(rows), task.selecting_split)
    return TaskImages(_cut(images[rows]), labels[rows])


def generated_images(config: DataConfig, count: int) -> list[Float32]:
    """Batches of images that are drawn, for calibrating where there are none of the task."""
    return _cut(_read(DatasetSpec(GENERATED, "train", limit=count), config, None)[0])


def _root(task: TaskData) -> Path | None:
    return None if task.root is None else Path(task.root)


def _new_rows(images: Float32, seen: set[str]) -> Iterator[int]:
    for row, image in enumerate(images):
        digest = sha256_bytes(image.tobytes())
        if digest not in seen:
            seen.add(digest)
            yield row


def _require_enough(task: TaskData, count: int, split: str) -> None:
    if count < MIN_IMAGES:
        raise RecipeError(
            f"{task.name}: {task.dataset} {split} has {count} images that are no copies",
            hint=f"give at least {MIN_IMAGES}, better 400; images that choose must not be those that judge",
        )


def _cut(images: Float32) -> list[Float32]:
    return [images[start : start + BATCH] for start in range(0, len(images), BATCH)]


@dataclass(frozen=True)
class _Wanted:
    """What is decoded; the opened dataset is only how, and makes no difference to what is the same."""

    spec: DatasetSpec
    config: DataConfig
    identity: str
    dataset: OpenedDataset = field(compare=False)


def _read(spec: DatasetSpec, config: DataConfig, classes: int | None) -> tuple[Float32, Labels]:
    dataset = open_dataset(spec, config, expected_classes=classes)
    return _decode(_Wanted(spec, config, dataset.identity, dataset))


@functools.lru_cache(maxsize=_KEPT)
def _decode(wanted: _Wanted) -> tuple[Float32, Labels]:
    images, labels = zip(*prefetched(wanted.dataset, BATCH), strict=True)
    return np.concatenate(images), np.concatenate(labels)

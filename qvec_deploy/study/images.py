"""What tells a task's images from others of the same name, without reading them all."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

from qvec_deploy.datasets import DataConfig, DatasetSpec, Split, open_dataset
from qvec_deploy.errors import QvecError
from qvec_deploy.store import sha256_bytes

_FIRST = 16


@functools.cache
def look_at(task: str, dataset: str, root: str | None, splits: tuple[Split, ...], config: DataConfig) -> dict[str, Any]:
    """Open a task's images and read the first of them.

    Args:
        task: Its name, for errors.
        dataset: Name for the dataset factory.
        root: Folder of the data.
        splits: Those that the study uses; they must agree on the classes.
        config: The model's preprocessing.

    Returns:
        `classes`, and by split what identifies its images.

    Raises:
        RecipeError, StorageError, IncompatibleError: As `open_dataset`; the message names the task.
    """
    found: dict[str, Any] = {}
    try:
        for split in splits:
            folder = None if root is None else Path(root)
            opened = open_dataset(DatasetSpec(dataset, split, folder), config, expected_classes=found.get("classes"))
            first = open_dataset(DatasetSpec(dataset, split, folder, min(_FIRST, len(opened))), config)
            images, labels = first.take(np.arange(len(first)))
            digest = sha256_bytes(images.tobytes() + labels.tobytes())
            found |= {"classes": opened.classes, split: [opened.identity, len(opened), digest]}
    except QvecError as error:
        raise type(error)(f"task {task}: {error.message}", hint=error.hint) from error
    return found

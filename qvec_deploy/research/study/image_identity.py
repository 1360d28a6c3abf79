"""What tells a task's images from others of the same name, without reading them all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qvec_deploy.datasets import DataConfig, DatasetSpec, Split, open_dataset
from qvec_deploy.datasets.hub_datasets import is_on_hub, look
from qvec_deploy.errors import QvecError
from qvec_deploy.io.files import sha256_bytes

_FIRST = 16


def look_at(
    what: str,
    dataset: str,
    root: str | None,
    splits: tuple[Split, ...],
    config: DataConfig,
    augment: Literal["none", "timm"] = "none",
) -> dict[str, Any]:
    """Open images and read the first of them; of a dataset on the Hub, read its card and download nothing.

    Args:
        what: Whose they are, for errors.
        dataset: Name for the dataset factory.
        root: Folder of the data.
        splits: Those that the study uses; they must agree on the classes.
        config: The model's preprocessing.
        augment: How images of `train` are augmented.

    Returns:
        `classes` (None where a card does not say), and by split what identifies its images: a list whose second value
        is their number, None where a card does not say.

    Raises:
        RecipeError, StorageError, IncompatibleError, FetchError: As `open_dataset`, `augmented` and the Hub; the
            message names whose images they are.
    """
    found: dict[str, Any] = {}
    folder = None if root is None else Path(root)
    with named(what):
        if is_on_hub(dataset):
            for split, seen in zip(splits, look(dataset, splits, folder), strict=True):
                found |= {"classes": seen.classes, split: [seen.revision, seen.images, split]}
            return found
        for split in splits:
            spec = DatasetSpec(dataset, split, folder)
            opened = open_dataset(spec, config, expected_classes=found.get("classes"))
            if split == "train" and augment == "timm":
                from qvec_deploy.donors.feed import augmented

                augmented(opened, spec, config, seed=0)
            first = opened.limited(_FIRST)
            images, labels = first.take(np.arange(len(first)))
            digest = sha256_bytes(images.tobytes() + labels.tobytes())
            found |= {"classes": opened.classes, split: [opened.identity, len(opened), digest]}
    return found


@contextlib.contextmanager
def named(what: str) -> Iterator[None]:
    """Name what errors of the block are about."""
    try:
        yield
    except QvecError as error:
        raise type(error)(f"{what}: {error.message}", hint=error.hint) from error

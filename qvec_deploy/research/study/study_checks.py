"""What a study's models and images are, and what it cannot do with them: said before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qvec_deploy.datasets import DataConfig, DatasetSpec, Split, open_dataset
from qvec_deploy.datasets.hub_datasets import is_on_hub, look
from qvec_deploy.donors.donor_recipe import DonorGrid
from qvec_deploy.errors import IncompatibleError, RecipeError, errors_about
from qvec_deploy.io.files import sha256_bytes
from qvec_deploy.models import Architecture, is_skipped
from qvec_deploy.research.study.study_recipe import StudyModel, StudyTask

_FIRST = 16


def image_identities(
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
        splits: Those that the study uses; they must agree on the classes.
        augment: How images of `train` are augmented.

    Returns:
        `classes` (None where a card does not say), and by split what identifies its images: a list whose second value
        is their number, None where a card does not say.
    """
    found: dict[str, Any] = {}
    folder = None if root is None else Path(root)
    with errors_about(what):
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


def check_model(model: StudyModel, architecture: Architecture, grids: Sequence[DonorGrid]) -> None:
    """Refuse a model that cannot be put on the grids."""
    for entry in model.skip:
        if not any(is_skipped(linear, (entry,)) for linear in architecture.linears):
            raise RecipeError(
                f"model {model.name}: skip `{entry}` matches none of its Linears", hint="the head's name is usual"
            )
    counter = next((name for name in architecture.shapes if name.endswith("num_batches_tracked")), None)
    if counter is not None:
        raise IncompatibleError(
            f"model {model.name}: it has BatchNorm (`{counter}`)", hint="use a transformer with LayerNorm"
        )
    linears = [name for name in architecture.linears if not is_skipped(name, model.skip)]
    if not linears:
        raise IncompatibleError(
            f"model {model.name}: it has no Linear to quantize outside {', '.join(model.skip)}",
            hint="only Linear layers are quantized: use a transformer, or a shorter skip list",
        )
    for name in linears:
        with errors_about(f"model {model.name}: {name}"):
            for grid in grids:
                grid.scheme().groups(architecture.shapes[f"{name}.weight"][1])


def check_images(task: StudyTask, seen: Mapping[str, Any], *, trained: bool) -> None:
    """Refuse images that are not the task's, and accuracy of images that were trained on.

    Args:
        seen: What `image_identities` returned.
        trained: Whether its `train` is trained on here.
    """
    classes = seen["classes"] or 0
    if classes < 2:
        raise RecipeError(
            f"task {task.name}: {task.dataset} does not say that it has two classes or more",
            hint="name labelled images, or give its `classes`",
        )
    if task.classes not in (None, classes):
        raise RecipeError(
            f"task {task.name}: {task.dataset} has {classes} classes, the study says {task.classes}",
            hint="check its dataset, or `classes`",
        )
    if trained and seen["train"] == seen[task.testing_split]:
        raise RecipeError(
            f"task {task.name}: its images of train and of {task.testing_split} are the same",
            hint="accuracy would be of images trained on: give the root a folder for each, "
            "such as ROOT/train/CLASS and ROOT/test/CLASS",
        )

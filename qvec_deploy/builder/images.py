"""Which images a recipe's candidates are calibrated, chosen and confirmed on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qvec_deploy.datasets import DataConfig, Dataset, DatasetSpec, OpenedDataset, batches, open_dataset
from qvec_deploy.datasets.generated import NAME as GENERATED
from qvec_deploy.datasets.splits import BATCH, half_of
from qvec_deploy.errors import errors_about
from qvec_deploy.planner import Plan
from qvec_deploy.recipe import Images, Recipe
from qvec_deploy.tensors import Float32


def activation_images(recipe: Recipe, plan: Plan) -> list[Float32]:
    """Images to look at activations with: what `quantize.calibration` names, whatever the method.

    Raises:
        RecipeError, StorageError, IncompatibleError: As `open_dataset`.
    """
    wanted = recipe.quantize.calibration
    on = wanted.on or ("images" if recipe.images is not None else "generated")
    config = DataConfig.from_mapping(plan.architecture.data_config)
    if on == "images":
        return selection_images(recipe, plan, count=wanted.count)
    if on == "dataset" and wanted.dataset is not None:
        root = None if wanted.root is None else recipe.data_path(wanted.root)
        spec = DatasetSpec(wanted.dataset, wanted.split, root, wanted.count, labelled=False)
        return _read(open_dataset(spec, config))
    return _read(open_dataset(DatasetSpec(GENERATED, "train", limit=wanted.count), config))


def selection_images(recipe: Recipe, plan: Plan, *, confirm: bool = False, count: int | None = None) -> list[Float32]:
    """Every other image of the recipe's `images`, or of generated ones where it has none.

    Args:
        confirm: The half that confirms instead of the half that selects; they share no image.

    Returns:
        Batches (B, C, H, W), normalised.
    """
    images, _ = half_of(open_own_images(recipe, plan), confirm=confirm)
    if count is not None and count < len(images):
        images = images[np.linspace(0, len(images) - 1, count).round().astype(int)]
    return [images[start : start + BATCH] for start in range(0, len(images), BATCH)]


def open_own_images(recipe: Recipe, plan: Plan) -> OpenedDataset:
    """The recipe's `images`, or generated ones where it has none; their labels count for `select: labelled` alone."""
    config = DataConfig.from_mapping(plan.architecture.data_config)
    images = recipe.images or Images(dataset=GENERATED, split="val")
    root = None if images.root is None else recipe.data_path(images.root)
    spec = DatasetSpec(images.dataset, images.split, root, images.limit, labelled=False)
    select = plan.recipe.select  # the recipe's own is gone once lambda is selected
    if select is None or select.by != "labelled":
        return open_dataset(spec, config)
    order = recipe.evaluate.class_order if recipe.evaluate is not None else None
    spec = replace(spec, labelled=True, class_names=plan.class_names.names, class_order=order)
    with errors_about("select: labelled"):
        return open_dataset(spec, config, expected_classes=plan.architecture.classes)


def _read(dataset: Dataset) -> list[Float32]:
    return [images for images, _ in batches(dataset, BATCH)]

"""What a study cannot do, said before anything is trained: by the checks that would fail hours later."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from qvec_deploy.donors.donor_recipe import DonorGrid, DonorRecipe
from qvec_deploy.errors import IncompatibleError, RecipeError
from qvec_deploy.models import Architecture, is_skipped
from qvec_deploy.research.study.image_identity import named
from qvec_deploy.research.study.study_recipe import StudyModel, StudyTask


def check_model(model: StudyModel, architecture: Architecture, grids: Sequence[DonorGrid]) -> None:
    """Refuse a model that cannot be put on the grids.

    Raises:
        RecipeError: A skip entry that matches nothing, or groups that do not divide a row.
        IncompatibleError: It has BatchNorm, or no Linear to quantize.
    """
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
        with named(f"model {model.name}: {name}"):
            for grid in grids:
                grid.scheme().groups(architecture.shapes[f"{name}.weight"][1])


def check_images(task: StudyTask, seen: Mapping[str, Any], *, trained: bool) -> None:
    """Refuse images that are not the task's, and accuracy of images that were trained on.

    Args:
        task: The task.
        seen: As `look_at`.
        trained: Whether its `train` is trained on here.

    Raises:
        RecipeError: Another number of classes than the task says, or fewer than two; test images that are trained on.
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


def check_training(task: str, donor: Mapping[str, Any], images: int | None) -> None:
    """Refuse a fine-tune whose schedule does not fit its images.

    Args:
        task: Its name, for errors.
        donor: The fields of its donor recipe; where the base is may be open.
        images: Training images; None where nobody knows yet.

    Raises:
        RecipeError: Fewer images than a batch, or a warm-up as long as the training.
    """
    base = {**donor["base"], "checkpoint": donor["base"]["checkpoint"] or "made by a node"}
    recipe = DonorRecipe.model_validate_json(json.dumps({**donor, "base": base}))
    if images is not None:
        with named(f"task {task}"):
            recipe.hyper(images)

"""A plan's weights as an engine gets them: the receiver, patched, put on the grid.

Methods that look at weights alone take one tensor at a time; those that look at activations need the model whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from qvec_deploy.datasets import DataConfig, Dataset, DatasetSpec, batches, open_dataset
from qvec_deploy.datasets.generated import NAME as GENERATED
from qvec_deploy.errors import IncompatibleError, RecipeError
from qvec_deploy.io.checkpoint import Checkpoint
from qvec_deploy.io.files import sha256_bytes
from qvec_deploy.models import Architecture, create
from qvec_deploy.packed import Entry
from qvec_deploy.plan import Plan
from qvec_deploy.recipe import Images, Recipe
from qvec_deploy.tensors import INPUT_SCALE, Float32, QuantizedTensor
from qvec_deploy.vectors.patch import mix, patch
from qvec_deploy.vectors.vector_sources import Source

if TYPE_CHECKING:
    from torch import nn

BATCH = 50
MIN_IMAGES = 8

Weight = QuantizedTensor | Float32
Rows = NDArray[np.int64]
OnLayer = Callable[[int, int], None]


@dataclass(frozen=True)
class Weights:
    """Everything an engine is made from.

    Attributes:
        layout: Shape and grid of every tensor, in the order of `tensors`.
        tensors: Name and value, made as they are asked for.
        errors: Relative L2 quantization error by layer; filled while `tensors` is read.
        notes: What the method could not do.
    """

    layout: Mapping[str, Entry]
    tensors: Iterator[tuple[str, Weight]]
    errors: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def make_weights(
    plan: Plan,
    receiver: Checkpoint,
    sources: Mapping[str, Source],
    images: Sequence[Float32] = (),
    on_layer: OnLayer | None = None,
) -> Weights:
    """Patch and quantize as a plan says.

    Args:
        plan: What happens to every tensor.
        receiver: The receiver.
        sources: The plan's vectors by label.
        images: Batches (B, C, H, W) for a method that looks at activations (see `calibration_images`).
        on_layer: Told how many layers are done, of how many.

    Raises:
        IntegrityError: NaN or infinity in a weight or a vector.
        IncompatibleError: Calibration by moments that no vector brings.
    """
    patched = patch(receiver, sources, plan)
    if plan.recipe.quantize.calibrated:
        return _calibrated(plan, dict(patched), receiver, sources, images, on_layer)
    errors: dict[str, float] = {}
    layout = {tensor.name: Entry(tensor.shape, tensor.scheme) for tensor in plan.tensors}
    return Weights(layout, _nearest(patched, plan, errors), errors)


def _nearest(
    weights: Iterator[tuple[str, Float32]], plan: Plan, errors: dict[str, float]
) -> Iterator[tuple[str, Weight]]:
    schemes = {tensor.name: tensor.scheme for tensor in plan.tensors}
    if any(schemes.values()):
        from qvec_deploy.quantize.modelopt import quantize
        from qvec_deploy.quantize.reference import relative_error
    for name, weight in weights:
        scheme = schemes[name]
        if scheme is None:
            yield name, weight
            continue
        quantized = quantize(weight, scheme)
        errors[name.removesuffix(".weight")] = relative_error(weight, quantized)
        yield name, quantized


def _calibrated(
    plan: Plan,
    state: dict[str, Float32],
    receiver: Checkpoint,
    sources: Mapping[str, Source],
    images: Sequence[Float32],
    on_layer: OnLayer | None,
) -> Weights:
    from qvec_deploy.quantize.calibrated import calibrate, calibrate_from_moments
    from qvec_deploy.quantize.reference import relative_error

    settings = plan.recipe.quantize
    scheme = settings.scheme()
    assert scheme is not None  # noqa: S101 - a calibrated method has a grid
    model = load_model(plan, state)
    if settings.calibration.on == "moments":
        found = calibrate_from_moments(model, _moments(sources), scheme, settings.skip)
    else:
        teacher = load_model(plan, {name: receiver.read(name) for name in state}) if plan.recipe.lam != 0 else None
        found = calibrate(model, images, scheme, settings.skip, settings.rounding, teacher=teacher, on_layer=on_layer)
    errors = {
        name.removesuffix(".weight"): relative_error(state[name], quantized)
        for name, quantized in found.codes.items()
        if settings.rounding != "awq"  # its codes are those of other weights: columns were scaled
    }
    scales = {f"{name}{INPUT_SCALE}": value for name, value in found.input_scales.items()}
    values: dict[str, Weight] = {**state, **found.floats, **found.codes, **scales}
    layout = {tensor.name: Entry(tensor.shape, tensor.scheme) for tensor in plan.tensors}
    layout |= {name: Entry(value.shape, None) for name, value in scales.items()}
    return Weights(layout, ((name, values[name]) for name in layout), errors, found.notes)


def load_model(plan: Plan, state: Mapping[str, Float32], *, strict: bool = True) -> nn.Module:
    """The plan's timm model with these weights, in evaluation mode; not `strict` where others follow."""
    import torch

    model = create(plan.architecture.name, plan.architecture.classes, plan.recipe.receiver.model_args)
    model.load_state_dict(
        {name: torch.from_numpy(np.array(value, np.float32)) for name, value in state.items()}, strict=strict
    )
    return model.eval()


def _moments(sources: Mapping[str, Source]) -> dict[str, Float32]:
    """Second moments of the Linears' inputs, the mean over all vectors."""
    parts = []
    for label, source in sources.items():  # not mixed by the vectors' weights: a negative one would be no moment
        brought = source.moments()
        if brought is None:
            raise IncompatibleError(
                f"{label} brings no second moments",
                hint="train the donor with `moments` in its recipe, or calibrate on images",
            )
        parts.append((brought, 1 / len(sources)))
    if not parts:
        raise RecipeError("quantize.calibration.on: moments needs a `vector` that brings them", hint="name one")
    return {name: mix([(part[name], share) for part, share in parts]) for name in parts[0][0]}


def calibration_images(recipe: Recipe, architecture: Architecture) -> list[Float32]:
    """What a recipe's method looks at: batches (B, C, H, W), normalised; none for methods that look at weights alone.

    Of the recipe's own `images` the half that selects; the other half is kept to confirm.

    Raises:
        RecipeError, StorageError, IncompatibleError: As `open_dataset`.
    """
    if not recipe.quantize.calibrated or recipe.quantize.calibration.on == "moments":
        return []
    return activation_images(recipe, architecture)


def activation_images(recipe: Recipe, architecture: Architecture) -> list[Float32]:
    """Images to look at activations with: what `quantize.calibration` names, whatever the method.

    Raises:
        RecipeError, StorageError, IncompatibleError: As `open_dataset`.
    """
    wanted = recipe.quantize.calibration
    on = wanted.on or ("images" if recipe.images is not None else "generated")
    config = DataConfig.from_mapping(architecture.data_config)
    if on == "images":
        return selection_images(recipe, architecture, count=wanted.count)
    if on == "dataset" and wanted.dataset is not None:
        root = None if wanted.root is None else recipe.data_path(wanted.root)
        return _batches(open_dataset(DatasetSpec(wanted.dataset, wanted.split, root, wanted.count), config))
    return _batches(open_dataset(DatasetSpec(GENERATED, "train", limit=wanted.count), config))


def selection_images(
    recipe: Recipe, architecture: Architecture, *, confirm: bool = False, count: int | None = None
) -> list[Float32]:
    """Every other image of the recipe's `images`, or of generated ones where it has none.

    Args:
        recipe: The recipe.
        architecture: Its model.
        confirm: The half that confirms instead of the half that selects; they share no image.
        count: At most so many, evenly spaced.

    Returns:
        Batches (B, C, H, W), normalised.
    """
    images, _ = half_of(open_unlabelled(recipe, architecture), confirm=confirm)
    if count is not None and count < len(images):
        images = images[np.linspace(0, len(images) - 1, count).round().astype(int)]
    return [images[start : start + BATCH] for start in range(0, len(images), BATCH)]


def half_of(dataset: Dataset, *, confirm: bool) -> tuple[Float32, Rows]:
    """Every other image of a dataset, exact copies left out: what confirms must not have chosen.

    Args:
        dataset: Read once, whole.
        confirm: The half that confirms instead of the half that selects.

    Returns:
        Images (B, C, H, W), normalised, and their labels (B,).

    Raises:
        RecipeError: Fewer different images than MIN_IMAGES.
    """
    images, labels = dataset.take(np.arange(len(dataset)))
    first: dict[str, int] = {}
    for row, image in enumerate(images):
        first.setdefault(sha256_bytes(image.tobytes()), row)
    if len(first) < MIN_IMAGES:
        raise RecipeError(
            f"`images`: {dataset.name} has {len(first)} different images",
            hint=f"give at least {MIN_IMAGES}, better 400",
        )
    rows = list(first.values())[int(confirm) :: 2]
    return images[rows], labels[rows]


def open_unlabelled(recipe: Recipe, architecture: Architecture) -> Dataset:
    """The recipe's `images`, or generated ones where it has none."""
    config = DataConfig.from_mapping(architecture.data_config)
    images = recipe.images or Images(dataset=GENERATED, split="val")
    root = None if images.root is None else recipe.data_path(images.root)
    return open_dataset(DatasetSpec(images.dataset, images.split, root, images.limit), config)


def _batches(dataset: Dataset) -> list[Float32]:
    return [images for images, _ in batches(dataset, BATCH)]

"""How images are prepared for a receiver, and who says so: the recipe, its checkpoint, a config.json, or timm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qvec_deploy.errors import IncompatibleError, RecipeError
from qvec_deploy.io.model_config import CONFIG_FILE, PREPROCESSING_FIELDS, ModelConfig
from qvec_deploy.models import Architecture
from qvec_deploy.recipe.receiver_blocks import Preprocessing
from qvec_deploy.recipe.recipe import Recipe

_BLOCK = "receiver.preprocessing"


@dataclass(frozen=True)
class PreparedImages:
    """How images are prepared.

    Attributes:
        config: By timm's names: input_size (C, H, W), interpolation, mean, std, crop_pct, crop_mode, and what else
            timm says. mean and std have one number a channel.
        origins: Who says each of `PREPROCESSING_FIELDS`.
        doubts: What does not fit together, a sentence each.
    """

    config: Mapping[str, Any]
    origins: Mapping[str, str]
    doubts: tuple[str, ...] = ()


def prepare_images(recipe: Recipe, architecture: Architecture, configs: Sequence[ModelConfig]) -> PreparedImages:
    """Take every field from the first that says it: the recipe, the checkpoint, the config.json beside it, timm.

    Args:
        configs: As `Checkpoint.configs`. A config.json of another model, or with other classes, is not used.

    Raises:
        IncompatibleError: The model takes neither gray images nor RGB.
        RecipeError: The recipe's fields contradict each other or the model.
    """
    channels = architecture.input_shape[0]
    if channels not in (1, 3):
        raise IncompatibleError(
            f"the model takes images of {channels} channels", hint="gray (in_chans: 1) and RGB images can be prepared"
        )
    config = dict(architecture.data_config)
    origins = dict.fromkeys(PREPROCESSING_FIELDS, f"timm's {recipe.receiver.model}")
    if architecture.fixed_size:
        origins["input_size"] = "the model"
    used, doubts = _fitting(recipe, architecture, configs)
    for said in reversed(used):
        fields = dict(said.preprocessing)
        if architecture.fixed_size or fields.get("input_size", (channels,))[0] != channels:
            fields.pop("input_size", None)
        config |= fields
        origins |= dict.fromkeys(fields, said.source)
    if channels == 1:  # timm's numbers are of RGB
        config |= {name: (sum(config[name]) / len(config[name]),) for name in ("mean", "std")}
    own = _of_recipe(recipe.receiver.preprocessing, architecture, config["input_size"])
    config |= own
    origins |= dict.fromkeys(own, "the recipe")
    for name in ("mean", "std"):
        config[name] = _one_a_channel(name, tuple(config[name]), channels)
    return PreparedImages(config, origins, doubts)


def _one_a_channel(name: str, values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if len(values) not in (1, channels):
        hint = f"give one, or {channels}: one a channel"
        raise RecipeError(f"{_BLOCK}.{name} has {len(values)} numbers", hint=hint)
    return values * channels if len(values) == 1 else values


def _fitting(
    recipe: Recipe, architecture: Architecture, configs: Sequence[ModelConfig]
) -> tuple[list[ModelConfig], tuple[str, ...]]:
    """The configs that are of this model, and what is doubtful about the others and about names."""
    used, doubts, model = [], [], recipe.receiver.model
    for said in configs:
        named = said.architecture or model
        other = _base(named) != _base(model)
        if other or named not in (model, _base(model)):
            doubts.append(f"{said.source} is of timm's `{named}`, the recipe names `{model}`")
        counted = said.classes is not None and said.classes != architecture.classes
        if counted:
            doubts.append(f"{said.source} is of {said.classes} classes, the head has {architecture.classes}")
        if said.source == CONFIG_FILE and (other or counted):
            doubts[-1] += ": it is not used"
        else:
            used.append(said)
            doubts += [] if other else _other_arguments(said, recipe)
    return used, tuple(doubts)


def _other_arguments(said: ModelConfig, recipe: Recipe) -> list[str]:
    """Arguments of the model that the recipe does not repeat: heads and activations leave no trace in tensors."""
    own = recipe.receiver.model_args
    found = []
    for name, value in said.args.items():
        if name in ("img_size", "in_chans") or "drop" in name:  # shapes show those; these are for training
            continue
        given = own.get(name)
        # timm's config.json has all arguments with their defaults, a training's only those that were given.
        unsaid = name not in own and said.source != CONFIG_FILE
        if unsaid or (name in own and given != value):
            what = "does not say so" if unsaid else f"says {given}"
            found.append(f"{said.source} is of a model with {name}: {value}, receiver.model_args {what}")
    return found


def _base(name: str) -> str:
    return name.partition(".")[0]


def _of_recipe(block: Preprocessing, architecture: Architecture, size: Sequence[int]) -> dict[str, Any]:
    """The recipe's fields in timm's words."""
    found = block.model_dump(exclude_none=True, exclude={"resize", "input_size"})
    channels, *model_size = architecture.input_shape
    if block.input_size is not None:
        sides = _pair(block.input_size)
        if architecture.fixed_size and list(sides) != model_size:
            raise RecipeError(
                f"{_BLOCK}.input_size is {_by(sides)}, and `{architecture.name}` is made for {_by(model_size)}",
                hint="give the model its size: receiver.model_args: {img_size: ...}",
            )
        size = found["input_size"] = (channels, *sides)
    return found | (_resized(block, size[1:]) if block.resize is not None else {})


def _resized(block: Preprocessing, size: Sequence[int]) -> dict[str, Any]:
    """What timm calls the size before the crop: a share of it that the crop keeps, and how it is reached."""
    if block.crop_pct is not None or block.crop_mode is not None:
        raise RecipeError(f"{_BLOCK}.resize says what crop_pct and crop_mode say", hint="give one or the other")
    assert block.resize is not None  # noqa: S101 - the caller asked
    exact = not isinstance(block.resize, int)
    if not exact and size[0] != size[1]:
        raise RecipeError(f"{_BLOCK}.resize: {block.resize} of a shorter side is for square inputs", hint="give [H, W]")
    wanted = _pair(block.resize)
    share = _share(size[0], wanted[0])
    if share > 1 or math.floor(size[1] / share) != wanted[1]:
        raise RecipeError(
            f"{_BLOCK}.resize: {_by(wanted)} cannot be cropped to {_by(size)}",
            hint="resize to at least the input's size, both sides by the same factor",
        )
    return {"crop_pct": share, "crop_mode": "squash" if exact else "center"}


def _share(side: int, resized: int) -> float:
    """The share of which timm's `floor(side / share)` gives `resized`, whatever rounding does."""
    share = side / resized
    return share if math.floor(side / share) == resized else math.nextafter(share, 0)


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _by(sides: Sequence[int]) -> str:
    return f"{sides[0]} x {sides[1]}"

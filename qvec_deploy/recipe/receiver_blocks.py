"""The block of a recipe about the model that is deployed, and the values that it takes."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from qvec_deploy.recipe.blocks import Block, Sha256


def _model_arg(value: Any) -> Any:
    """One refusal in place of one for every member of the union."""
    plain = isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))
    if not plain and not (isinstance(value, list) and all(type(item) is int for item in value)):
        raise ValueError("give a number, true or false, text, or a list of whole numbers")
    return value


def _side_or_sides(value: Any) -> Any:
    """One refusal in place of one for every member of the union."""
    sides = value if isinstance(value, list | tuple) else [value]
    if len(sides) > 2 or not sides or not all(type(side) is int and side > 0 for side in sides):
        raise ValueError("give a number of pixels, or [height, width]")
    return value if isinstance(value, int) else tuple(value) * (2 if len(value) == 1 else 1)


def _class_names(value: Any) -> Any:
    """One refusal in place of one for every member of the union; YAML reads `0` as a number and `yes` as true."""
    if isinstance(value, str):
        return value
    names = list(value) if isinstance(value, list | tuple) else []
    wrong = [name for name in names if isinstance(name, bool) or not isinstance(name, int | str)]
    if wrong or not names:
        what = f"{wrong[0]!r} is no name: put it in quotes" if wrong else "give a list of names, or a file of them"
        raise ValueError(what)
    return tuple(map(str, names))


def _number_or_numbers(value: Any) -> Any:
    """One number as a list of it, and one refusal in place of one for every member of the union."""
    numbers = value if isinstance(value, list | tuple) else [value]
    if not 1 <= len(numbers) <= 3 or not all(type(number) in (int, float) for number in numbers):
        raise ValueError("give a number, or one a channel")
    if max(map(abs, numbers)) > 1:
        raise ValueError("images are numbers from 0 to 1: divide by 255")
    return tuple(numbers)


def _positive(numbers: Any) -> Any:
    if min(numbers) <= 0:
        raise ValueError("give numbers above 0")
    return numbers


Numbers = Annotated[float | tuple[float, ...], BeforeValidator(_number_or_numbers)]
Names = Annotated[str | tuple[str, ...], BeforeValidator(_class_names)]
Sides = Annotated[int | tuple[int, int], BeforeValidator(_side_or_sides)]
ModelArg = Annotated[int | float | bool | str | list[int], BeforeValidator(_model_arg)]


class Preprocessing(Block):
    """Where a fine-tune's preprocessing differs from what its checkpoint, its config.json or timm says."""

    input_size: Sides | None = Field(
        default=None, description="Of the images, for models that take several sizes: a number, or [height, width]."
    )
    resize: Sides | None = Field(
        default=None,
        description="Before the crop: a number for the shorter side, [height, width] for exactly that; in place of "
        "crop_pct and crop_mode.",
    )
    mean: Numbers | None = Field(
        default=None, description="Subtracted, of values in [0, 1]; one number, or one each channel."
    )
    std: Annotated[Numbers, AfterValidator(_positive)] | None = Field(
        default=None, description="Divided by; one number, or one a channel."
    )
    crop_pct: float | None = Field(
        default=None, gt=0, le=1, description="Share of the resized image that the crop keeps."
    )
    crop_mode: Literal["center", "squash", "border"] | None = Field(default=None, description="As in timm.")
    interpolation: Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"] | None = Field(
        default=None, description="How images are resized."
    )


class Receiver(Block):
    """The fine-tuned model that is deployed."""

    checkpoint: str = Field(
        min_length=1,
        description="A file of the model's weights, whatever saved it, an index of shards, or "
        "`hf://org/repo@revision/path`.",
    )
    sha256: Sha256 | None = Field(default=None, description="SHA-256 that the checkpoint must have.")
    weights: Literal["raw", "ema"] | None = Field(
        default=None, description="Which weights to take from a file that holds raw and averaged (EMA) ones."
    )
    model: str = Field(min_length=1, description="timm model name.")
    model_args: dict[str, ModelArg] = Field(
        default_factory=dict, description="Arguments for timm.create_model beyond the name, such as img_size."
    )
    classes: Names | None = Field(
        default=None,
        description="Names of the classes in the order of the head's outputs: a list, or a file: one name a line, a "
        "line with its label behind it, or JSON. Absent: as the checkpoint or its config.json says.",
    )
    preprocessing: Preprocessing = Field(
        default=Preprocessing(),
        description="Preprocessing that the fine-tune was trained with, where neither the checkpoint, nor a "
        "config.json beside it in timm's layout, nor timm's for the model says it.",
    )

"""Donor recipes: what a donor is made from, on which task, for which grid, and how it is trained. No torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from qvec_deploy.donors.train_config import TrainConfig
from qvec_deploy.errors import RecipeError
from qvec_deploy.recipe.blocks import Block, DonorScheme
from qvec_deploy.recipe.reading import parse, read_values
from qvec_deploy.recipe.receiver_blocks import ModelArg
from qvec_deploy.tensors import GridRule

_MAX_BYTES = 1 << 20
_STEPS = 2000  # about what the paper's donors of one task had


class DonorBase(Block):
    """The pretrained network that both fine-tunes start from: the one that the receivers come from."""

    model: str = Field(min_length=1, description="timm model name.")
    model_args: dict[str, ModelArg] = Field(
        default_factory=dict, description="Arguments for timm.create_model beyond the name, such as img_size."
    )
    checkpoint: str | None = Field(
        default=None, min_length=1, description="Its weights: as `receiver.checkpoint`; the head is not read."
    )
    pretrained: bool = Field(default=False, description="Take timm's pretrained weights of `model` instead.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.checkpoint is not None) == self.pretrained:
            raise ValueError("give `checkpoint`, or `pretrained: true`: one of the two")
        return self


class DonorTask(Block):
    """Labelled images of the donor's task."""

    dataset: str = Field(min_length=1, description="As `evaluate.dataset` of a recipe.")
    root: str | None = Field(default=None, description="Folder of the data; needed for `folder`.")
    train: Literal["train", "val", "test"] = Field(default="train", description="Split that is trained on.")
    val: Literal["val", "test"] | None = Field(
        default="val", description="Split on which accuracy is measured; null, or a folder without it: not measured."
    )
    limit: int | None = Field(default=None, ge=1, description="Train on at most so many images.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.train == self.val:
            raise ValueError(f"`train` and `val` are both `{self.val}`: accuracy would be of images trained on")
        return self


class DonorGrid(DonorScheme):
    """The grid that the QAT run sees; a vector works on its own grid only."""

    bits: int = Field(default=3, ge=2, le=8, description="Bits of a weight.")
    granularity: Literal["tensor", "channel", "group"] = Field(default="channel", description="What shares one scale.")
    method: GridRule = Field(default="mse", description="`mse`: clip of least squared error.")
    clip: float = Field(default=1.0, gt=0, le=1, description="Share of the largest magnitude on the grid, for `rtn`.")
    clip_every: int = Field(default=50, ge=1, description="Steps between two searches of the clip, for `mse`.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        try:
            self.scheme()
        except RecipeError as error:
            raise ValueError(f"{error.message}; {error.hint}") from error
        return self


class DonorTrain(Block):
    """Both fine-tunes: AdamW, linear warm-up, cosine decay. The defaults are the paper's for pretrained ViTs."""

    epochs: int | None = Field(default=None, ge=1, description="Passes over the images; or give `steps`.")
    steps: int | None = Field(default=None, ge=1, description="Optimizer steps; 2000 if both are absent.")
    batch_size: int = Field(default=128, ge=1, description="Images per optimizer step.")
    accumulate: int = Field(default=1, ge=1, description="Parts a batch is cut into, to save memory.")
    lr: float = Field(default=1e-5, gt=0, description="Peak learning rate.")
    head_lr: float | None = Field(default=None, gt=0, description="That of the new head; `lr` if absent.")
    weight_decay: float = Field(default=0.1, ge=0, description="AdamW's weight decay.")
    decay_all: bool = Field(default=True, description="Decay biases, norms and tokens too, as the paper does.")
    warmup_steps: int = Field(default=500, ge=0, description="Steps of linear warm-up.")
    clip_norm: float = Field(default=1.0, gt=0, description="Largest gradient norm.")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="Share of the target spread over all classes.")
    seed: int = Field(default=0, ge=0, description="Of the head, the image order and the augmentation.")
    augment: Literal["none", "timm"] = Field(
        default="timm", description="`timm`: random crop, flip and colour jitter of timm's training transform."
    )
    precision: Literal["float32", "bf16"] = Field(default="float32", description="`bf16`: autocast, on a GPU only.")
    device: Literal["cpu", "cuda"] = Field(default="cpu", description="Where it trains.")
    workers: int = Field(default=0, ge=0, description="Processes that read images ahead.")
    save_every: int = Field(default=500, ge=1, description="Steps between two saved states that a run resumes from.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give `epochs` or `steps`, not both")
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate {self.accumulate} does not divide batch_size {self.batch_size}")
        if self.precision == "bf16" and self.device != "cuda":
            raise ValueError("precision `bf16` is for `device: cuda`; a CPU trains in float32")
        return self


class DonorRecipe(Block):
    """One donor: base, task, grid and training."""

    version: Literal[1] = Field(description="Version of this file's format.")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="Name of the donor.")
    base: DonorBase = Field(description="The pretrained network.")
    task: DonorTask = Field(description="Labelled images.")
    scheme: DonorGrid = Field(default=DonorGrid(), description="The grid of the QAT.")
    skip: tuple[str, ...] = Field(
        default=("head",), description="Child names whose Linears stay float, matched exactly."
    )
    vector_dtype: Literal["float32", "float16"] = Field(
        default="float32", description="Of the vector file; `float16` is half the size."
    )
    moments: int = Field(
        default=0,
        ge=0,
        description="Training images whose second moments, at every Linear's input, the vector brings: enough for GPTQ "
        "without any image of the receiver. 0: none.",
    )
    train: DonorTrain = Field(default=DonorTrain(), description="Both fine-tunes.")

    _folder: Path = PrivateAttr(default=Path())

    def locate(self, path: str) -> str:
        """A path of this recipe, resolved against the recipe's folder; Hub addresses stay as they are."""
        return path if path.startswith("hf://") else str(self._folder / path)

    def as_dict(self) -> dict[str, Any]:
        """Every field with its default filled in, as plain values."""
        values: dict[str, Any] = json.loads(self.model_dump_json())
        return values

    def hyper(self, images: int) -> TrainConfig:
        """Schedule and optimizer for a training set of so many images."""
        train = self.train
        epoch = images // train.batch_size
        if not epoch:
            raise RecipeError(
                f"{self.task.dataset} has {images} images and a batch is {train.batch_size}",
                hint="lower train.batch_size",
            )
        steps = train.epochs * epoch if train.epochs else train.steps or _STEPS
        if train.warmup_steps >= steps:
            raise RecipeError(
                f"{steps} steps with {train.warmup_steps} steps of warm-up", hint="lower train.warmup_steps"
            )
        return TrainConfig(
            steps=steps,
            batch_size=train.batch_size,
            lr=train.lr,
            head_lr=train.head_lr or train.lr,
            weight_decay=train.weight_decay,
            warmup=train.warmup_steps / steps,
            clip_norm=train.clip_norm,
            label_smoothing=train.label_smoothing,
            clip_every=self.scheme.clip_every,
            accumulate=train.accumulate,
            decay_all=train.decay_all,
            precision=train.precision,
            workers=train.workers,
        )


def load_donor_recipe(path: Path, overrides: Sequence[str] = ()) -> DonorRecipe:
    """Read a donor recipe."""
    values, places = read_values(path, overrides, what="donor recipe")
    recipe = parse(DonorRecipe, values, str(path), places)
    recipe._folder = path.parent
    return recipe

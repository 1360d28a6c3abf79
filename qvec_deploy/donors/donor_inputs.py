"""What a donor recipe names, opened: the base's weights and the task's images."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from qvec_deploy.datasets import DataConfig, Dataset, DatasetSpec, open_dataset
from qvec_deploy.datasets.hub_datasets import offline_hub
from qvec_deploy.datasets.spec import Split
from qvec_deploy.datasets.timm_factory import TimmDataset
from qvec_deploy.donors.donor_recipe import DonorRecipe
from qvec_deploy.donors.feed import augmented
from qvec_deploy.donors.finetune import Base, start
from qvec_deploy.donors.train import Training
from qvec_deploy.errors import FetchError, IncompatibleError, RecipeError, StorageError
from qvec_deploy.io.checkpoint import Checkpoint
from qvec_deploy.io.files import canonical_json, sha256_bytes
from qvec_deploy.io.hub import hub_errors
from qvec_deploy.models import describe, head_names, in_head
from qvec_deploy.tensors import Float32


@dataclass(frozen=True)
class Task:
    """The images of a donor.

    Attributes:
        fingerprint: Of the first images as they are before augmentation, with the number of images and classes.
    """

    name: str
    train: Dataset
    val: Dataset | None
    without_val: str | None
    fingerprint: dict[str, Any]


def open_base(recipe: DonorRecipe, *, offline: bool = False) -> Base:
    """Read the pretrained weights."""
    base = recipe.base
    if base.checkpoint is None:
        return Base(base.model, _pretrained(recipe, offline=offline), base.model_args)
    checkpoint = Checkpoint.open(recipe.locate(base.checkpoint), offline=offline, label=base.checkpoint)
    heads = head_names(base.model)
    names = [name for name in checkpoint.tensors if not in_head(name, heads)]
    odd = sorted(set(names) - set(describe(base.model, 1, base.model_args).shapes))
    if odd:  # a deeper model's file has all tensors of this one
        raise IncompatibleError(
            f"{base.checkpoint} holds `{odd[0]}`, which {base.model} does not have",
            hint="name the model that the checkpoint is of, with its arguments in base.model_args",
        )
    return Base(base.model, {name: checkpoint.read(name) for name in names}, base.model_args)


def fingerprint(base: Base) -> str:
    """SHA-256 over names, shapes and bytes of the base's weights, whatever file they came from."""
    parts = [
        [name, list(value.shape), sha256_bytes(np.ascontiguousarray(value).tobytes())]
        for name, value in sorted(base.state.items())
    ]
    return sha256_bytes(canonical_json(parts))


def open_task(recipe: DonorRecipe) -> Task:
    """Open the images, preprocessed as the model wants them."""
    task = recipe.task
    config = DataConfig.from_mapping(describe(recipe.base.model, 1, recipe.base.model_args).data_config)
    root = None if task.root is None else Path(recipe.locate(task.root))

    def spec(split: Split, limit: int | None) -> DatasetSpec:
        return DatasetSpec(task.dataset, split, root, limit)

    opened = open_dataset(spec(task.train, task.limit), config)
    train: Dataset = opened
    if train.classes < 2:
        raise RecipeError(
            f"{train.name} has {'one class' if train.classes else 'no classes'} to train on",
            hint="a donor learns a task: name labelled images of two classes or more in task.dataset",
        )
    images, labels = train.take(range(min(16, len(train))))
    seen = {
        "images": len(train),
        "classes": train.classes,
        "sha256_of_first": sha256_bytes(images.tobytes() + labels.tobytes()),
    }
    val: Dataset | None = None
    why: str | None = "task.val is null"
    if task.val is not None:
        try:
            judging = replace(spec(task.val, None), class_names=opened.class_names)
            val, why = open_dataset(judging, config, expected_classes=train.classes), None
        except StorageError as error:  # the training split is there, so this one is what is missing
            why = error.message
    if val is not None and task.dataset == "folder" and _first_file(val) == _first_file(train):
        val, why = None, f"{root} has no folder for {task.val}"
    if recipe.train.augment == "timm":
        train = augmented(train, spec(task.train, task.limit), config, recipe.train.seed)
    name = recipe.name if task.dataset == "folder" else task.dataset
    return Task(name, train, val, why, seen)


def begin(recipe: DonorRecipe, base: Base, data: Dataset, run: str) -> tuple[nn.Module, Training]:
    """The model of a run, `fp` in float or `qat` on the recipe's grid, before its first step, and its training."""
    train, scheme = recipe.train, recipe.scheme.scheme() if run == "qat" else None
    model = start(base, data.classes, scheme=scheme, skip=recipe.skip, seed=train.seed, device=train.device)
    heads = head_names(recipe.base.model)
    return model, Training(model, data, recipe.hyper(len(data)), heads=heads, seed=train.seed)


def require_device(device: str) -> None:
    """Refuse CUDA where there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise IncompatibleError("there is no CUDA device here", hint="set train.device to cpu")


def _first_file(data: Dataset) -> str:
    """The first image's path; a folder without folders for its splits gives the same images for all of them."""
    return str(data._inner.reader.filename(0, absolute=True)) if isinstance(data, TimmDataset) else ""


def _pretrained(recipe: DonorRecipe, *, offline: bool) -> dict[str, Float32]:
    """The weights that timm has for the model, without the head."""
    import timm

    base = recipe.base
    describe(base.model, 0, base.model_args)  # refuses names and arguments, and allocates nothing
    config = timm.get_pretrained_cfg(base.model)
    if config is None or not (config.hf_hub_id or config.url or config.file):
        raise RecipeError(
            f"timm has no pretrained weights of `{base.model}`", hint="give base.checkpoint, or a pretrained tag"
        )
    if offline and not config.hf_hub_id:
        raise FetchError(
            f"the pretrained weights of {base.model} are not on the Hub, and --offline looks into its cache only",
            hint="leave out --offline, or give base.checkpoint",
        )
    what = f"the pretrained weights of {base.model} cannot be fetched"
    hint = "leave out --offline and check the network, or give base.checkpoint"
    with offline_hub(offline), hub_errors(what, hint=hint), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = timm.create_model(base.model, pretrained=True, num_classes=0, **base.model_args)
    return {name: value.detach().numpy() for name, value in model.state_dict().items()}

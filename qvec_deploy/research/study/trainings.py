"""The trainings of a study, each in a folder where it goes on after a kill: to the same bytes on the same CPU."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qvec_deploy.datasets import DataConfig, DatasetSpec, open_dataset
from qvec_deploy.donors.donor_folder import DonorFolder, require_space
from qvec_deploy.donors.donor_inputs import begin, open_base, open_task, require_device
from qvec_deploy.donors.donor_recipe import DonorRecipe
from qvec_deploy.donors.finetune import weights
from qvec_deploy.donors.train import Training, TrainState
from qvec_deploy.donors.train_config import TrainConfig, TrainingProgress
from qvec_deploy.errors import IntegrityError
from qvec_deploy.models import create, describe, head_names, quantized_linears
from qvec_deploy.quantize.layer_inputs import linear_at
from qvec_deploy.research.study.study_recipe import BaseTraining
from qvec_deploy.research.study.study_store import TaskContext
from qvec_deploy.tensors import Float32
from qvec_deploy.visible import visible

_EVERY_S = 0.5  # between two events
_COPIES = 7  # of the weights: themselves; a saved state is three, and there are two while one is replaced

State = Mapping[str, Float32]


def train_base(
    model: str,
    model_args: Mapping[str, Any],
    skip: tuple[str, ...],
    wanted: BaseTraining,
    device: str,
    save_every: int,
    at: TaskContext,
) -> tuple[State, float]:
    """Train a base from random weights.

    Args:
        skip: Modules that are left at timm's initial values: the head.

    Returns:
        Its weights, the head's included, and the seconds that the steps took.
    """
    config = DataConfig.from_mapping(describe(model, 1, model_args).data_config)
    root = None if wanted.root is None else Path(wanted.root)
    data = open_dataset(DatasetSpec(wanted.dataset, "train", root), config)
    torch.manual_seed(wanted.seed)
    network = create(model, data.classes, model_args)
    for name in quantized_linears(network, skip):
        # timm starts Linears at a standard deviation of 0.02, from which a network this narrow learns slowly.
        linear = linear_at(network, name)
        nn.init.normal_(linear.weight, 0.0, linear.in_features**-0.5)
    shared = wanted.model_dump(include={"steps", "batch_size", "lr", "weight_decay", "roll"})
    hyper = TrainConfig(**shared, head_lr=wanted.lr)
    require_device(device)
    training = Training(network.to(device), data, hyper, heads=head_names(model), seed=wanted.seed)
    seconds = _run(training, "base", save_every, at)
    return {name: value.detach().cpu().numpy().copy() for name, value in network.state_dict().items()}, seconds


def fine_tune(recipe: DonorRecipe, run: str, at: TaskContext) -> tuple[State, float]:
    """One of a donor's two fine-tunes.

    Args:
        run: `fp`, in float, or `qat`, on the recipe's grid.

    Returns:
        Its weights, latent ones of a QAT run, and the seconds that the steps took.
    """
    require_device(recipe.train.device)
    model, training = begin(recipe, open_base(recipe, offline=at.offline), open_task(recipe).train, run)
    seconds = _run(training, run, recipe.train.save_every, at)
    return weights(model), seconds


def _run(training: Training, run: str, save_every: int, at: TaskContext) -> float:
    """Do the steps that are left, saving the state now and then; returns the seconds of all steps."""
    folder = DonorFolder(at.work)
    size = sum(value.numel() * value.element_size() for value in training.state().tensors.values())
    require_space(at.work, _COPIES * size - folder.size())
    saved = _claimed(folder, run, at.keyed)
    if saved is not None:
        training.restore(saved)
    seconds, sent = 0.0 if saved is None else saved.seconds, 0.0

    def after(progress: TrainingProgress) -> None:
        nonlocal seconds, sent
        seconds, last = progress.seconds, progress.step == progress.steps
        if progress.step % save_every == 0 or last:
            folder.save(run, training.state())
        if time.monotonic() - sent >= _EVERY_S or last:
            sent = time.monotonic()
            at.send({"done": progress.step, "total": progress.steps})

    training.run(after)
    return seconds


def _claimed(folder: DonorFolder, run: str, settings: Mapping[str, Any]) -> TrainState | None:
    """Where a run stood when it was last saved; a damaged state costs the time that it took."""
    try:
        folder.claim(settings)
        return folder.load(run)
    except IntegrityError as error:
        sys.stderr.write(f"{visible(error.message)}; this training begins again\n")  # the node's log
        folder.claim(settings, force=True)
        return None

"""Which common preprocessing a receiver's answers fit best, for checkpoints that nobody says it of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qvec_deploy.bench.statistics import mcnemar
from qvec_deploy.builder.weights import load_model
from qvec_deploy.datasets import DatasetSpec, batches, open_dataset
from qvec_deploy.datasets.spec import DataConfig
from qvec_deploy.io.checkpoint import Checkpoint
from qvec_deploy.planner import Plan
from qvec_deploy.progress import Advance

LEVEL = 0.01
"""Of the test that a preprocessing is better than the one that is assumed."""
_IMAGES, _LARGE_IMAGES = 200, 64
_MANY_PIXELS = 128 * 128
_BATCH = 16


@dataclass(frozen=True)
class PreprocessingTrial:
    """What trying has shown.

    Attributes:
        better: Fields of `receiver.preprocessing` that are clearly better than the assumed ones; empty where none are.
        right: Right answers with them.
        assumed_right: Right answers with the assumed ones.
        count: Labelled images that were looked at.
    """

    better: dict[str, Any]
    right: int
    assumed_right: int
    count: int


def try_preprocessings(plan: Plan, checkpoint: Checkpoint, spec: DatasetSpec, advance: Advance) -> PreprocessingTrial:
    """Hold the float model's answers against labels, with the plan's preprocessing and with the most common others."""
    import torch

    model = load_model(plan, ((name, checkpoint.read(name)) for name in plan.architecture.shapes))
    config = DataConfig.from_mapping(plan.architecture.data_config)
    _, height, width = config.input_size
    count = _IMAGES if height * width <= _MANY_PIXELS else _LARGE_IMAGES
    changes = [{}, *_common(config)]
    right = []
    for index, change in enumerate(changes):
        dataset = open_dataset(replace(spec, limit=count), replace(config, **change))
        answers = []
        for images, labels in batches(dataset, _BATCH):
            with torch.inference_mode():
                answers.append(model(torch.from_numpy(images)).argmax(1).numpy() == labels)
        right.append(np.concatenate(answers))
        advance(index + 1, len(changes))
    best = max(range(len(changes)), key=lambda index: (right[index].sum(), -index))
    gained, lost = (right[best] & ~right[0]).sum(), (right[0] & ~right[best]).sum()
    clear = best != 0 and mcnemar(int(gained), int(lost)) < LEVEL
    found = {name: list(value) if isinstance(value, tuple) else value for name, value in changes[best].items()}
    return PreprocessingTrial(found if clear else {}, int(right[best].sum()), int(right[0].sum()), len(right[0]))


def _common(config: DataConfig) -> Iterator[dict[str, Any]]:
    """Other values that fine-tunes often have: no crop, and the other of the two usual normalisations."""
    from timm.data import constants

    usual = (constants.IMAGENET_DEFAULT_MEAN, constants.IMAGENET_DEFAULT_STD)
    half = (constants.IMAGENET_INCEPTION_MEAN, constants.IMAGENET_INCEPTION_STD)
    whole = {"crop_pct": 1.0} if config.crop_pct != 1 else {}
    if whole:
        yield whole
    if config.input_size[0] != 3:
        return
    for mean, std in (usual, half):
        if tuple(config.mean) != mean:
            yield {"mean": mean, "std": std}
            if whole:
                yield {"mean": mean, "std": std, **whole}

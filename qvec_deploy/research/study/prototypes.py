"""Class prototypes in the shared base: how alike two tasks are before anything was fine-tuned."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qvec_deploy.datasets import DataConfig
from qvec_deploy.io.checkpoint import Checkpoint
from qvec_deploy.models import create
from qvec_deploy.research.study.cell_inputs import require_backbone
from qvec_deploy.research.study.cell_values import TaskData
from qvec_deploy.research.study.task_images import choosing_images

Prototypes = NDArray[np.float64]


@dataclass(frozen=True)
class Embedding:
    """Which features of which images.

    Attributes:
        model: timm model name.
        model_args: For timm.create_model, as JSON.
        base: The shared base, path or address.
        changed: When its file was changed, ns: a file made anew is another base.
        config: The model's preprocessing.
        task: Whose images.
        count: At most so many.
    """

    model: str
    model_args: bytes
    base: str
    changed: int
    config: DataConfig
    task: TaskData
    count: int


@functools.lru_cache(maxsize=64)
def class_prototypes(embedding: Embedding) -> Prototypes:
    """The mean feature of every class that has an image: (classes, width) float64.

    Features are what reaches the head, scaled to norm 1, so that no image counts for more than another. Kept for the
    other cells of the process: they are the same for every receiver, grid and seed.

    Raises:
        IncompatibleError: A base of another architecture.
        RecipeError, StorageError: As `choosing_images`.
    """
    import torch

    model = create(embedding.model, 0, json.loads(embedding.model_args))
    base = Checkpoint.open(embedding.base)
    require_backbone("the base", base, {name: tuple(value.shape) for name, value in model.state_dict().items()})
    model.load_state_dict({name: torch.from_numpy(base.read(name)) for name in model.state_dict()})
    images = choosing_images(embedding.task, embedding.config, None, embedding.count, None)
    with torch.inference_mode():
        features = torch.cat([model(torch.from_numpy(batch)).double() for batch in images.batches]).numpy()
    features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return np.stack([features[images.labels == label].mean(axis=0) for label in np.unique(images.labels)])


def prototype_cosine(receiver: Prototypes, donor: Prototypes) -> float:
    """The mean over the receiver's classes of the largest cosine with a class of the donor's."""
    first, second = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (receiver, donor))
    return float((first @ second.T).max(axis=1).mean())

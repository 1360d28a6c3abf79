"""A whole fine-tune at once, as the two runs of a donor are."""

from __future__ import annotations

from qvec_deploy.datasets import Dataset
from qvec_deploy.donors.finetune import Base, start, weights
from qvec_deploy.donors.train import Training
from qvec_deploy.donors.train_config import OnStep, TrainConfig
from qvec_deploy.models import head_names
from qvec_deploy.tensors import Float32, Scheme


def finetune(
    base: Base,
    task: Dataset,
    *,
    scheme: Scheme | None,
    hyper: TrainConfig,
    seed: int,
    skip: tuple[str, ...] = ("head",),
    on_step: OnStep | None = None,
) -> dict[str, Float32]:
    """The float weights; those of a QAT run are latent."""
    model = start(base, task.classes, scheme=scheme, skip=skip, seed=seed)
    Training(model, task, hyper, heads=head_names(base.model), seed=seed).run(on_step)
    return weights(model)

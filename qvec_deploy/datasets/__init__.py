"""Images: the bundled tiny tasks, generated ones without labels, and everything timm's dataset factory can open."""

from __future__ import annotations

from qvec_deploy.datasets.folder_classes import some
from qvec_deploy.datasets.spec import SPLITS, DataConfig, Dataset, DatasetSpec, OpenedDataset, Split, batches
from qvec_deploy.datasets.tiny import PREFIX
from qvec_deploy.errors import RecipeError
from qvec_deploy.progress import Advance

__all__ = ["SPLITS", "DataConfig", "Dataset", "DatasetSpec", "OpenedDataset", "Split", "batches", "open_dataset"]


def open_dataset(
    spec: DatasetSpec, config: DataConfig, *, expected_classes: int | None = None, advance: Advance | None = None
) -> OpenedDataset:
    """Open the images of a spec, preprocessed as the model wants them.

    Args:
        expected_classes: Outputs of the model's head; None leaves the labels unchecked.
        advance: Called with the number of folders that are listed.
    """
    dataset: OpenedDataset
    if spec.name.startswith(PREFIX):
        from qvec_deploy.datasets.tiny import open_tiny

        dataset = open_tiny(spec, config)
    elif spec.name.startswith("generated/"):
        from qvec_deploy.datasets.generated import open_generated

        dataset = open_generated(spec, config)
    else:
        from qvec_deploy.datasets.timm_factory import open_timm

        dataset = open_timm(spec, config, expected_classes, advance)
    if expected_classes is not None and dataset.classes != expected_classes:
        sides = ((dataset.name, dataset.class_names), ("the head", spec.class_names))
        named = "".join(f"; of {who}: {some(names)}" for who, names in sides if names)
        raise RecipeError(
            f"{dataset.name} has {dataset.classes} classes and the model's head {expected_classes}{named}",
            hint="accuracy needs the head's own label set: check the dataset, or the checkpoint",
        )
    return dataset

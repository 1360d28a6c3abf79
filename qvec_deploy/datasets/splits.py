"""Images that choose apart from images that confirm."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qvec_deploy.datasets.spec import Dataset
from qvec_deploy.errors import RecipeError
from qvec_deploy.io.files import sha256_bytes
from qvec_deploy.tensors import Float32

BATCH = 50
MIN_IMAGES = 8


def half_of(dataset: Dataset, *, confirm: bool) -> tuple[Float32, NDArray[np.int64]]:
    """Every other image of a dataset, exact copies left out: what confirms must not have chosen."""
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

"""Normalised images back to the pixels that they were made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qvec_deploy.datasets.spec import Float32


def pixels_of(images: Float32, mean: Sequence[float], std: Sequence[float]) -> NDArray[np.uint8]:
    """(B, H, W, C) uint8 of images (B, C, H, W): exact for what came from pixels, the nearest for all else."""
    low, unit = (np.asarray(each, np.float32)[:, None, None] for each in (mean, std))
    values = np.rint((images * unit + low) * np.float32(255)).clip(0, 255)
    return np.ascontiguousarray(values.astype(np.uint8).transpose(0, 2, 3, 1))

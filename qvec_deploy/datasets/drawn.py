"""Images that are drawn when they are asked for: no files, and the same everywhere."""

from __future__ import annotations

from dataclasses import replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from qvec_deploy.datasets.spec import DataConfig, DatasetSpec, Float32


class DrawnDataset:
    """The skeleton of a dataset whose name, split and number alone decide what is drawn."""

    identity = "drawn"
    parallel = False
    classes = 0
    class_names: tuple[str, ...] = ()

    def __init__(self, spec: DatasetSpec, config: DataConfig, count: int) -> None:
        self.name, self.split = spec.name, spec.split
        self._spec, self._config, self._count = spec, config, count
        self._mean, self._std = (np.asarray(each, np.float32)[:, None, None] for each in (config.mean, config.std))

    def __len__(self) -> int:
        return self._count

    def limited(self, limit: int) -> Self:
        """At most so many images of it: the first."""
        count = min(limit, self._count)
        return type(self)(replace(self._spec, limit=count), self._config, count)

    def modified(self) -> str:
        """There are no files."""
        return self.identity

    def contents(self) -> str:
        """What is drawn is the same everywhere."""
        return self.identity

    def normalised(self, pixels: NDArray[np.uint8]) -> Float32:
        """Pixels (B, C, H, W) as the model wants them."""
        scaled = pixels.astype(np.float32) / np.float32(255.0)
        return np.ascontiguousarray((scaled - self._mean) / self._std)

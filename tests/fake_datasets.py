"""A stand-in for Hugging Face datasets: cards without images, and images only where they are asked for."""

from __future__ import annotations

import io
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

_READER = "timm.data.readers.reader_hfds"


@dataclass
class Fake:
    """What is on the Hub, by name, and what was asked of it.

    Attributes:
        columns: By dataset: the image's and the label's column.
        splits: By dataset: how many images a split has.
        classes: By dataset: names of its labels; None for labels without names.
        commit: Of all of them.
        looked: Cards that were read.
        loaded: Splits that were downloaded.
        offline: Whether each time the network was off limits.
    """

    columns: dict[str, tuple[str, str]]
    splits: dict[str, dict[str, int]]
    classes: dict[str, list[str] | None]
    commit: str = "c0ffee"
    looked: list[str] = field(default_factory=list)
    loaded: list[tuple[str, str]] = field(default_factory=list)
    offline: list[bool] = field(default_factory=list)
    config: Any = None

    def load_dataset_builder(self, name: str, cache_dir: str | None = None) -> Any:
        self.looked.append(name)
        self.offline.append(self.config.HF_HUB_OFFLINE)
        if name not in self.columns:
            raise FileNotFoundError(f"Dataset '{name}' doesn't exist on the Hub or cannot be accessed.")
        return SimpleNamespace(hash=self.commit, info=self._info(name))

    def load_dataset(self, name: str, split: str, cache_dir: str | None = None) -> Any:
        self.loaded.append((name, split))
        image, label = self.columns[name]
        return _Rows(self._info(name), image, label, self.splits[name][split])

    def _info(self, name: str) -> Any:
        image, label = self.columns[name]
        classes = self.classes[name]
        features = {image: object(), label: object() if classes is None else SimpleNamespace(names=classes)}
        splits = {split: SimpleNamespace(num_examples=count) for split, count in self.splits[name].items()}
        return SimpleNamespace(features=features, splits=splits)


class _Rows:
    def __init__(self, info: Any, image: str, label: str, count: int) -> None:
        self.info, self._image, self._label, self._count = info, image, label, count

    def cast_column(self, column: str, feature: Any) -> _Rows:
        if column != self._image:
            raise ValueError(f"the columns are {self._image} and {self._label}, not {column}")
        return self

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> Mapping[str, Any]:
        data = io.BytesIO()
        Image.fromarray(np.full((32, 32, 3), row, np.uint8)).save(data, "PNG")
        return {self._image: {"bytes": data.getvalue(), "path": f"{row}.png"}, self._label: row % 2}


@contextmanager
def fake_datasets(datasets: Mapping[str, Mapping[str, int]], **differ: Any) -> Iterator[Fake]:
    """Datasets of two classes, `image` and `label` columns and the given splits, as the package `datasets`.

    Args:
        datasets: Name to split to number of images.
        differ: `columns` or `classes` that are others, by name.
    """
    fake = Fake(
        columns=dict.fromkeys(datasets, ("image", "label")) | differ.get("columns", {}),
        splits={name: dict(splits) for name, splits in datasets.items()},
        classes={name: ["no", "yes"] for name in datasets} | differ.get("classes", {}),
    )
    module: Any = types.ModuleType("datasets")
    config: Any = types.ModuleType("datasets.config")
    config.HF_HUB_OFFLINE = False
    fake.config = module.config = config
    module.__spec__ = ModuleSpec("datasets", None)
    module.load_dataset, module.load_dataset_builder = fake.load_dataset, fake.load_dataset_builder
    module.Image = lambda decode: None
    before = {name: sys.modules.get(name) for name in ("datasets", "datasets.config", _READER)}
    sys.modules |= {"datasets": module, "datasets.config": config}
    sys.modules.pop(_READER, None)
    try:
        yield fake
    finally:
        for name, found in before.items():
            if found is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = found

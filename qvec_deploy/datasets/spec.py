"""What a dataset is named by, what preprocessing a model wants, and what every opened dataset offers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, Self, get_args

import numpy as np
from numpy.typing import NDArray

from qvec_deploy.errors import RecipeError

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]
Split = Literal["train", "val", "test"]
ClassOrder = Literal["natural", "plain"]

SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class DataConfig:
    """The preprocessing a model was trained with, in timm's words (`timm.data.resolve_model_data_config`).

    Attributes:
        mean: Subtracted per channel, of values in [0, 1].
        crop_pct: Share of the resized image that the crop keeps.
        crop_mode: `center`, `squash` or `border`.
    """

    input_size: tuple[int, int, int] = (3, 32, 32)
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    crop_pct: float = 1.0
    crop_mode: str = "center"

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> DataConfig:
        """Read timm's dictionary; keys that have no meaning at evaluation are left aside."""
        names = tuple(cls.__dataclass_fields__)
        missing = [name for name in names if name not in values]
        if missing:
            raise RecipeError(f"preprocessing lacks {', '.join(missing)}", hint=f"it needs {', '.join(names)}")
        kept: dict[str, Any] = {name: values[name] for name in names}
        for name in ("input_size", "mean", "std"):
            kept[name] = tuple(kept[name])
        if len(kept["input_size"]) != 3:
            raise RecipeError(f"input_size is {kept['input_size']}", hint="give channels, height, width")
        return cls(**kept)


@dataclass(frozen=True)
class DatasetSpec:
    """Which images.

    Attributes:
        name: `tiny/lower` and its kin are bundled; a name without a prefix is an image folder, and any
            other goes to timm's dataset factory (`torch/...`, `hfds/...`).
        limit: At most this many images, the first ones, or evenly spaced ones of a folder, which is
            sorted by class. A generated set draws this many even beyond its usual size.
        class_order: How folders number their classes, as in `ClassRules`; None refuses folders where it matters.
        class_names: The model's classes in the order of its outputs; folders are matched to them and have no order of
            their own then.
        labelled: Whether labels are looked at; without, a folder's pictures may lie anywhere below it.
    """

    name: str
    split: Split = "test"
    root: Path | None = None
    limit: int | None = None
    class_order: ClassOrder | None = "natural"
    class_names: tuple[str, ...] = ()
    labelled: bool = True

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise RecipeError(f"{self.name}: there is no split `{self.split}`", hint=f"choose {', '.join(SPLITS)}")
        if self.limit is not None and self.limit < 1:
            raise RecipeError(f"{self.name}: limit {self.limit} leaves no image", hint="leave it out for all images")


class Dataset(Protocol):
    """Images in a fixed order, preprocessed as the model wants them."""

    name: str
    split: Split
    classes: int

    def __len__(self) -> int:
        """Number of images."""
        ...

    def take(self, rows: Sequence[int] | Int64) -> tuple[Float32, Int64]:
        """Images (B, C, H, W) float32, normalised, and labels (B,) int64, of the given rows."""
        ...


class OpenedDataset(Dataset, Protocol):
    """What `open_dataset` gives.

    Attributes:
        class_names: Names in the order of labels; empty where the dataset has none.
        parallel: Whether several threads may `take` at once and gain by it.
        missing: Classes without an image; empty where nobody has named the classes.
        remarks: What else there is to know about these images, one sentence each: files left aside, odd folders.
    """

    class_names: tuple[str, ...]
    parallel: bool
    missing: tuple[str, ...]
    remarks: tuple[str, ...]

    def limited(self, limit: int) -> OpenedDataset:
        """The same opened once more, but at most `limit` images of it, as a spec with that limit gives them."""
        ...

    @property
    def identity(self) -> str:
        """What tells these images from others of the same name, split and count, as far as it is known unread."""
        ...

    def modified(self) -> str:
        """Another one after a file was written: good for as long as the images stay where they are."""
        ...

    def contents(self) -> str:
        """What tells these images from all others wherever they lie; files are read for it, and not decoded."""
        ...


class DrawnDataset:
    """The skeleton of a dataset without files: name, split and number alone decide what is drawn, anywhere."""

    identity = "drawn"
    parallel = False
    classes = 0
    class_names: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

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


def batches(dataset: Dataset, batch_size: int) -> Iterator[tuple[Float32, Int64]]:
    """All images in order, `batch_size` at a time; the last batch may be smaller."""
    for start in range(0, len(dataset), batch_size):
        yield dataset.take(np.arange(start, min(start + batch_size, len(dataset))))

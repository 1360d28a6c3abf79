"""Any dataset that timm's factory opens at random access: image folders, `torch/...`, `hfds/...`.

Folders are read and all images prepared as timm does, but without it: devices have none.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qvec_deploy.datasets.folder_classes import ClassRules, some
from qvec_deploy.datasets.hub_datasets import is_on_hub, names_of, require_datasets
from qvec_deploy.datasets.image_folder import ImageFolder
from qvec_deploy.datasets.spec import DataConfig, DatasetSpec, Float32, Int64
from qvec_deploy.datasets.split_folder import folder_of_split
from qvec_deploy.datasets.standalone_run import ImagePreprocessor, RunError, in_bytes
from qvec_deploy.errors import IncompatibleError, RecipeError, StorageError
from qvec_deploy.io.files import canonical_json, sha256_bytes, sha256_file, storage_errors
from qvec_deploy.progress import Advance

_STREAMS = ("hfids", "tfds", "wds")


class TimmDataset:
    """A dataset of timm's, in a fixed order, through the model's own preprocessing.

    Args:
        transform: From an RGB image to an array (C, H, W), or to a tensor of PyTorch's.
    """

    def __init__(self, spec: DatasetSpec, inner: Any, transform: Any, classes: int, colours: str = "RGB") -> None:
        self.name = spec.name or "folder"
        self.split = spec.split
        self.classes = classes
        self.class_names, self._label_of = _matched(_names(inner), spec.class_names)
        self.missing, self.remarks = _missing(inner), _remarks(inner)
        # A reader opens a file for each image; what torchvision's datasets do is up to each of them.
        self.parallel = getattr(inner, "reader", None) is not None
        self._spec, self._inner, self._root = spec, inner, spec.root or Path()
        self._transform, self._colours = transform, colours
        count = len(inner)
        # A folder is sorted by class, so its first images would be one class.
        self._rows = (
            np.arange(count)
            if spec.limit is None or spec.limit >= count
            else np.arange(spec.limit) * count // spec.limit
        )

    def __len__(self) -> int:
        return len(self._rows)

    def limited(self, limit: int) -> TimmDataset:
        """At most so many images of it, as the spec's `limit`."""
        return TimmDataset(replace(self._spec, limit=limit), self._inner, self._transform, self.classes, self._colours)

    @property
    def identity(self) -> str:
        """SHA-256 of the files' names below the root and their sizes; without files, how many images there are."""
        files = self._files()
        if not files:
            return f"of {len(self._inner)}"
        with storage_errors(self._root):
            return _hash([[name, os.stat(path).st_size] for name, path in files])  # noqa: PTH116 - there may be millions

    def modified(self) -> str:
        """SHA-256 of when each file was written last."""
        with storage_errors(self._root):
            return _hash([os.stat(path).st_mtime_ns for _, path in self._files()])  # noqa: PTH116

    def contents(self) -> str:
        """SHA-256 of each file's own; of a dataset without files, nothing more than `identity`."""
        files = self._files()
        with storage_errors(self._root):
            return _hash([sha256_file(Path(path)) for _, path in files]) if files else self.identity

    def _files(self) -> list[tuple[str, str]]:
        """Names below the root and where they are; empty where the images are no files."""
        reader = getattr(self._inner, "reader", None)
        if isinstance(reader, ImageFolder):
            return [(reader.filename(row), reader.filename(row, absolute=True)) for row in self._rows.tolist()]
        if reader is None or not hasattr(reader, "samples"):
            return []
        rows = self._rows.tolist()
        return [(Path(reader.filename(row)).as_posix(), reader.filename(row, absolute=True)) for row in rows]

    def take(self, rows: Sequence[int] | Int64) -> tuple[Float32, Int64]:
        """Images (B, C, H, W) float32, normalised, and labels (B,) int64, of the given rows.

        Raises:
            StorageError: An image cannot be read. None is skipped: accuracy would be of other images.
        """
        images, labels = [], []
        for row in self._rows[np.asarray(rows, np.int64)]:
            image, label = self._read(int(row))
            images.append(np.asarray(self._transform(image)))
            labels.append(label)
        return np.stack(images).astype(np.float32, copy=False), np.asarray(labels, np.int64)

    def _read(self, row: int) -> tuple[Any, int]:
        """One gray or RGB image and its label; past timm's loading, which puts a neighbour in a broken one's place."""
        from PIL import Image, UnidentifiedImageError

        reader = getattr(self._inner, "reader", None)
        try:
            if reader is None:
                image, label = self._inner[row]
            else:
                file, label = reader[row]
                with file, Image.open(file) as opened:
                    return in_bytes(opened).convert(self._colours), self._checked(label)
            return in_bytes(image).convert(self._colours), self._checked(label)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            name = reader.filename(row) if reader else f"image {row}"
            reason = "it is no picture" if isinstance(error, UnidentifiedImageError) else error
            raise StorageError(
                f"{self.name}: {name} cannot be read: {reason}", hint="repair or remove the file"
            ) from error

    def _checked(self, label: Any) -> int:
        if not isinstance(label, (int, np.integer)) or not 0 <= label < self.classes:
            raise RecipeError(f"{self.name} has the label {label!r}", hint=f"labels are 0 to {self.classes - 1}")
        return self._label_of.get(int(label), int(label))


def open_timm(
    spec: DatasetSpec, config: DataConfig, classes: int | None = None, advance: Advance | None = None
) -> TimmDataset:
    """Open a dataset through timm's factory, with the evaluation transform that `config` describes.

    Args:
        classes: Outputs of the model's head, where there is one.
        advance: Called with the number of folders that are listed.
    """
    prefix = spec.name.partition("/")[0].lower() if "/" in spec.name else ""
    if prefix in _STREAMS:
        raise RecipeError(
            f"{spec.name} is a stream and has no fixed order", hint="use an image folder, `torch/...` or `hfds/...`"
        )
    on_hub = is_on_hub(spec.name)
    if on_hub:
        require_datasets(spec.name)
    folder = None if on_hub and spec.root is None else folder_of_split(spec, search=prefix == "", classes=classes)
    if folder is not None and prefix == "":
        rules = ClassRules(spec.class_names, spec.class_order, classes) if spec.labelled else None
        inner: Any = ImageFolder(folder, rules, advance)
    else:
        inner = _create(spec, folder)
    if len(inner) == 0:
        aside = str(getattr(inner, "left_aside", "")).rstrip(".")
        raise StorageError(
            f"cannot open `{spec.name or 'folder'}` {spec.split} in {folder}: it holds no images"
            + (f" of a class; {aside}" if aside else ""),
            hint="an image folder holds one folder of images per class",
        )
    colours = "L" if config.input_size[0] == 1 else "RGB"
    return TimmDataset(spec, inner, _evaluation_transform(config), _classes(spec, inner), colours)


def _evaluation_transform(config: DataConfig) -> Callable[[Any], Any]:
    try:
        preprocessor = ImagePreprocessor(asdict(config))
    except RunError as error:
        raise IncompatibleError(error.message, hint=error.hint) from error
    return partial(_prepared, preprocessor)  # unlike a lambda it can be sent to another process


def _prepared(preprocessor: ImagePreprocessor, image: Any) -> Any:
    return preprocessor.normalised(preprocessor.pixels(image))


def _create(spec: DatasetSpec, folder: Path | None) -> Any:
    split: str = spec.split
    columns = {}
    if is_on_hub(spec.name):
        names = names_of(spec.name)
        split, columns = names.split(spec.split), {"input_key": names.image, "target_key": names.label}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from timm.data import create_dataset

        try:
            root = None if folder is None else str(folder)
            return create_dataset(spec.name, root, split=split, search_split=False, **columns)
        except (OSError, RuntimeError, ValueError, AssertionError, NotADirectoryError) as error:
            raise StorageError(
                f"timm cannot open `{spec.name}` {spec.split} in {folder}: {error}",
                hint="names are timm's dataset names; an image folder has none",
            ) from error


def image_transform(config: DataConfig, *, training: bool = False) -> Any:
    """From an RGB image to what the model wants; in training with timm's random crop, flip and colour."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from timm.data import create_transform

        return create_transform(is_training=training, **asdict(config))


def _classes(spec: DatasetSpec, inner: Any) -> int:
    """Number of classes; none where labels are not looked at."""
    if not spec.labelled:
        return 1
    named = _named(inner)
    if not named:
        raise RecipeError(f"{spec.name} does not say which classes it has", hint="convert it to an image folder")
    return len(set(named.values()) if isinstance(named, Mapping) else named)


def _named(inner: Any) -> Any:
    """Classes as timm's reader or a torchvision dataset has them: name to label, or names by label; None without."""
    for holder, attribute in (
        (getattr(inner, "reader", None), "class_to_idx"),
        (inner, "class_to_idx"),
        (inner, "classes"),
    ):
        named = getattr(holder, attribute, None)
        if named:
            return named
    return None


def _names(inner: Any) -> tuple[str, ...]:
    """Names by label; empty where labels are not 0, 1, 2, ...; the first of several names."""
    named = _named(inner)
    if not isinstance(named, Mapping):
        return tuple(map(str, named or ()))
    by_label: dict[int, str] = {}
    for name, label in named.items():
        by_label.setdefault(label, str(name))
    return tuple(by_label[label] for label in sorted(by_label)) if set(by_label) == set(range(len(by_label))) else ()


def _matched(own: tuple[str, ...], wanted: tuple[str, ...]) -> tuple[tuple[str, ...], dict[int, int]]:
    """Names by the labels that images get, and what their labels become; a dataset's own where names do not match."""
    if own == wanted or not wanted or sorted(own) != sorted(wanted):
        return own, {}
    return wanted, {label: wanted.index(name) for label, name in enumerate(own)}


def _missing(inner: Any) -> tuple[str, ...]:
    return inner.missing if isinstance(inner, ImageFolder) else ()


def _remarks(inner: Any) -> tuple[str, ...]:
    if not isinstance(inner, ImageFolder):
        return ()
    found = [str(inner.left_aside)] if inner.left_aside.count else []
    if inner.uncounted:
        found.append(f"Folders without a picture are no classes: {some(inner.uncounted)}.")
    return tuple(found)


def _hash(facts: Sequence[object]) -> str:
    return sha256_bytes(canonical_json(facts))

"""Which folder below a root is a split's own."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from qvec_deploy.datasets.folder_classes import some
from qvec_deploy.datasets.image_folder import class_folders, is_hidden, is_picture
from qvec_deploy.datasets.spec import DatasetSpec, Split
from qvec_deploy.errors import RecipeError, StorageError
from qvec_deploy.io.files import storage_errors

_SPLIT_FOLDERS: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "eval", "evaluation", "dev"),
    "test": ("test", "testing"),
}
"""Names of a split's folder inside the root, in any case."""
_SPLIT_WORD = re.compile(
    rf"(?<![a-z])({'|'.join(name for names in _SPLIT_FOLDERS.values() for name in names)})(?![a-z])"
)


def folder_of_split(spec: DatasetSpec, *, search: bool = True, classes: int | None = None) -> Path:
    """The folder to read: the split's own where the root has one per split, else the root.

    Args:
        search: Whether to look for it; without, the root is what was asked for.
        classes: Outputs of the model's head, where there is one.

    Raises:
        RecipeError: No root is named.
        StorageError: There is no such folder, or several, or the root seems to hold splits of unknown names.
    """
    if spec.root is None:
        raise RecipeError(f"dataset `{spec.name}` needs a folder", hint="set `root`, or use a bundled tiny/ task")
    if not spec.root.is_dir():
        raise StorageError(
            f"{spec.root}: no such folder", hint="check the path (`root`, or --images); it holds one folder per class"
        )
    if not search:
        return spec.root
    folders = class_folders(spec.root)
    by_split = {
        split: [name for known in names for name in folders if name.lower() == known]
        for split, names in _SPLIT_FOLDERS.items()
    }
    found = {split for split, names in by_split.items() if names}
    if found and _are_classes(spec, folders, [name for names in by_split.values() for name in names], classes):
        return spec.root
    if not found:
        _refuse_unknown_splits(spec, folders, classes)
        return spec.root
    if spec.split not in found:
        others = [name for name in folders if not any(name in names for names in by_split.values())]
        raise StorageError(
            f"{spec.root} has {', '.join(sorted(found))} and no {spec.split}"
            + (f"; its other folders are {some(others)}" if others else ""),
            hint=f"choose one of these splits, or name the folder of {spec.split} itself",
        )
    if len(by_split[spec.split]) > 1:
        raise StorageError(
            f"{spec.root} has several folders for {spec.split}: {', '.join(by_split[spec.split])}",
            hint="name the one that is meant as `root`",
        )
    return spec.root / by_split[spec.split][0]


def _are_classes(spec: DatasetSpec, folders: Sequence[str], splits: Sequence[str], classes: int | None) -> bool:
    """Whether folders that are called as splits are classes, such as trains: each holds pictures and no folder."""
    known = bool(spec.class_names) and set(folders) <= set(spec.class_names)
    root = spec.root or Path()
    counted = classes == len(folders) > len(splits) == 1  # two of them may be splits without labels
    return spec.labelled and (known or counted) and all(_holds(root / name)[0] for name in splits)


def _refuse_unknown_splits(spec: DatasetSpec, folders: Sequence[str], classes: int | None) -> None:
    """Folders that hold folders, and no picture, are splits; but for classes whose pictures lie deeper."""
    root = spec.root or Path()
    if not spec.labelled or (spec.class_names and set(folders) <= set(spec.class_names)):
        return
    held: list[str] = []
    for name in folders:
        pictures, inner = _holds(root / name)
        if pictures:
            return
        held += [name] * inner
    named_as_splits = all(_SPLIT_WORD.search(name.lower()) for name in held)
    if held and (named_as_splits or classes != len(folders)):
        raise StorageError(
            f"{root} seems to hold splits: {some(held)}",
            hint=f"name the folder of {spec.split} itself as `root`, or call it `{spec.split}`",
        )


def _holds(folder: Path) -> tuple[bool, bool]:
    """Whether a folder has a picture directly in it, and whether it has folders; read no further than that."""
    inner = False
    with storage_errors(folder), os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if is_picture(entry.name) and not entry.is_dir():
                return True, inner
            inner = inner or entry.is_dir()
    return False, inner

"""A folder of pictures, listed in timm's order: which files are pictures, and which folder each has its label from."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from qvec_deploy.datasets.folder_classes import ClassRules, NumberedClasses, number_classes
from qvec_deploy.datasets.natural_order import in_natural_order
from qvec_deploy.io.files import storage_errors
from qvec_deploy.progress import Advance

_SYSTEM_NAMES = {"__macosx", "@eadir", "__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini", "lost+found"}
_SYSTEM_NAMES |= {"$recycle.bin", "system volume information"}
_NOT_DECODED = {"EPS", "MPEG"}
"""Formats that Pillow recognises and does not decode itself: PostScript is a program, and is run by another one."""
_LIBRARIES = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}
"""Formats that need a library which Pillow may have been built without, by Pillow's name of it."""
_NAMED_ENDINGS, _NAMED_FILES = 6, 3


@dataclass(frozen=True)
class FilesLeftAside:
    """Files below a folder that are no pictures, or have no class.

    Attributes:
        endings: How many there are of each ending, the most frequent first; `in no class folder` counts pictures.
        examples: The first of them, below the folder.
    """

    count: int = 0
    endings: tuple[tuple[str, int], ...] = ()
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One sentence; empty where there are none."""
        if not self.count:
            return ""
        kinds = [f"{count:,} {ending}" for ending, count in self.endings[:_NAMED_ENDINGS]]
        kinds += [f"{len(self.endings) - _NAMED_ENDINGS} more kinds"] * (len(self.endings) > _NAMED_ENDINGS)
        files = "1 file is" if self.count == 1 else f"{self.count:,} files are"
        return f"{files} left aside ({', '.join(kinds)}), such as {', '.join(self.examples)}."


class ImageFolder:
    """Every picture below a folder; its class is the folder directly below the root that it lies in, at any depth.

    Pictures are in the natural order of their paths, as timm has them: 9 before 10, case aside; names that are equal
    so are in plain order. It has what timm's datasets of files have: itself as its `reader`.

    Attributes:
        class_to_idx: Every class's label, also of classes without a picture.
        left_aside: Files that are no pictures, and pictures that lie in no class's folder.
        missing: Classes without a picture.
        uncounted: Folders without a picture that are no classes.
    """

    def __init__(self, root: Path, rules: ClassRules | None, advance: Advance | None = None) -> None:
        """List a folder.

        Args:
            rules: How its folders become classes; None reads all pictures wherever they lie, without labels.
            advance: Called with the number of folders that are read.

        Raises:
            RecipeError: Folders that are not the model's classes, or whose order nobody has said.
            StorageError: A folder cannot be read.
        """
        self._root = str(root)
        listing = _Listing(self._root, advance, labelled=rules is not None)
        with storage_errors(root):
            runs = list(listing.runs())
        self.left_aside = listing.left_aside()
        filled = list(dict.fromkeys(label for label, _, _ in runs))
        found = NumberedClasses({}, ())
        if rules is not None:
            empty = [label for label in listing.labels if label not in set(filled)]
            found = number_classes(filled, empty, rules, root, str(self.left_aside))
        self.class_to_idx, self.missing, self.uncounted = found.labels, found.missing, found.uncounted
        self._folders = [folder for _, folder, _ in runs]
        self._names = [name for _, _, names in runs for name in names]
        counts = [len(names) for _, _, names in runs]
        self._places = np.repeat(np.arange(len(runs), dtype=np.int32), counts)
        self._labels = np.repeat(np.array([self.class_to_idx.get(each, 0) for each, _, _ in runs], np.int32), counts)

    @property
    def reader(self) -> ImageFolder:
        """What opens the files."""
        return self

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, row: int) -> tuple[BinaryIO, int]:
        """A picture's file, open, and its label."""
        return Path(self.filename(row, absolute=True)).open("rb"), int(self._labels[row])

    def filename(self, row: int, *, absolute: bool = False) -> str:
        """Where a picture is: below the folder, or as it can be opened."""
        path = f"{self._folders[self._places[row]]}/{self._names[row]}"
        return path if absolute else path[len(self._root) + 1 :]


class _Listing:
    """One walk over a folder; no file is looked at, only names.

    Attributes:
        labels: The folders directly below the root, in natural order.
    """

    def __init__(self, root: str, advance: Advance | None, *, labelled: bool) -> None:
        self.labels: list[str] = []
        self._root, self._advance, self._labelled = root, advance, labelled
        self._endings: Counter[str] = Counter()
        self._examples: list[str] = []

    def left_aside(self) -> FilesLeftAside:
        """What was no picture, or in no class's folder."""
        endings = sorted(self._endings.items(), key=lambda entry: (-entry[1], entry[0]))
        return FilesLeftAside(self._endings.total(), tuple(endings), tuple(self._examples))

    def runs(self) -> Iterator[tuple[str, str, list[str]]]:
        """Class folder, folder and names of pictures that follow each other; the class folder is empty without one."""
        if not self._labelled:
            yield from (("", *run) for run in self._below(self._root, os.path.realpath(self._root), frozenset()))
            return
        real = os.path.realpath(self._root)
        pictures, folders = self._read(self._root)
        self._leave(self._root, in_natural_order(pictures), "in no class folder")
        self.labels = [name[:-1] for name in in_natural_order([f"{name}/" for name in folders])]
        for number, name in enumerate(self.labels, 1):
            below = self._inside(self._root, name, real, frozenset((real,)), linked=folders[name])
            yield from ((name, *run) for run in below)
            if self._advance is not None:
                self._advance(number, len(self.labels))

    def _below(self, folder: str, real: str, above: frozenset[str]) -> Iterator[tuple[str, list[str]]]:
        """Pictures of a folder and of all below it, in natural order.

        Args:
            real: The folder's place once links are followed.
            above: The places of the folders around it: a link to one of them would lead round in a circle.
        """
        pictures, folders = self._read(folder)
        above |= {real}
        run: list[str] = []
        for name in in_natural_order([*pictures, *(f"{each}/" for each in folders)]):
            if not name.endswith("/"):
                run.append(name)
                continue
            if run:
                yield folder, run
                run = []
            yield from self._inside(folder, name[:-1], real, above, linked=folders[name[:-1]])
        if run:
            yield folder, run

    def _inside(
        self, folder: str, name: str, real: str, above: frozenset[str], *, linked: bool
    ) -> Iterator[tuple[str, list[str]]]:
        path = f"{folder}/{name}"
        place = os.path.realpath(path) if linked else f"{real}/{name}"
        if place not in above:
            yield from self._below(path, place, above)

    def _read(self, folder: str) -> tuple[list[str], dict[str, bool]]:
        """Names of a folder's pictures, and of its folders with whether they are links."""
        pictures, others, folders, endings = [], [], {}, readable_endings()
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if is_hidden(name):
                    continue
                if _is_folder(entry):
                    folders[name] = entry.is_symlink()
                elif _is_special(entry):
                    self._leave(folder, [name], "pipe or device")
                elif _ending(name) in endings:
                    pictures.append(name)
                else:
                    others.append(name)
        for name in sorted(others):
            self._leave(folder, [name], _ending(name) or "without an ending")
        return pictures, folders

    def _leave(self, folder: str, names: Sequence[str], kind: str) -> None:
        if names:
            self._endings[kind] += len(names)
            more = names[: _NAMED_FILES - len(self._examples)]
            self._examples += [f"{folder}/{name}"[len(self._root) + 1 :] for name in more]


def class_folders(root: Path) -> list[str]:
    """Names of the folders that would be classes, in natural order; their pictures are not looked at."""
    with storage_errors(root), os.scandir(root) as entries:
        return in_natural_order([each.name for each in entries if not is_hidden(each.name) and _is_folder(each)])


@functools.cache
def readable_endings() -> frozenset[str]:
    """Endings of the files that Pillow decodes here, in lower case, with their point."""
    from PIL import Image, ImageFile, features

    Image.init()
    readable = {"MPO"}  # opened as JPEG
    for name, (opener, _) in Image.OPEN.items():
        stub = isinstance(opener, type) and issubclass(opener, ImageFile.StubImageFile)
        library = _LIBRARIES.get(name)
        if not stub and name not in _NOT_DECODED and (library is None or features.check(library)):
            readable.add(name)
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in readable)


def is_picture(name: str) -> bool:
    """Whether Pillow decodes files of this ending here."""
    return _ending(name) in readable_endings()


def _ending(name: str) -> str:
    _, point, ending = name.rpartition(".")
    return f".{ending.lower()}" if point else ""


def is_hidden(name: str) -> bool:
    """Whether a file or folder is nobody's picture or class: hidden ones, and what systems leave in folders."""
    return name[0] == "." or name.lower() in _SYSTEM_NAMES


def _is_special(entry: os.DirEntry[str]) -> bool:
    """Whether it is a pipe or a device, which nobody has to wait for; not so a link to nothing, which is told of."""
    try:
        return not entry.is_file() and Path(entry.path).exists()
    except OSError:  # a link to itself
        return False


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False

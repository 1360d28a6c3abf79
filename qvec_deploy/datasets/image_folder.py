"""A folder of pictures in the order and with the labels that timm gives them, read without timm."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import BinaryIO

ENDINGS = (".png", ".jpg", ".jpeg")
"""Of the files that timm takes for pictures, in either case."""


class ImageFolder:
    """Every picture below a folder; its class is the name of the folder that it lies in.

    Classes and pictures are in the order of their names in lower case, numbers in them by their value: 9 before 10. It
    has what timm's datasets of files have: itself as its `reader`.
    """

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        found = [
            (f"{folder}/{name}", "" if folder == self._root else Path(folder).name)
            for folder, _, names in os.walk(self._root, topdown=False, followlinks=True)
            for name in names
            if Path(name.lstrip(".")).suffix.lower() in ENDINGS
        ]
        classes = sorted({label for _, label in found}, key=_by_number)
        self.class_to_idx = {label: number for number, label in enumerate(classes)}
        self.samples = sorted(
            ((path, self.class_to_idx[label]) for path, label in found), key=lambda sample: _by_number(sample[0])
        )

    @property
    def reader(self) -> ImageFolder:
        """What opens the files."""
        return self

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, row: int) -> tuple[BinaryIO, int]:
        """A picture's file, open, and its label."""
        path, label = self.samples[row]
        return Path(path).open("rb"), label

    def filename(self, row: int, *, absolute: bool = False) -> str:
        """Where a picture is: below the folder, or as it can be opened."""
        path = self.samples[row][0]
        return path if absolute else os.path.relpath(path, self._root)


def _by_number(name: str) -> list[int | str]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name.lower())]

"""A folder of pictures in the order and with the labels that timm gives them, read without timm."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import BinaryIO

from qvec_deploy.datasets.spec import ClassOrder
from qvec_deploy.errors import RecipeError

ENDINGS = (".png", ".jpg", ".jpeg")
"""Of the files that timm takes for pictures, in either case."""


class ImageFolder:
    """Every picture below a folder; its class is the name of the folder that it lies in.

    Classes and pictures are in the order of their names in lower case, numbers in them by their value: 9 before 10. It
    has what timm's datasets of files have: itself as its `reader`.
    """

    def __init__(self, root: Path, class_order: ClassOrder | None = "natural") -> None:
        """List a folder.

        Args:
            class_order: `natural` is timm's (9 before 10, case aside), `plain` that of torchvision's ImageFolder (by
                character: 10 before 9). None is for folders where the two are one.

        Raises:
            RecipeError: They are not, and nobody said which numbers the classes.
        """
        self._root = str(root)
        found = [
            (f"{folder}/{name}", "" if folder == self._root else Path(folder).name)
            for folder, _, names in os.walk(self._root, topdown=False, followlinks=True)
            for name in names
            if Path(name.lstrip(".")).suffix.lower() in ENDINGS
        ]
        classes = _ordered({label for _, label in found}, class_order, root)
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


def _ordered(labels: set[str], order: ClassOrder | None, root: Path) -> list[str]:
    natural, plain = sorted(labels, key=_by_number), sorted(labels)
    if order is None and natural != plain:
        number = next(n for n, (one, other) in enumerate(zip(natural, plain, strict=True)) if one != other)
        raise RecipeError(
            f"{root}: class {number} is `{natural[number]}` as timm orders the folders, and `{plain[number]}` as "
            "torchvision's ImageFolder does",
            hint="say which the model was trained with: evaluate.class_order: natural (timm) or plain (torchvision)",
        )
    return plain if order == "plain" else natural


def _by_number(name: str) -> list[int | str]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name.lower())]

"""Folders to classes: by the names of the model's classes, or by the folders' own order where that is clear."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from qvec_deploy import formatting
from qvec_deploy.datasets.natural_order import in_natural_order
from qvec_deploy.datasets.spec import ClassOrder
from qvec_deploy.errors import RecipeError

some = partial(formatting.some, most=10)
"""Names of folders and classes in a sentence."""


@dataclass(frozen=True)
class ClassRules:
    """How folders become classes.

    Attributes:
        names: The model's classes in the order of its outputs; folders are matched to them. Empty: folders are
            numbered in their own order.
        order: `natural` is timm's (9 before 10, case aside), `plain` that of torchvision's ImageFolder (by character:
            10 before 9). None is for folders where the two are one.
        count: Outputs of the model's head; None where there is no model yet.
    """

    names: tuple[str, ...] = ()
    order: ClassOrder | None = "natural"
    count: int | None = None


@dataclass(frozen=True)
class NumberedClasses:
    """The classes of a folder.

    Attributes:
        labels: Label by name, ascending.
        missing: Classes without a picture.
        uncounted: Folders without a picture that are no classes.
    """

    labels: dict[str, int]
    missing: tuple[str, ...]
    uncounted: tuple[str, ...] = ()


def number_classes(
    filled: Sequence[str], empty: Sequence[str], rules: ClassRules, root: Path, aside: str = ""
) -> NumberedClasses:
    """Give every folder with pictures its label.

    Args:
        filled: Folders with pictures, in natural order.
        empty: Folders without.
        aside: A sentence about files that are left aside, for errors.

    Raises:
        RecipeError: Folders that are no classes of the model, more or fewer than it has, or in an order that timm and
            torchvision do not share while nobody has said which it is.
    """
    if rules.names:
        return _by_name(filled, empty, rules.names, root)
    if rules.count is None or rules.count == len(filled) or not filled:
        classes, missing = list(filled), tuple[str, ...]()
    elif rules.count == len(filled) + len(empty):  # a class that has no picture in this split keeps its place
        classes, missing = [*filled, *empty], tuple(empty)
    else:
        raise _other_count(filled, empty, rules.count, root, aside)
    ordered = order_classes(classes, rules.order, root)
    uncounted = () if missing else tuple(empty)
    return NumberedClasses({name: label for label, name in enumerate(ordered)}, missing, uncounted)


def _by_name(filled: Sequence[str], empty: Sequence[str], names: Sequence[str], root: Path) -> NumberedClasses:
    names = _as_spelled(names, [*filled, *empty])
    labels = {name: label for label, name in enumerate(names)}
    unknown = [folder for folder in filled if folder not in labels]
    if unknown:
        raise RecipeError(
            f"{root}: {len(unknown)} of {len(filled)} folders are no classes of the model: {some(unknown)}; its "
            f"{len(names)} classes are {some(names)}",
            hint=_nearest(unknown, [name for name in names if name not in set(filled)]),
        )
    found = set(filled)
    uncounted = tuple(folder for folder in empty if folder not in labels)
    return NumberedClasses(labels, tuple(name for name in names if name not in found), uncounted)


def _as_spelled(names: Sequence[str], folders: Sequence[str]) -> list[str]:
    """Names as the folders spell them: systems differ in whether an accent is a character of its own."""
    spelled = {unicodedata.normalize("NFC", folder): folder for folder in folders}
    if len(spelled) < len(folders) or len({unicodedata.normalize("NFC", name) for name in names}) < len(names):
        return list(names)
    return [spelled.get(unicodedata.normalize("NFC", name), name) for name in names]


def _nearest(folders: Sequence[str], names: Sequence[str]) -> str:
    """What to do about folders that match no name."""
    by_lower = {name.lower().replace(" ", "_"): name for name in reversed(names)}
    pairs = []
    for folder in folders:
        near = difflib.get_close_matches(folder.lower().replace(" ", "_"), by_lower, n=1)
        pairs += [f"{folder} to {by_lower[each]}" for each in near]
        if len(pairs) == 3:
            break
    what = "names are compared exactly: rename the folders"
    return (
        f"{what} ({', '.join(pairs)}?), or change receiver.classes" if pairs else f"{what}, or change receiver.classes"
    )


def _other_count(filled: Sequence[str], empty: Sequence[str], count: int, root: Path, aside: str) -> RecipeError:
    return RecipeError(
        f"{root} has {len(filled)} classes and the model's head {count}; with pictures: {some(filled)}; without: "
        f"{some(empty) or 'none'}; the names of the head's classes are not known"
        + (f"; {aside.rstrip('.')}" if aside else ""),
        hint="accuracy needs the head's own classes: name them in receiver.classes, in the head's order, and a folder "
        "may have some of them only; or give every class a folder: an empty one keeps the place of a class",
    )


def order_classes(folders: Sequence[str], order: ClassOrder | None, root: Path) -> list[str]:
    """Folders in the order of their labels, where no names say it.

    Raises:
        RecipeError: timm's order and torchvision's differ, and `order` is None.
    """
    natural, plain = in_natural_order(folders), sorted(folders)
    if order is None and natural != plain:
        number = next(n for n, (one, other) in enumerate(zip(natural, plain, strict=True)) if one != other)
        raise RecipeError(
            f"{root}: class {number} is `{natural[number]}` as timm orders the folders, and `{plain[number]}` as "
            "torchvision's ImageFolder does",
            hint="say which the model was trained with: evaluate.class_order: natural (timm) or plain (torchvision), "
            "or give its classes' names in receiver.classes",
        )
    return plain if order == "plain" else natural

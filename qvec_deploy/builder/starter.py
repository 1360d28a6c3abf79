"""A first recipe for a checkpoint: what it is, which images there are, and what runs here, written down."""

from __future__ import annotations

import json
import math
import os
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qvec_deploy import formatting
from qvec_deploy.builder.identify import Identified, identify
from qvec_deploy.builder.preprocessing_trial import PreprocessingTrial, try_preprocessings
from qvec_deploy.datasets import SPLITS, DatasetSpec, Split, open_dataset
from qvec_deploy.datasets.image_folder import class_folders
from qvec_deploy.datasets.spec import ClassOrder, DataConfig
from qvec_deploy.datasets.split_folder import folder_of_split
from qvec_deploy.errors import RecipeError, StorageError
from qvec_deploy.io.checkpoint import Checkpoint
from qvec_deploy.io.hub import is_remote
from qvec_deploy.io.state_dict import Weights
from qvec_deploy.io.yaml import parse_yaml
from qvec_deploy.models import HEAD, Architecture
from qvec_deploy.planner import Plan, make_plan
from qvec_deploy.progress import Advance
from qvec_deploy.quantize.methods import ROUND_TO_NEAREST, competing
from qvec_deploy.recipe.blocks import USUAL_GRID, Target
from qvec_deploy.recipe.recipe import Recipe, validate
from qvec_deploy.runtimes.registry import RUNTIMES
from qvec_deploy.visible import visible

_MANY_PIXELS = 128 * 128
_LIMIT_OF_LARGE = 1000
"""Images that judge a model of large inputs, so that a first build takes minutes: accuracy to 2 or 3 points."""
_EMPTY_NAMES = ("model", "model_best", "best", "last", "checkpoint", "pytorch_model", "weights", "state_dict")
_JUDGES: tuple[Split, ...] = ("test", "val", "train")
_LOOKED_AT: tuple[Split, ...] = ("val", "train", "test")


@dataclass(frozen=True)
class Wanted:
    """What the user says of a model.

    Attributes:
        model: The timm name; None to find it.
        images: A folder of labelled images, with or without a folder for each split.
        name: The recipe's name; after the checkpoint if absent.
        folder: The folder of the recipe, from which its paths start.
    """

    checkpoint: str
    folder: Path
    model: str | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    weights: Weights | None = None
    images: Path | None = None
    name: str | None = None


@dataclass(frozen=True)
class ImageSets:
    """What a folder of images offers.

    Attributes:
        judge: The split that judges; None where no image has a label.
        looked_at: The split whose images are looked at without labels; None where there is no other.
        order: How classes are numbered, where timm and torchvision number them differently.
        count: Images of the split that judges.
    """

    judge: Split | None
    looked_at: Split | None
    order: ClassOrder | None
    count: int


def first_recipe(wanted: Wanted, *, offline: bool = False, advance: Advance | None = None) -> tuple[Recipe, str]:
    """A recipe that `plan` accepts and that builds with nothing but what is there, and its commented text.

    Args:
        advance: Called with how many preprocessings were tried, and of how many.

    Raises:
        RecipeError: No model of timm is found, or the file holds raw and averaged weights and nobody said which, or
            the folder's images do not go with the model's head.
        QvecError: The checkpoint or the images cannot be read.
    """
    source = wanted.checkpoint
    checkpoint = Checkpoint.open(source, offline=offline, weights=wanted.weights)
    found = identify(checkpoint, wanted.model, wanted.model_args)
    receiver = _block_of_receiver(wanted, found, checkpoint)
    name = _as_name(wanted.name) if wanted.name is not None else f"{_as_name(_stem(source))}_3bit"
    bare = {"version": 1, "name": name, "receiver": {key: value for key, value, _ in receiver}}
    bare["quantize"] = {"convolutions": _is_convolutional(found.architecture)}
    plan = make_plan(validate(bare, wanted.folder, source, {}), checkpoint)
    sets = _find_images(wanted.images, wanted, plan, found) if wanted.images is not None else None
    trial = _try(plan, checkpoint, sets, wanted, advance) if sets is not None and sets.judge is not None else None
    if trial is not None and trial.better:
        said = f"tried: {trial.right} of {trial.count} images right; timm's values give {trial.assumed_right}"
        receiver.append(("preprocessing", trial.better, said))
        bare["receiver"] = {key: value for key, value, _ in receiver}
        plan = make_plan(validate(bare, wanted.folder, source, {}), checkpoint)
    lines = _lines(name, receiver, plan, sets, wanted)
    text = "".join(f"{visible(line)}\n" for line in lines)  # a line break in a name would end its comment
    values, places = parse_yaml(text, source)
    return validate(values, wanted.folder, source, places), text


def _is_convolutional(architecture: Architecture) -> bool:
    """Whether most weights are in convolutions, as in hybrids that are small for it."""

    def size(names: list[str]) -> int:
        return sum(math.prod(architecture.shapes[f"{name}.weight"]) for name in names)

    linears = size(architecture.quantized((HEAD,)))
    return size(architecture.quantized((HEAD,), convolutions=True)) > 2 * linears


def _as_name(text: str) -> str:
    """Text as the name of a recipe."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text).strip("_.-") or "model"


def _stem(source: str) -> str:
    """The name of a checkpoint; of its folder, where the file's name says nothing."""
    path = Path(source.removeprefix("hf://").partition("@")[0]) if is_remote(source) else Path(source).resolve()
    stem = path.name.partition(".")[0]
    if stem in _EMPTY_NAMES:
        stem = path.parent.name
    return stem


def _block_of_receiver(wanted: Wanted, found: Identified, checkpoint: Checkpoint) -> list[tuple[str, Any, str]]:
    """The fields of `receiver`: name, value, and a comment."""
    place = wanted.checkpoint if is_remote(wanted.checkpoint) else _relative(Path(wanted.checkpoint), wanted.folder)
    fields: list[tuple[str, Any, str]] = [("checkpoint", place, "")]
    if checkpoint.weights is not None:
        fields.append(("weights", checkpoint.weights, "of those that the file holds"))
    others = f"; {formatting.some(found.others)} would have the same tensors" if found.others else ""
    fields.append(("model", found.architecture.name, f"told by {found.told_by}{others}"))
    if found.args:
        fields.append(("model_args", dict(found.args), ""))
    return fields


def _relative(path: Path, folder: Path) -> str:
    """A path from the recipe's folder where both lie below one folder of the user's, else the whole."""
    whole, start = path.resolve(), folder.resolve()
    common = Path(os.path.commonpath([whole, start]))
    return Path(os.path.relpath(whole, start)).as_posix() if len(common.parts) > 2 else str(whole)


def _find_images(root: Path, wanted: Wanted, plan: Plan, found: Identified) -> ImageSets:
    """Which splits there are, and whether the order of the classes has to be said.

    Pictures that lie in one folder, none of them in a class's, have no labels and can be looked at.
    """
    classes, config = plan.architecture.classes, DataConfig.from_mapping(plan.architecture.data_config)
    spec = DatasetSpec("folder", root=root, class_order=None, class_names=plan.class_names.names)
    if root.is_dir() and not class_folders(root):
        open_dataset(replace(spec, split="val", labelled=False), config)
        return ImageSets(None, "val", None, 0)
    there = [split for split in SPLITS if _has_split(replace(spec, split=split), classes)]
    if not there:
        folder_of_split(spec, classes=classes)  # says what is wrong
    one_set = folder_of_split(replace(spec, split=there[0]), classes=classes) == root
    judge = next(split for split in _JUDGES if split in there)
    looked_at = None if one_set else next((split for split in _LOOKED_AT if split in there and split != judge), None)
    spec = replace(spec, split=judge)
    order: ClassOrder | None = None
    try:
        opened = open_dataset(spec, config, expected_classes=classes)
    except RecipeError:  # timm's own training script leaves its name in the checkpoint
        order = "natural" if found.told_by == Path(wanted.checkpoint).name else "plain"
        try:
            opened = open_dataset(replace(spec, class_order=order), config, expected_classes=classes)
        except RecipeError as error:
            raise RecipeError(error.message, hint=f"{error.hint} (init without --images writes one)") from error
    return ImageSets(judge, looked_at, order, len(opened))


def _try(
    plan: Plan, checkpoint: Checkpoint, sets: ImageSets, wanted: Wanted, advance: Advance | None
) -> PreprocessingTrial | None:
    """Try common preprocessings, where nobody says which it was; on other images than those that judge, if possible."""
    guessed = (plan.images.origins[name].startswith("timm's") for name in ("mean", "std", "crop_pct"))
    if not all(guessed):
        return None
    split = sets.looked_at or sets.judge
    assert split is not None  # noqa: S101 - labelled images are there
    names = plan.class_names.names
    spec = DatasetSpec("folder", split, wanted.images, class_order=sets.order or "natural", class_names=names)
    return try_preprocessings(plan, checkpoint, spec, advance or (lambda done, total: None))


def _has_split(spec: DatasetSpec, classes: int) -> bool:
    try:
        folder_of_split(spec, classes=classes)
    except StorageError:
        return False
    return True


def _lines(
    name: str, receiver: list[tuple[str, Any, str]], plan: Plan, sets: ImageSets | None, wanted: Wanted
) -> Iterator[str]:
    """The recipe's text, line by line."""
    yield f"# A first recipe for {Path(wanted.checkpoint).name}: 3 bits, for the CPU. Written by `qvec-deploy init`."
    yield "#   qvec-deploy plan --recipe FILE     what will be done"
    yield "#   qvec-deploy build --recipe FILE    builds it, measures it, and writes out/NAME/report.html"
    yield from ("version: 1", f"name: {name}", "", "receiver:")
    for key, value, comment in receiver:
        yield f"  {key}: {_plain(value)}" + (f" # {comment}" if comment else "")
    yield "  # Images are prepared with these values:"
    for part in formatting.preprocessing(plan.images.config, plan.images.origins).split("; "):
        yield from textwrap.wrap(part, 110, initial_indent="  #   ", subsequent_indent="  #     ")
    yield "  # If the model was trained with others, say so; wrong ones cost accuracy without any error:"
    if not any(key == "preprocessing" for key, _, _ in receiver):
        yield "  # preprocessing: { mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5], crop_pct: 0.9 }"
    if plan.class_names.names:
        yield f"  # Its classes are named by {plan.class_names.source}: {formatting.some(plan.class_names.names)}."
    else:
        yield "  # classes: classes.txt # the names of its classes, one a line; image folders are then matched to them"
    yield from ("", "quantize:", "  bits: 3 # 2 to 8", "  granularity: channel # one scale for each output channel")
    on = "your unlabelled images, below" if sets is not None and sets.looked_at else "images that the tool draws"
    if plan.recipe.quantize.convolutions:
        yield "  convolutions: true # most weights are there; they take methods that look at weights alone"
        yield f"  method: {USUAL_GRID}"
    else:
        yield f"  method: {competing()[0]} # looks at {on}; needs no labels"
    if sets is not None and sets.looked_at is not None:
        yield from _of_choice(sets.looked_at, wanted, chooses=not plan.recipe.quantize.convolutions)
    if not plan.recipe.quantize.convolutions:
        yield from _of_vector()
    here = [row.name for row in RUNTIMES.values() if row.load().missing() is None]
    yield from ("", "target:", f"  runtime: {Target().runtime} # of those that run here: {', '.join(here)}")
    yield "  lowering: int8 # the fastest on CPUs; int4 takes the least memory and computes exactly"
    yield from _of_evaluation(plan, sets, wanted)
    rounding = ROUND_TO_NEAREST.name
    yield from ("", "variants: # measured beside it", f"  - name: {rounding} # the least one can do")
    yield f"    set: {{ quantize.method: {rounding} }}"


def _of_choice(split: Split, wanted: Wanted, *, chooses: bool) -> Iterator[str]:
    assert wanted.images is not None  # noqa: S101 - there is a split of it
    yield ""
    if chooses:
        yield "# Half of these images choose, by what the quantized model computes for them, and half confirm."
        yield "select: best"
    else:
        yield "# Ranges of activations are taken from these images; labels are not looked at."
    yield from ("images:", "  dataset: folder")
    yield from (f"  root: {_plain(_relative(wanted.images, wanted.folder))}", f"  split: {split}")


def _of_vector() -> Iterator[str]:
    yield ""
    yield "# A quantization vector needs a donor: another fine-tune of the same pretrained model, in float and"
    yield "# quantization-aware. `qvec-deploy vector extract` makes the file of the two, `donor train` trains them:"
    yield from ("# vector:", "#   files: [donor.safetensors]")


def _of_evaluation(plan: Plan, sets: ImageSets | None, wanted: Wanted) -> Iterator[str]:
    yield ""
    if sets is None or sets.judge is None or wanted.images is None:
        yield "# Labelled images, on which accuracy is measured; without them only speed and size are:"
        yield from ("# evaluate:", "#   dataset: folder # images in FOLDER/test/CLASS/", "#   root: FOLDER")
        return
    yield from ("evaluate: # labelled images that judge", "  dataset: folder")
    yield from (f"  root: {_plain(_relative(wanted.images, wanted.folder))}", f"  split: {sets.judge}")
    _, height, width = plan.architecture.input_shape
    if height * width > _MANY_PIXELS and sets.count > _LIMIT_OF_LARGE:
        yield f"  limit: {_LIMIT_OF_LARGE} # of {sets.count:,}, so that a first build takes minutes"
    if sets.order is not None:
        yield f"  class_order: {sets.order} # ASSUMED. timm numbers these folders otherwise than torchvision does:"
        yield "  # natural is timm's order (9 before 10), plain torchvision's (ImageFolder). The build stops where"
        yield "  # the float model's answers look permuted."


def _plain(value: Any) -> str:
    """A value as YAML on one line."""
    if isinstance(value, str) and re.fullmatch(r"[\w./@=:-]*[\w/]", value) and not re.fullmatch(r"[\d.:_-]+", value):
        return value
    return json.dumps(value)

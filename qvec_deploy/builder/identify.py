"""Which timm model a checkpoint's tensors are of, told by their names and shapes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from qvec_deploy.errors import IncompatibleError, QvecError, RecipeError
from qvec_deploy.io.checkpoint import Checkpoint
from qvec_deploy.models import Architecture, describe
from qvec_deploy.planner import check_tensors, count_classes

Shapes = Mapping[str, tuple[int, ...]]

FINGERPRINTS = "timm_fingerprints.json"
"""Written by scripts/fingerprint_models.py: the names of timm's models by fingerprint."""
_HEADS = ("head", "head_dist", "classifier", "fc", "heads")
_OF_IMAGE_SIZE = ("pos_embed", "relative_position", "rel_pos", "attention_bias", "rope", "attn_mask")


@dataclass(frozen=True)
class Identified:
    """The timm model of a checkpoint.

    Attributes:
        args: Arguments for timm.create_model with which it has the checkpoint's tensors.
        told_by: What named it.
        others: Other models of timm with the same tensors; they differ in preprocessing, heads or arithmetic.
    """

    architecture: Architecture
    args: Mapping[str, Any]
    told_by: str
    others: tuple[str, ...] = ()


def fingerprint(shapes: Shapes) -> str:
    """12 hex digits of all names and shapes but what a fine-tune may change: head, image size, channels, pooling."""
    lines = []
    for name, shape in shapes.items():
        if name.partition(".")[0] in _HEADS:
            continue
        kept = shape if len(shape) != 4 else (shape[0], *shape[2:])
        if any(word in name for word in _OF_IMAGE_SIZE):
            kept = ()
        lines.append(f"{name.replace('fc_norm.', 'norm.')} {kept}")
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:12]


def identify(checkpoint: Checkpoint, model: str | None, args: Mapping[str, Any]) -> Identified:
    """Find the timm model, and the arguments with which it has exactly the checkpoint's tensors.

    Args:
        model: Its name, if the user gave one; else the checkpoint's own words count, and then its shapes.
        args: Arguments that are known; more are found.

    Raises:
        RecipeError: No model of timm has these tensors, and nobody named one.
        IncompatibleError: The model that was named has other tensors, whatever its arguments; or there is no head.
    """
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    said = [config for config in checkpoint.configs() if config.architecture is not None]
    if model is not None:
        own = (config.args for config in said if str(config.architecture).partition(".")[0] == model.partition(".")[0])
        with contextlib.suppress(QvecError):
            return _fitted(checkpoint, model, {**next(own, {}), **args}, "--model")
        return _fitted(checkpoint, model, args, "--model")
    for config in said:
        try:
            return _fitted(checkpoint, str(config.architecture), {**config.args, **args}, config.source)
        except QvecError:
            continue
    names = _alike(shapes)
    for name in names:
        try:
            found = _fitted(checkpoint, name, args, "the names and shapes of its tensors")
        except QvecError:
            continue
        return Identified(found.architecture, found.args, found.told_by, tuple(n for n in names if n != name))
    if not any(name.partition(".")[0] in _HEADS for name in shapes):
        raise IncompatibleError(
            f"{checkpoint.path} has no classification head", hint="use the checkpoint of the fine-tune, with its head"
        )
    hint = f"it says `{said[0].architecture}`, which has others; " if said else ""
    raise RecipeError(
        f"{checkpoint.path}: no model of timm has these {len(shapes)} tensors ({', '.join(list(shapes)[:3])}, ...)",
        hint=f"{hint}name the model with --model, and what it was made with: --model-arg img_size=32",
    )


def _alike(shapes: Shapes) -> list[str]:
    """Models with this fingerprint, the likeliest first: of plain names the shortest."""
    table = json.loads(files("qvec_deploy").joinpath(FINGERPRINTS).read_text("utf-8"))["models"]
    return sorted(table.get(fingerprint(shapes), []), key=lambda name: (not name.startswith("vit_"), len(name), name))


def _fitted(checkpoint: Checkpoint, model: str, args: Mapping[str, Any], told_by: str) -> Identified:
    """The model with the first arguments of those that are likely with which it is the checkpoint's."""
    refusal: QvecError | None = None
    for more in _likely_args(checkpoint, args):
        try:
            architecture = describe(model, count_classes(model, checkpoint), {**args, **more})
            check_tensors(checkpoint, architecture)
        except QvecError as error:
            refusal = refusal or error
            continue
        return Identified(architecture, {**args, **more}, told_by)
    assert refusal is not None  # noqa: S101 - there is at least one try
    raise refusal


def _likely_args(checkpoint: Checkpoint, args: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Arguments that the tensors suggest: channels, image size, pooling."""
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    sure: dict[str, Any] = {}
    first = next((shape for shape in shapes.values() if len(shape) == 4 and shape[1] in (1, 3)), None)
    if first is not None and first[1] != 3 and "in_chans" not in args:
        sure["in_chans"] = first[1]
    sizes = [{}] if "img_size" in args else [{}, *({"img_size": size} for size in _image_sizes(checkpoint))]
    for size in sizes:
        yield {**sure, **size}
        if "global_pool" not in args:
            yield {**sure, **size, "global_pool": "avg"}


def _image_sizes(checkpoint: Checkpoint) -> Iterable[int]:
    """Sides of square images that the position embedding, or what the checkpoint says of itself, allows."""
    said = [
        config.preprocessing["input_size"][1] for config in checkpoint.configs() if "input_size" in config.preprocessing
    ]
    position, patch = (checkpoint.tensors.get(name) for name in ("pos_embed", "patch_embed.proj.weight"))
    if position is not None and patch is not None and len(position.shape) == 3 and len(patch.shape) == 4:
        for prefix in (0, 1, 2, 5):  # class, distillation and register tokens
            side = math.isqrt(max(position.shape[1] - prefix, 0))
            if side * side == position.shape[1] - prefix and side > 0:
                said.append(side * patch.shape[2])
    return dict.fromkeys(said)

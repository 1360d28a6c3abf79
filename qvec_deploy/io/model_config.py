"""What a checkpoint, or a config.json beside it, says about the model: its name, classes, size and preprocessing."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qvec_deploy.io.untrusted import MAX_BYTES, parse_json, read_limited, understood

CONFIG_FILE = "config.json"
PREPROCESSING_FIELDS = ("input_size", "mean", "std", "crop_pct", "crop_mode", "interpolation")
"""Of preprocessing, in timm's words."""
_IN_SAVED = ("arch", "args", "pretrained_cfg", "config", "meta", "model_args", "hyper_parameters", "num_classes")
_CLASSES_IN_SAVED = (
    *("class_names", "classes", "CLASSES", "label_names", "classnames", "labels"),
    *("idx_to_class", "id2label", "idx2class", "idx2label"),
    *("class_to_idx", "label2id", "class2idx", "label2idx"),
)
"""Entries of what training scripts save that say something about the model, and those that name its classes."""


@dataclass(frozen=True)
class ModelConfig:
    """What one place says about a model; everything may be absent.

    Attributes:
        source: The place: a file's name, or words for a part of the checkpoint.
        architecture: timm's name of the model, without the tag of pretrained weights.
        classes: Outputs of the head.
        args: Arguments for timm.create_model beyond the name.
        preprocessing: Values by timm's names, which are `PREPROCESSING_FIELDS`.
        class_names: The names, the one of label 0 first.
        unread: What names classes and is not taken, a phrase.
    """

    source: str
    architecture: str | None = None
    classes: int | None = None
    args: Mapping[str, Any] = field(default_factory=dict)
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    unread: str = ""


def notes_of(saved: Any) -> dict[str, Any]:
    """The entries of a saved dict that may describe the model, as plain values; no tensors."""
    if not isinstance(saved, Mapping):
        return {}
    return {key: _plain(saved[key]) for key in (*_IN_SAVED, *_CLASSES_IN_SAVED) if saved.get(key) is not None}


def notes_of_metadata(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The same of a safetensors file's metadata, whose values are text: JSON, or a word."""
    found = {}
    for key in (*_IN_SAVED, *_CLASSES_IN_SAVED):
        if key in metadata:
            try:
                found[key] = parse_json(metadata[key])
            except ValueError:
                found[key] = metadata[key]
    return found


def read_configs(path: Path, notes: Mapping[str, Any], beside: Path | None) -> tuple[ModelConfig, ...]:
    """What a checkpoint at `path`, by its notes, and the config.json `beside` it say, the checkpoint first.

    Raises:
        IntegrityError: The config.json is no JSON.
    """
    found = (_from_notes(path.name, notes), _from_file(beside) if beside is not None else None)
    return tuple(config for config in found if config is not None)


def named_classes(value: Any) -> tuple[str, ...]:
    """Class names by label, of a list, or of a map from label to name or from name to label; empty if it is none.

    Labels must be 0, 1, 2, and so on.
    """
    if isinstance(value, str) or value is None:
        return ()
    if isinstance(value, Mapping):
        # Names may be numbers too: where all values are numbers and no text, they are the labels.
        by_label = all(_label(key) is not None for key in value) and not all(
            not isinstance(v, str) and _label(v) is not None for v in value.values()
        )
        pairs = [(_label(key), each) if by_label else (_label(each), key) for key, each in value.items()]
        names = {label: str(name) for label, name in pairs if label is not None and isinstance(name, str | int)}
        whole = len(names) == len(pairs) and set(names) == set(range(len(pairs)))
        return tuple(names[label] for label in range(len(pairs))) if whole else ()
    texts = list(value) if isinstance(value, Iterable) else []
    return tuple(texts) if all(isinstance(text, str) for text in texts) else ()


def names_among(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The class names that one of a dict's entries gives; empty where none does."""
    return next((found for key in _CLASSES_IN_SAVED if (found := named_classes(values.get(key)))), ())


def _unread(*places: Mapping[str, Any]) -> str:
    """What tells labels from names, but not so that the names of all labels are known."""
    for place in places:
        if place.get("class_map"):
            return f"was trained with the class map `{place['class_map']}`"
        for key in _CLASSES_IN_SAVED:
            if isinstance(place.get(key), Mapping) and place[key]:
                return f"has {key} whose labels are not 0, 1, 2, ..."
    return ""


def _from_notes(name: str, notes: Mapping[str, Any]) -> ModelConfig | None:
    """What a training script wrote: timm's (`arch`, `args`), Lightning's, or a dict of one's own."""
    arguments = {**_dict(notes.get("hyper_parameters")), **_dict(notes.get("args"))}
    config = {**_dict(notes.get("meta")), **_dict(notes.get("config")), **_dict(notes.get("pretrained_cfg"))}
    architecture = _text(arguments.get("model")) or _text(config.get("architecture")) or _text(notes.get("arch"))
    names = next((found for each in (notes, arguments, config) if (found := names_among(each))), ())
    described = ModelConfig(
        source=name,
        architecture=architecture,
        classes=_count(notes.get("num_classes")) or _count(arguments.get("num_classes")),
        args=_arguments({**_dict(arguments.get("model_kwargs")), **_dict(notes.get("model_args"))}, arguments),
        preprocessing={**well_formed_preprocessing(config), **well_formed_preprocessing(arguments)},
        class_names=names,
        unread="" if names else _unread(notes, arguments, config),
    )
    return described if described != ModelConfig(source=name) else None


def _from_file(path: Path) -> ModelConfig | None:
    """The layout of timm on the Hub, of today and of its first versions, or of Transformers' wrapper around timm."""
    if not path.is_file():
        return None
    with understood(path, "copy it again, or remove it"):
        values = parse_json(read_limited(path, MAX_BYTES))
    architecture = _text(values.get("architecture")) if isinstance(values, dict) else None
    if architecture is None:  # another program's file
        return None
    config = _dict(values.get("pretrained_cfg")) or values
    names = (values.get("label_names"), config.get("label_names"), values.get("id2label"))
    return ModelConfig(
        source=path.name,
        architecture=architecture,
        classes=_count(values.get("num_classes")),
        args=_arguments(_dict(values.get("model_args")), values),
        preprocessing=well_formed_preprocessing(config),
        class_names=next((found for each in names if (found := named_classes(each))), ()),
    )


def well_formed_preprocessing(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of preprocessing that are well formed; a training script leaves empty what it took from the model."""
    found: dict[str, Any] = {}
    for name in ("mean", "std"):
        numbers = values.get(name)
        numbers = [numbers] if _is_number(numbers) else numbers
        if isinstance(numbers, list | tuple) and numbers and all(_is_number(number) for number in numbers):
            found[name] = tuple(float(number) for number in numbers)
    if min(found.get("std", (1,))) <= 0:
        del found["std"]
    size = values.get("input_size")
    if isinstance(size, list | tuple) and len(size) == 3 and all(_count(side) for side in size):
        found["input_size"] = tuple(size)
    if _is_number(values.get("crop_pct")) and 0 < values["crop_pct"] <= 1:
        found["crop_pct"] = float(values["crop_pct"])
    for name, words in (("crop_mode", ("center", "squash", "border")), ("interpolation", _INTERPOLATIONS)):
        if values.get(name) in words:
            found[name] = values[name]
    return found


_NOT_OF_STRUCTURE = ("num_classes", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path")
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


def _arguments(model_args: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of timm.create_model: those kept as such, and what timm's train.py takes by other names."""
    found = {key: value for key, value in model_args.items() if value is not None and key not in _NOT_OF_STRUCTURE}
    for name, argument in (("img_size", "img_size"), ("in_chans", "in_chans"), ("gp", "global_pool")):
        value = values.get(name)
        if value is not None and not isinstance(value, Mapping) and argument not in found:
            found[argument] = value
    return found


def _plain(value: Any) -> Any:
    """A namespace as a dict, to any depth that it nests."""
    if not isinstance(value, Mapping) and hasattr(value, "__dict__"):
        value = vars(value)
    return {str(key): item for key, item in value.items()} if isinstance(value, Mapping) else value


def _dict(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _label(value: Any) -> int | None:
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdigit() else None
    try:
        return None if isinstance(value, bool) else operator.index(value)  # also NumPy's and PyTorch's
    except (TypeError, ValueError, RuntimeError):
        return None
